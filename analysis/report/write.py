"""From the runs of a suite to everything that is reported of it, written where it is asked for."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.reading import RunsError, artifacts
from analysis.reading.looks import Course, read_course
from analysis.reading.runs import load_suite, load_suites, named_by
from analysis.report import html
from analysis.report.budget import budget_table, metrics_table
from analysis.report.headlines import Tell, headlines
from analysis.report.items import item_facts, item_table
from analysis.report.latex import latex_table
from analysis.report.looks import looks_table
from analysis.report.measures import measures_table
from analysis.report.own import own_numbers, own_table
from analysis.report.plots import figures
from analysis.report.sentences import key_lines, results_markdown, sections, settings
from analysis.report.summary_json import plain, suite_facts, summary_stats
from analysis.report.tables import (
    Table,
    comparison_table,
    markdown,
    methods_csv,
    result_table,
    seeds_table,
)
from analysis.summary import Options, Summary, summarize
from analysis.summary.items import item_pairs
from colazero.figures import caption_of, label, short

FOLDER = "analysis"


def analyze(
    suites: str | Sequence[str],
    options: Options | None = None,
    *,
    filter: str = "",
    into: str | None = None,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> str:
    """Analyze suites, log all of it under `analysis/`, return the result table and its meaning.

    suites: a run id, or several, whose cells stand side by side, each setting within itself.
    filter: MLflow's search syntax, which of their cells are taken.
    into: the run that the artifacts are logged to; None: the first suite's own. It may be open or
    finished. out: a local folder that gets the same files. Cells that failed are listed and left
    out; `tell` is told the numbers of each method and comparison. Where no primary method or
    baseline is named, those of the first suite that names one are taken. RunsError for a run that
    is no suite and for options that do not fit it.
    """
    ids = [suites] if isinstance(suites, str) else list(suites)
    if len(ids) == 1 and not filter:
        cells = load_suite(ids[0], allow_failed=True)
    else:
        cells = load_suites(ids, filter)
    origin = f"Suite{'s' * (len(ids) > 1)} {', '.join(ids)}{f', {filter}' if filter else ''}"
    course = read_course(ids, cells)
    options = as_named(options or Options(), cells)
    return report(cells, options, origin, course=course, into=into or ids[0], out=out, tell=tell)


def as_named(options: Options, cells: pd.DataFrame) -> Options:
    """Return options with the primary method and the baseline that the cells' suites name."""
    named, there = named_by(*filter(None, cells["suite"].unique())), set(cells["method"])
    return options.or_else({name: method for name, method in named.items() if method in there})


def report(
    cells: pd.DataFrame,
    options: Options,
    origin: str,
    *,
    course: Course | None = None,
    into: str | None = None,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> str:
    """As `analyze`, for a table of cells that is already read; `into` None logs nothing."""
    if out is not None:
        make_folder(out)
    summary = summarize(cells, options, course)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents(summary, origin).items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        if into is not None:
            artifacts.leave(into, Path(folder), FOLDER)
        if out is not None:
            shutil.copytree(folder, out, dirs_exist_ok=True)
    if tell is not None:
        tell(headlines(summary))
    return f"{markdown(result_table(summary))}\n\n{key_lines(summary)}".rstrip()


def make_folder(out: str | Path) -> None:
    """Make the folder that gets the files, if need be; RunsError if it cannot be written to."""
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise RunsError(
            f"out={str(out)!r}: {error.strerror}. Name a folder that can be written to."
        ) from error


def contents(summary: Summary, origin: str) -> dict[str, str | bytes]:
    """Return every file of the analysis: its path in the folder → its content.

    origin: where the runs are from, as in `suite RUN_ID`.
    """
    drawn = figures(summary)
    images = {name: (html.svg(figure), caption_of(figure)) for name, figure in drawn.items()}
    words, items = sections(summary), item_pairs(summary)
    facts = suite_facts(summary) | {"further_statistics": own_numbers(summary)}
    facts["downstream_items"] = item_facts(items)
    tables = {
        "methods": result_table(summary),
        "primary": comparison_table(summary, "primary"),
        "exploratory": comparison_table(summary, "exploratory"),
        "looks": looks_table(summary),
        "budget": budget_table(summary),
        "metrics": metrics_table(summary),
        "seeds": seeds_table(summary),
        "measures": measures_table(summary),
        "items": item_table(items),
    }
    written = "\n\n".join(markdown(table) for table in tables.values() if table.rows) + "\n"
    tables |= {"own": own_table(summary), "facts": _facts_table(facts["settings"])}
    lines = [line.removeprefix("- ") for line in key_lines(summary).splitlines()]
    page = html.page(title(summary), _subtitle(summary, origin), lines, tables, images, words)
    files: dict[str, str | bytes] = {
        "summary_stats.json": _json(summary_stats(summary)),
        "suite.json": _json(facts),
        "cells.csv": _in_mlflows_words(summary.cells).to_csv(index=False),
        "table.md": written,
        "table.csv": methods_csv(summary),
        "table.tex": latex_table(summary),
        "results.md": results_markdown(words),
        "report.html": page,
    }
    for name, figure in drawn.items():
        files[f"figures/{name}.svg"] = images[name][0]
        files[f"figures/{name}.png"] = html.png(figure)
    return files


def title(summary: Summary) -> str:
    """Name the models, the methods, the seeds and the day."""
    cells = summary.cells[summary.cells["kind"] == "cell"]
    seeds = sorted({int(seed) for seed in cells["seed"].dropna()})
    days = sorted(set(summary.cells["date"]) - {""})
    models = ", ".join(dict.fromkeys(short(summary.place(m).model) for m in summary.models))
    models += f", {settings(summary)}" if summary.facets else ""
    when = f", {days[-1]}" if days else ""
    methods = ", ".join(map(label, summary.names))
    return f"Calibration sets for GPTQ: {methods} on {models}; {_ranges(seeds)}{when}"


def _ranges(seeds: list[int]) -> str:
    """Write seeds as in `seeds 42–46, 50`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    text = ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
    return f"seed{'s' * (len(seeds) != 1)} {text}"


def _subtitle(summary: Summary, origin: str) -> str:
    good = summary.cells[(summary.cells["kind"] == "cell") & (summary.cells["error"] == "")]
    planned = int((summary.cells["kind"] == "cell").sum())
    late = " (post hoc)" if summary.options.post_hoc else ""
    text = "; ".join(
        dict.fromkeys(
            f"{len(t.tokens)} windows of {t.corpus}, {t.tokens.sum():,.0f} tokens"
            for t in summary.texts.values()
        )
    )
    return (
        f"{origin}: {len(good)} of {planned} cells with a result; {summary.metric_name}"
        f"{' on ' + text if text else ''}; equivalence margin ±{summary.options.margin:g} %{late}, "
        f"α = {summary.options.alpha:g}."
    )


def _in_mlflows_words(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the table with `true` and `false`, as parameters and JSON have them."""
    flags = cells.select_dtypes(["bool", "boolean"])
    words = {str(n): flags[n].map({True: "true", False: "false"}) for n in flags}
    return cells.assign(**words)


def _facts_table(settings: dict[str, list[str]]) -> Table:
    return Table(["setting", "value"], [[k, ", ".join(v)] for k, v in settings.items()], left=2)


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
