"""Two methods on the same evaluation windows, from the per-window sums that each run logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from analysis.reading.windows import read_windows
from analysis.stats import PairedWindows, paired_windows
from analysis.stats.samples import FloatArray
from analysis.summary import Summary

# Windows lie side by side in a text, and neighbours of one document are alike: up to so many
# stretches of neighbouring windows are taken as the independent ones.
STRETCHES = 50


@dataclass(frozen=True)
class WindowPair:
    """Method a against method b, each the mean over its checkpoints, window by window.

    delta: shape [windows], NLL of a minus that of b, nats a token. checkpoints_a, checkpoints_b:
    independent observations that were averaged.
    """

    delta: FloatArray
    checkpoints_a: int
    checkpoints_b: int
    result: PairedWindows


Key = tuple[str, str, str]
"""model, method a, method b"""


def window_pairs(summary: Summary) -> dict[Key, WindowPair]:
    """Compare each pair of methods on the windows that all their runs were evaluated on.

    A pair is left out when the metric is no perplexity, or when a run has no per-window sums or
    they are of other windows.
    """
    name = _corpus(summary)
    if name is None:
        return {}

    @cache
    def mean_nll(model: str, method: str) -> tuple[pd.DataFrame, int] | None:
        return _mean_nll(summary, model, method, name)

    found: dict[Key, WindowPair] = {}
    for pair in summary.pairs:
        a, b = mean_nll(pair.model, pair.a), mean_nll(pair.model, pair.b)
        if a is not None and b is not None and _same_windows(a[0], b[0]):
            found[pair.model, pair.a, pair.b] = _compare(a[0], b[0], a[1], b[1])
    return found


def results(pairs: Mapping[Key, WindowPair]) -> dict[Key, PairedWindows]:
    """Return the statistics alone."""
    return {key: pair.result for key, pair in pairs.items()}


def _corpus(summary: Summary) -> str | None:
    """Name of the corpus as in `perplexity.NAME`; `perplexity` is that of the first of them."""
    if not summary.metric.startswith("perplexity"):
        return None
    _, _, name = summary.metric.partition(".")
    if name:
        return name
    named = [str(c) for c in summary.cells.columns if str(c).startswith("perplexity.")]
    first = summary.cells["perplexity"]
    same = [c for c in named if summary.cells[c].equals(first)]
    return same[0].removeprefix("perplexity.") if same else None


def _mean_nll(
    summary: Summary, model: str, method: str, corpus: str
) -> tuple[pd.DataFrame, int] | None:
    """Per-window sums averaged over the independent observations, and how many those are."""
    cells = summary.cells
    rows = cells[(cells["model"] == model) & (cells["method"] == method) & (cells["error"] == "")]
    once = rows.drop_duplicates("observation")
    runs = once["source_run"].where(once["source_run"] != "", once["run_id"])
    tables = [read_windows(str(run_id), corpus) for run_id in runs]
    known = [table for table in tables if table is not None]
    if not known or len(known) < len(tables):
        return None
    if not all(_same_windows(known[0], table) for table in known):
        return None
    mean = np.mean([table["nll"].to_numpy(np.float64) for table in known], axis=0)
    return known[0].assign(nll=mean), len(known)


def _same_windows(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in ("start", "tokens"))


def _compare(a: pd.DataFrame, b: pd.DataFrame, n_a: int, n_b: int) -> WindowPair:
    nll_a, nll_b, tokens = (x.to_numpy(np.float64) for x in (a["nll"], b["nll"], a["tokens"]))
    stretch = np.arange(len(tokens)) * min(STRETCHES, len(tokens)) // len(tokens)
    result = paired_windows(nll_a, nll_b, tokens, stretch)
    return WindowPair((nll_a - nll_b) / tokens, n_a, n_b, result)
