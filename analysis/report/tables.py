"""The result table, for the terminal, a page, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from analysis.report.numbers import (
    NONE,
    decided,
    interval,
    mean_std,
    number,
    observed,
    p_text,
    percent,
)
from analysis.report.places import columns, place
from analysis.stats import stars
from analysis.summary import Method, Pair, Summary, controls_of
from colazero.figures import label


class Table(NamedTuple):
    """Cells as text; the columns after the first `left` hold numbers and stand right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def result_table(summary: Summary) -> Table:
    """Return the table of the methods: a row a method, the unquantized model and controls first."""
    shared = any(m.overlap is not None for m in summary.methods)
    header = [
        *columns(summary),
        *("method", "observations", f"{summary.metric_name} (mean ± std)", "CV %"),
        *("change from unquantized %", "selection s", "quantization s"),
        *(["tokens shared by two sets %"] if shared else []),
    ]
    rows = []
    for model in summary.models:
        found = []
        if model in summary.unquantized:
            value = number(summary.unquantized[model], 3)
            found.append(["unquantized", "1 run", value, *[NONE] * 4])
        for control, row in controls_of(summary, model).items():
            found.append([control, *_control(row, summary, model)])
        found += [_cells(m) for m in summary.methods if m.model == model]
        own = [row if shared else row[:7] for row in ([*f, NONE][:8] for f in found)]
        rows += [[*place(summary, model), *row] for row in own]
    return Table(header, rows, left=2 + len(columns(summary)))


def _control(row: pd.Series[float], summary: Summary, model: str) -> list[str]:
    plain = summary.unquantized.get(model)
    change = None if not plain else 100 * (row[summary.metric] / plain - 1)
    seconds = number(row["quant_time_sec"], 1)
    return ["1 run", number(row[summary.metric], 3), NONE, percent(change), NONE, seconds]


def _cells(method: Method) -> list[str]:
    return [
        method.name,
        observed(method),
        mean_std(method, 3),
        number(method.description.cv_percent, 2),
        percent(method.change_percent),
        number(method.selection.mean, 2),
        number(method.quantization.mean, 1),
        number(None if method.overlap is None else 100 * method.overlap, 1),
    ]


def comparison_table(summary: Summary, family: str) -> Table:
    """Return the table of a family's comparisons, each with the interval that decided."""
    header = [
        *columns(summary),
        *(
            "comparison",
            "verdict",
            "decided by",
            "difference %",
            "interval that decided",
            "p (Holm)",
        ),
        *("these windows: difference %", "95 % CI", "p", "p (Holm)", "d", "95 % CI of d"),
    ]
    own = [p for p in summary.pairs if p.family == family]
    rows = [[*place(summary, p.model), *_comparison(p)] for p in own]
    return Table(header, rows, left=3 + len(columns(summary)))


def _comparison(pair: Pair) -> list[str]:
    r, j = pair.seeds, pair.judgement
    return [
        f"{label(pair.a)} vs {label(pair.b)}",
        pair.verdict,
        _rests_on(pair),
        percent(pair.percent),
        decided(pair),
        p_text(j.p_adjusted) + stars(j.p_adjusted),
        percent(pair.seeds_percent),
        interval(pair.seeds_percent_ci95, 2, sign=True),
        p_text(r.p_value),
        p_text(r.p_adjusted) + stars(r.p_adjusted),
        number(r.cohens_d, 2),
        interval(r.cohens_d_ci95, 2),
    ]


def _rests_on(pair: Pair) -> str:
    if pair.decided_by is None:
        return NONE
    lent = pair.seeds.lent if pair.decided_by == "seeds" else pair.text and pair.text.lent
    words = {"seeds and text": "seeds × windows", "seeds": "seeds (Welch)"}
    text = words.get(pair.decided_by, "seeds at any time (e-process)")
    return text + (", lent variance" if lent else "")


def seeds_table(summary: Summary) -> Table:
    """Return the metric of every cell: a row a seed and replicate, a column a method."""
    cells = summary.cells[summary.cells["kind"] == "cell"]
    key = ["model", "seed", *(["replicate"] if cells["replicate"].nunique() > 1 else [])]
    rows = []
    for names, own in cells.groupby(key, sort=False):
        values = {row["method"]: row[summary.metric] for _, row in own.iterrows()}
        known = [values.get(name, math.nan) for name in summary.names]
        shown = [*place(summary, str(names[0])), *map(str, names[1:])]
        rows.append([*shown, *(number(v if v == v else None, 3) for v in known)])
    head = [*columns(summary), *key[1:]]
    heads = [label(name) + _about_sets(summary, name) for name in summary.names]
    return Table([*head, *heads], rows, left=len(head))


def _about_sets(summary: Summary, name: str) -> str:
    """Say of a method whose seeds all have one set that what differs there is the order alone."""
    own = [m for m in summary.methods if m.name == name and m.n_draws > 1]
    return ": one set, in other orders" if own and all(m.one_set for m in own) else ""


def methods_csv(summary: Summary) -> str:
    """Return a row a method with unrounded numbers; seconds and per cent as named."""
    header = (
        *(
            "model",
            *summary.facets,
            "method",
            "n",
            "n_seeds",
            "n_draws",
            "one_set",
            "mean",
            "std",
            "cv_percent",
        ),
        *("ci95_low", "ci95_high", "min", "max", "unquantized", "change_percent"),
        *("selection_time_sec", "quant_time_sec", "overlap", "p_holm_vs_primary"),
    )
    tests = {(p.model, p.b): p.judgement.p_adjusted for p in summary.pairs if p.family == "primary"}
    rows = []
    for m in summary.methods:
        d, where = m.description, summary.place(m.model)
        rows.append(
            [
                *(
                    where.model,
                    *where.setting.values(),
                    m.name,
                    m.n,
                    m.n_seeds,
                    m.n_draws,
                    m.one_set,
                    d.mean,
                    d.std,
                ),
                *(d.cv_percent, *(d.ci95 or (None, None)), d.min, d.max),
                *(summary.unquantized.get(m.model), m.change_percent, m.selection.mean),
                *(m.quantization.mean, m.overlap, tests.get((m.model, m.name))),
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


def _field(value: object) -> object:
    """Return what stands for a value: `true` as in MLflow's parameters and in JSON."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a CSV table with a header line; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_field(v) for v in row] for row in rows)
    return out.getvalue()
