"""From the runs of a suite to everything that is reported of it, written where it is asked for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pandas as pd
from mlflow.tracking import MlflowClient

from analysis.runs import load_suite
from analysis.summary import Options, Summary, summarize
from analysis.summary_json import plain, suite_facts, summary_stats
from analysis.tables import result_table

FOLDER = "analysis"


def analyze(
    suite_run_id: str,
    options: Options | None = None,
    *,
    into: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Analyze a suite, log the result as artifacts under `analysis/`, return the result table.

    into: the run that the artifacts are logged to; None: the suite's own. It may be open or
    finished. out: a local folder that gets the same files. Cells that failed are listed and left
    out. RunsError for a run that is no suite and for options that do not fit it.
    """
    cells = load_suite(suite_run_id, allow_failed=True)
    return report(cells, options or Options(), into=into or suite_run_id, out=out)


def report(
    cells: pd.DataFrame,
    options: Options,
    *,
    into: str | None = None,
    out: str | Path | None = None,
) -> str:
    """As `analyze`, for a table of cells that is already read; `into` None logs nothing."""
    summary = summarize(cells, options)
    with tempfile.TemporaryDirectory() as folder:
        write(summary, Path(folder))
        if into is not None:
            MlflowClient().log_artifacts(into, folder, FOLDER)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write(summary, Path(out))
    return result_table(summary)


def write(summary: Summary, folder: Path) -> None:
    """Write every file of the analysis into an existing folder."""
    _write_json(folder / "summary_stats.json", summary_stats(summary))
    _write_json(folder / "suite.json", suite_facts(summary))
    (folder / "table.md").write_text(result_table(summary) + "\n", encoding="utf-8")


def _write_json(file: Path, value: object) -> None:
    text = json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
