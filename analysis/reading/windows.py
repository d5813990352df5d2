"""What a run logged of every evaluation window: the sums that its metrics are made of."""

from __future__ import annotations

import pandas as pd

from analysis.reading.artifacts import read


def read_windows(run_id: str, corpus: str) -> pd.DataFrame | None:
    """Read a run's windows of a corpus, in order of the text; None if it logged none.

    Columns: start (first token in the text), nll (summed over the window, nats), tokens
    (predicted), and where the run measured its distance from the unquantized model: kl (summed,
    nats) and agreed (tokens whose most likely next token is the same).
    """
    file = read(run_id, f"evaluation/windows_{corpus}.parquet")
    try:
        found = None if file is None else pd.read_parquet(file)
    except (OSError, ValueError):
        return None
    if found is None or not {"start", "nll", "tokens"} <= set(found.columns):
        return None
    return found
