"""The result table, for the terminal, a page, a spreadsheet and a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from analysis.numbers import mean_std, number, percent
from analysis.summary import Method, Summary


def result_table(summary: Summary) -> str:
    """Return the markdown table of the methods: a row a method, the unquantized model first."""
    several = len(summary.models) > 1
    metric = summary.metric
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
        rows += [[*name, *_cells(m)] for m in summary.methods if m.model == model]
    return markdown(header, rows, left=2 if several else 1)


def _cells(method: Method) -> list[str]:
    cv = None if method.deterministic else method.description.cv_percent
    return [
        method.name,
        str(method.n),
        mean_std(method, 3),
        number(cv, 2),
        percent(method.change_percent),
        number(method.selection_time_sec, 1),
        number(method.quant_time_sec, 1),
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return an aligned markdown table; columns after the first `left` are aligned right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                cell.ljust(w) if i < left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            + " |"
        )

    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a CSV table with a header line; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if v is None else v for v in row] for row in rows)
    return out.getvalue()
