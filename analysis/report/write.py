"""From the runs of a suite to everything that is reported of it, written where it is asked for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.custom import all_statistics, evaluate
from analysis.reading import artifacts
from analysis.reading.runs import load_suite
from analysis.report import html
from analysis.report.items import item_facts, item_table
from analysis.report.latex import latex_table
from analysis.report.measures import measures_table
from analysis.report.numbers import number
from analysis.report.plots import figures
from analysis.report.sentences import key_lines, results_markdown, sections
from analysis.report.style import caption_of
from analysis.report.summary_json import plain, suite_facts, summary_stats
from analysis.report.tables import Table, comparison_table, markdown, methods_csv, result_table
from analysis.summary import Options, Summary, summarize
from analysis.summary.items import item_pairs
from analysis.summary.windows import Key, WindowPair, results, window_pairs

FOLDER = "analysis"


def analyze(
    suite_run_id: str,
    options: Options | None = None,
    *,
    into: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Analyze a suite, log all of it under `analysis/`, return the result table and its meaning.

    into: the run that the artifacts are logged to; None: the suite's own. It may be open or
    finished. out: a local folder that gets the same files. Cells that failed are listed and left
    out. RunsError for a run that is no suite and for options that do not fit it.
    """
    cells = load_suite(suite_run_id, allow_failed=True)
    title = f"Suite {suite_run_id}"
    return report(cells, options or Options(), title, into=into or suite_run_id, out=out)


def report(
    cells: pd.DataFrame,
    options: Options,
    title: str,
    *,
    into: str | None = None,
    out: str | Path | None = None,
) -> str:
    """As `analyze`, for a table of cells that is already read; `into` None logs nothing."""
    summary = summarize(cells, options)
    with tempfile.TemporaryDirectory() as folder:
        files = contents(summary, window_pairs(summary), title)
        for target in (Path(folder), *([] if out is None else [Path(out)])):
            for name, content in files.items():
                file = target / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
        if into is not None:
            artifacts.leave(into, Path(folder), FOLDER)
    return f"{markdown(result_table(summary))}\n\n{key_lines(summary)}".rstrip()


def contents(
    summary: Summary, windows: dict[Key, WindowPair], title: str
) -> dict[str, str | bytes]:
    """Return every file of the analysis: its path in the folder → its content."""
    drawn = figures(summary, windows)
    images = {name: (html.svg(figure), caption_of(figure)) for name, figure in drawn.items()}
    methods, comparisons = result_table(summary), comparison_table(summary)
    words = sections(summary, windows)
    items = item_pairs(summary)
    facts = suite_facts(summary) | {"further_statistics": _own_numbers(summary)}
    facts["downstream_items"] = item_facts(items)
    lines = [line.removeprefix("- ") for line in key_lines(summary).splitlines()]
    tables = {"methods": methods, "comparisons": comparisons, "own": _own_table(summary)}
    tables["measures"] = measures_table(summary)
    tables["items"] = item_table(items)
    tables["facts"] = _facts_table(facts["settings"])
    written = [methods, comparisons, tables["measures"], tables["items"]]
    files: dict[str, str | bytes] = {
        "summary_stats.json": _json(summary_stats(summary, results(windows))),
        "suite.json": _json(facts),
        "cells.csv": summary.cells.to_csv(index=False),
        "table.md": "\n\n".join(markdown(table) for table in written if table.rows) + "\n",
        "table.csv": methods_csv(summary),
        "table.tex": latex_table(summary),
        "results.md": results_markdown(words),
        "report.html": html.page(title, _subtitle(summary), lines, tables, images, words),
    }
    for name, figure in drawn.items():
        files[f"figures/{name}.svg"] = images[name][0]
        files[f"figures/{name}.png"] = html.png(figure)
    return files


def _subtitle(summary: Summary) -> str:
    good = summary.cells[(summary.cells["kind"] == "cell") & (summary.cells["error"] == "")]
    planned = int((summary.cells["kind"] == "cell").sum())
    models, methods = len(summary.models), len(summary.names)
    grid = f"{models} model{'s' * (models > 1)} × {methods} method{'s' * (methods > 1)}"
    return (
        f"{grid}, {len(good)} of {planned} cells with a result; {summary.metric_name}, "
        f"equivalence margin ±{summary.options.margin:g} %, α = {summary.options.alpha:g}."
    )


def _own_numbers(summary: Summary) -> dict[str, Any]:
    return {
        model: {
            m.name: evaluate(all_statistics(), m.values, summary.unquantized.get(model))
            for m in summary.of(model)
        }
        for model in summary.models
    }


def _own_table(summary: Summary) -> Table:
    several = len(summary.models) > 1
    header = ["model"] * several + ["method", *(one.description for one in all_statistics())]
    rows = [
        [model] * several + [name, *map(_text, values.values())]
        for model, methods in _own_numbers(summary).items()
        for name, values in methods.items()
    ]
    return Table(header, rows, left=1 + several)


def _text(value: float | str | None) -> str:
    return value if isinstance(value, str) else number(value, 3)


def _facts_table(settings: dict[str, list[str]]) -> Table:
    return Table(["setting", "value"], [[k, ", ".join(v)] for k, v in settings.items()], left=2)


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
