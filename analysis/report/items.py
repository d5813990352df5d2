"""The comparisons of models on the same downstream items, as a table and as facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.report.numbers import interval, number, p_text
from analysis.report.tables import Table
from analysis.stats import stars
from analysis.summary.items import ItemPair
from colazero.figures import label


def item_table(pairs: Sequence[ItemPair]) -> Table:
    """Return the table of the comparisons: a row a task and pair; accuracies and limits in %."""
    several = len({pair.model for pair in pairs}) > 1
    header = [
        *(["model"] if several else []),
        *("comparison", "task", "metric", "items", "accuracy %", "only first", "only second"),
        *("difference (points)", "95 % CI", "p (McNemar)", "p (Holm)"),
    ]
    rows = [[*([p.model] if several else []), *_cells(p)] for p in pairs]
    return Table(header, rows, left=4 if several else 3)


def item_facts(pairs: Sequence[ItemPair]) -> list[dict[str, Any]]:
    """Return the comparisons as JSON objects with unrounded numbers."""
    return [asdict(pair) for pair in pairs]


def _cells(pair: ItemPair) -> list[str]:
    r = pair.result
    low, high = r.diff_ci95
    return [
        f"{label(pair.a)} vs {label(pair.b)}",
        pair.task,
        pair.metric,
        f"{r.n_items:,}",
        f"{number(100 * r.accuracy_a, 1)}, {number(100 * r.accuracy_b, 1)}",
        str(r.only_a),
        str(r.only_b),
        number(100 * r.diff, 1, sign=True),
        interval((100 * low, 100 * high), 1, sign=True),
        p_text(r.p_value),
        p_text(pair.p_adjusted) + stars(pair.p_adjusted),
    ]
