"""What a run logged of every downstream item."""

from __future__ import annotations

import pandas as pd

from analysis.reading.artifacts import read

ARTIFACT = "evaluation/downstream.jsonl.gz"


def read_items(run_id: str) -> pd.DataFrame | None:
    """Read a run's items: task, doc_id, doc_hash, target, response, metrics; None without any."""
    file = read(run_id, ARTIFACT)
    try:
        return None if file is None else pd.read_json(file, lines=True)
    except (OSError, ValueError):
        return None
