"""From the runs of a suite to every file of the report, written where it is asked for."""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, Template
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.reading import artifacts
from analysis.reading.looks import Course, read_course
from analysis.reading.runs import load_suite, load_suites, named_by
from analysis.reading.table import RunsError
from analysis.report import sections, tables
from analysis.report.answer import answer, key_lines, settings
from analysis.report.facts import Headline, headlines, plain, suite_facts, summary_stats
from analysis.report.latex import latex_table
from analysis.report.plots import figures
from analysis.report.tables import Table, markdown
from analysis.summary import Options, Summary, summarize
from analysis.summary.items import item_pairs
from colazero.figures import RC, caption_of, label, short

FOLDER = "analysis"
Tell = Callable[[Sequence[Headline]], object]
FIGURES = {
    "sizes": "How much calibration text is enough",
    "settings": "The settings side by side",
    "seeds": "Every observation",
    "differences": "Differences and the intervals that decided",
    "looks": "The comparisons look by look",
    "windows": "Where in the text the methods differ",
    "budget": "Where the noise comes from",
    "time": "Time against quality",
}
"""Titles of the figures by the first part of their names."""


def analyze(
    suites: str | Sequence[str],
    options: Options | None = None,
    *,
    filter: str = "",
    into: str | None = None,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> str:
    """Analyze suites, log all of it under `analysis/`, return the answer and the result table.

    suites: a run id, or several. Their cells form one table; each setting is analysed on its own.
    filter: selects cells, in MLflow's search syntax.
    into: the run that the artifacts are logged to; None: the first suite's own. It may be open or
    finished. out: a local folder that gets the same files. Cells that failed are listed and left
    out; `tell` gets the numbers of each method and comparison. If no primary method or
    baseline is given, the first suite that names one decides. RunsError for a run that
    is not a suite and for options that do not fit it.
    """
    ids = [suites] if isinstance(suites, str) else list(suites)
    if len(ids) == 1 and not filter:
        cells = load_suite(ids[0], allow_failed=True)
    else:
        cells = load_suites(ids, filter)
    origin = f"Suite{'s' * (len(ids) > 1)} {', '.join(ids)}{f', {filter}' if filter else ''}"
    course, options, into = read_course(ids, cells), options or Options(), into or ids[0]
    return report(cells, options, origin, course=course, into=into, out=out, tell=tell)


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
    """Do as `analyze` for a table of cells that is already read; `into` None logs nothing."""
    if out is not None:
        make_folder(out)
    named = named_by(*filter(None, cells["suite"].unique())).items()
    there = set(cells["method"])
    options = options.or_else({name: method for name, method in named if method in there})
    summary = summarize(cells, options, course)
    files = contents(summary, origin)
    if into is not None:
        with tempfile.TemporaryDirectory() as folder:
            _write(files, Path(folder))
            artifacts.leave(into, Path(folder), FOLDER)
    if out is not None:
        _write(files, Path(out))
    if tell is not None:
        tell(headlines(summary))
    return console(summary)


def _write(files: Mapping[str, str | bytes], folder: Path) -> None:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def console(summary: Summary) -> str:
    """Return the answer, the table and the verdicts, for a terminal and the run's description."""
    lines = [f"- {line}" for line in key_lines(summary)]
    table = markdown(tables.result_table(summary))
    return "\n\n".join([*answer(summary), table, "\n".join(lines)]).rstrip()


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

    origin: where the runs are from, as in `Suite RUN_ID`.
    """
    drawn = figures(summary)
    images = {name: image(figure, "svg") for name, figure in drawn.items()}
    parts, items = sections.sections(summary), item_pairs(summary)
    facts = suite_facts(summary, items)
    shown = {
        "methods": tables.result_table(summary),
        "sizes": tables.sizes_table(summary),
        "primary": tables.comparison_table(summary, "primary"),
        "exploratory": tables.comparison_table(summary, "exploratory"),
        "windows": tables.windows_table(summary),
        "looks": tables.looks_table(summary),
        "budget": tables.budget_table(summary),
        "metrics": tables.metrics_table(summary),
        "seeds": tables.seeds_table(summary),
        "measures": tables.measures_table(summary),
        "items": tables.item_table(items),
    }
    written = "\n\n".join(markdown(table) for table in shown.values() if table.rows) + "\n"
    settings = [[name, ", ".join(values)] for name, values in facts["settings"].items() if values]
    shown |= {"own": tables.own_table(summary)}
    page = template("report.html").render(
        title=title(summary),
        subtitle=_subtitle(summary, origin),
        answer=answer(summary),
        key_lines=key_lines(summary),
        tables=shown,
        settings=Table(["setting", "value"], settings, left=2),
        figures=[
            (
                *(name, FIGURES[name.partition("_")[0]], caption_of(figure)),
                "data:image/svg+xml;base64," + base64.b64encode(images[name]).decode(),
            )
            for name, figure in drawn.items()
        ],
        sections=parts,
    )
    flags = summary.cells.select_dtypes(["bool", "boolean"])
    words = {str(n): flags[n].map({True: "true", False: "false"}) for n in flags}
    files: dict[str, str | bytes] = {
        "summary_stats.json": _json(summary_stats(summary)),
        "suite.json": _json(facts),
        "cells.csv": summary.cells.assign(**words).to_csv(index=False),
        "table.md": written,
        "table.csv": tables.methods_csv(summary),
        "table.tex": latex_table(summary),
        "results.md": sections.results_markdown(summary, parts),
        "report.html": page,
    }
    for name, figure in drawn.items():
        files[f"figures/{name}.svg"] = images[name]
        files[f"figures/{name}.png"] = image(figure, "png")
    return files


def title(summary: Summary) -> str:
    """Name the models, the methods, the seeds and the day."""
    cells = summary.cells[summary.cells["kind"] == "cell"]
    runs: list[list[int]] = []  # of seeds that follow one another
    for seed in sorted({int(seed) for seed in cells["seed"].dropna()}):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    text = ", ".join(f"{r[0]}–{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
    seeds = f"seed{'s' * (sum(map(len, runs)) != 1)} {text}"
    days = sorted(set(summary.cells["date"]) - {""})
    models = ", ".join(dict.fromkeys(short(summary.place(m).model) for m in summary.models))
    models += f", {settings(summary)}" if summary.facets else ""
    when = f", {days[-1]}" if days else ""
    methods = ", ".join(map(label, summary.names))
    return f"Calibration sets for GPTQ: {methods} on {models}; {seeds}{when}"


def _subtitle(summary: Summary, origin: str) -> str:
    cells = summary.cells[summary.cells["kind"] == "cell"]
    late = " (post hoc)" if any("margin" in x for x in summary.options.post_hoc) else ""
    text = "; ".join(dict.fromkeys(map(tables.evaluation_text, summary.texts.values())))
    return (
        f"{origin}: {(cells['error'] == '').sum()} of {len(cells)} cells with a result; "
        f"{summary.metric_name}{' on ' + text if text else ''}; equivalence margin "
        f"±{summary.options.margin:g} {tables.unit(summary)}{late}, α = {summary.options.alpha:g}."
    )


def image(figure: Figure, kind: str) -> bytes:
    """Return a figure as SVG (letters as outlines) or PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    with mpl.rc_context(RC):
        figure.savefig(out, format=kind, **options)
        figure.set_layout_engine("none")  # the layout is done; a second one takes as long
    return out.getvalue()


@cache
def template(name: str) -> Template:
    """Return a page's template, which is in this file's folder."""
    environment = Environment(autoescape=True)
    environment.filters["bold"] = _bold
    source = Path(__file__).with_name(f"{name}.jinja").read_text(encoding="utf-8")
    return environment.from_string(source)


def _bold(text: str) -> Markup:
    """Turn **x** into bold; everything else is escaped."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text))))


def _json(value: object) -> str:
    return json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
