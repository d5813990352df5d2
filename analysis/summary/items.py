"""Models on the same downstream items, from what each run logged about every item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from analysis.reading.artifacts import read_items
from analysis.reading.table import UNQUANTIZED
from analysis.stats.comparison import PairedItems, mcnemar
from analysis.stats.verdicts import holm
from analysis.summary import Summary

METRICS = ("acc_norm", "acc", "exact_match")
"""What an item is judged by: the first of these that its task has, of each filter of answers."""


@dataclass(frozen=True)
class ItemPair:
    """Two methods on one task, by the checkpoint of the first seed of each that ran it."""

    model: str
    a: str
    b: str
    task: str
    metric: str
    result: PairedItems
    p_adjusted: float | None = None


def item_pairs(summary: Summary) -> list[ItemPair]:
    """Compare every two methods of a model, the unquantized one too, on each task's items.

    p-values are Holm-adjusted over all of them. Pairs without the same items are left out.
    """
    good = summary.cells[summary.cells["error"] == ""]
    scores = [name for name in good.columns if str(name).startswith("downstream.")]
    scored = good[good[scores].notna().any(axis=1)].sort_values("seed", kind="stable")
    found: list[ItemPair] = []
    for model in summary.models:
        names = dict.fromkeys(good.loc[good["model"] == model, "method"])
        known = {}
        for name in sorted(names, key=lambda name: name != UNQUANTIZED):
            own = scored[(scored["model"] == model) & (scored["method"] == name)]
            for run in (own["source_run"].where(own["source_run"] != "", own["run_id"])).head(1):
                items = read_items(str(run))
                if items is not None:
                    known[name] = items
        for b, a in combinations(known, 2):
            found += compare(known[a], known[b], model, a, b)
    adjusted = holm([pair.result.p_value for pair in found])
    return [replace(pair, p_adjusted=p) for pair, p in zip(found, adjusted, strict=True)]


def compare(
    first: pd.DataFrame, second: pd.DataFrame, model: str = "", a: str = "a", b: str = "b"
) -> list[ItemPair]:
    """Compare two runs' items as `read_items` returns them, task by task; p-values as they are."""
    found = []
    for task, rows_a in first.groupby("task", sort=True):
        rows_b = second[second["task"] == task]
        for metric in _metrics(rows_a):
            if metric not in rows_b:
                continue
            known_a, known_b = (rows[rows[metric].notna()] for rows in (rows_a, rows_b))
            joined = known_a.merge(known_b, on=["doc_id", "doc_hash"], suffixes=("_a", "_b"))
            right = joined[[f"{metric}_a", f"{metric}_b"]]
            if len(joined) == len(known_a) == len(known_b) and right.isin((0, 1)).all(axis=None):
                result = mcnemar(right.iloc[:, 0], right.iloc[:, 1])
                found.append(ItemPair(model, a, b, str(task), metric, result))
    return found


def _metrics(rows: pd.DataFrame) -> list[str]:
    """Return the columns that judge every item of a task: one per filter, as METRICS orders them.

    A task that filters answers in several ways (gsm8k: strict-match, flexible-extract) has one
    row per item and filter, and METRIC.FILTER for METRIC.
    """
    items = rows["doc_id"].nunique()
    found: dict[str, str] = {}
    for name in METRICS:
        for column in rows.columns:
            metric, _, answers = str(column).partition(".")
            if metric == name and rows[column].notna().sum() == items:
                found.setdefault(answers, str(column))
    return list(found.values())
