"""The result table, for the terminal, a page, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis.report.numbers import NONE, interval, mean_std, number, p_text, percent
from analysis.report.style import label
from analysis.stats import stars
from analysis.summary import OURS, Method, Pair, Summary, controls_of


class Table(NamedTuple):
    """Cells as text; the columns after the first `left` hold numbers and stand right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def result_table(summary: Summary) -> Table:
    """Return the table of the methods: a row a method, the unquantized model and controls first."""
    several = len(summary.models) > 1
    metric = summary.metric_name
    header = [
        *(["model"] if several else []),
        *("method", "n", f"{metric} (mean ± std)", "CV %", "change from unquantized %"),
        *("selection s", "quantization s"),
    ]
    rows = []
    for model in summary.models:
        name = [model] if several else []
        if model in summary.unquantized:
            value = number(summary.unquantized[model], 3)
            rows.append([*name, "unquantized", "1", value, "–", "–", "–", "–"])
        for control, row in controls_of(summary, model).items():
            rows.append([*name, control, *_control(row, summary, model)])
        rows += [[*name, *_cells(m)] for m in summary.methods if m.model == model]
    return Table(header, rows, left=2 if several else 1)


def _control(row: pd.Series[float], summary: Summary, model: str) -> list[str]:
    plain = summary.unquantized.get(model)
    change = None if not plain else 100 * (row[summary.metric] / plain - 1)
    seconds = number(row["quant_time_sec"], 1)
    return ["1", number(row[summary.metric], 3), "–", percent(change), "–", seconds]


def _cells(method: Method) -> list[str]:
    cv = None if method.deterministic else method.description.cv_percent
    return [
        method.name,
        str(method.n),
        mean_std(method, 3),
        number(cv, 2),
        percent(method.change_percent),
        number(method.selection_time_sec, 2),
        number(method.quant_time_sec, 1),
    ]


def comparison_table(summary: Summary) -> Table:
    """Return the table of the comparisons: a row a comparison."""
    several = len(summary.models) > 1
    header = [
        *(["model"] if several else []),
        *("comparison", "verdict", "n", "difference %", "95 % CI", "p", "p (Holm)", "test"),
        *("d", "95 % CI of d"),
    ]
    rows = [[*([p.model] if several else []), *_comparison(p)] for p in summary.pairs]
    return Table(header, rows, left=3 if several else 2)


def _comparison(pair: Pair) -> list[str]:
    r = pair.result
    test = {"welch": "Welch", "lent-variance": "lent variance", None: NONE}[r.test]
    return [
        f"{label(pair.a)} vs {label(pair.b)}",
        r.verdict,
        f"{r.n_a}, {r.n_b}",
        percent(pair.percent(r.diff)),
        interval(pair.percent_interval(r.diff_ci95), 2, sign=True),
        p_text(r.p_value),
        p_text(r.p_adjusted) + stars(r.p_adjusted),
        test,
        number(r.cohens_d, 2),
        interval(r.cohens_d_ci95, 2),
    ]


def methods_csv(summary: Summary) -> str:
    """Return a row a method with unrounded numbers; seconds and per cent as named."""
    header = (
        *("model", "method", "n", "n_seeds", "mean", "std", "cv_percent", "ci95_low", "ci95_high"),
        *("min", "max", "unquantized", "change_percent", "selection_time_sec", "quant_time_sec"),
        "p_holm_vs_cola_zero",
    )
    tests = {(p.model, p.b): p.result.p_adjusted for p in summary.pairs if p.a == OURS}
    rows = []
    for m in summary.methods:
        d = m.description
        low, high = d.ci95 or (None, None)
        rows.append(
            [
                *(m.model, m.name, m.n, m.n_seeds, d.mean, d.std, d.cv_percent, low, high),
                *(d.min, d.max, summary.unquantized.get(m.model), m.change_percent),
                *(m.selection_time_sec, m.quant_time_sec, tests.get((m.model, m.name))),
            ]
        )
    return csv_text(header, rows)


def markdown(table: Table) -> str:
    """Return an aligned markdown table."""
    cells = [[c.replace("|", "\\|") for c in row] for row in (table.header, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * w if i < table.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a CSV table with a header line; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if v is None else v for v in row] for row in rows)
    return out.getvalue()
