"""MLflow's runs, and result files, as rows of one typed table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from analysis.reading.checks import CELL, TEXT, UNQUANTIZED, RunsError
from colazero.settings import SETTINGS

PAGE = 1000
KINDS = ("cell", "baseline", "control")
SIZES = ("n_calibration_samples", "seq_len", "quant_bits", "group_size")
"""The settings that a result file must name."""


def _of_type(kind: type) -> tuple[str, ...]:
    """Return the settings whose values are of a type."""
    return tuple(n for n, one in SETTINGS.items() if one.type is kind and n not in CELL)


COUNTS = tuple(dict.fromkeys(("seed", "replicate", *SIZES, *_of_type(int))))
FLAGS, NUMBERS, WORDS = _of_type(bool), _of_type(float), _of_type(str)
ALWAYS = ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec")
TAGS = {
    "suite": "mlflow.parentRunId",
    "source_run": "colazero.source_run",
    "key": "colazero.key",
    "calibration_digest": "colazero.calibration_digest",
    "order_digest": "colazero.order_digest",
    "model_revision": "colazero.model_revision",
    "version.torch": "version.torch",
    "version.transformers": "version.transformers",
    "version.gptqmodel": "version.gptqmodel",
    "device_name": "colazero.device",
    "git_commit": "colazero.git_commit",
    "git_dirty": "colazero.git_dirty",
    "higher_is_better": "colazero.higher_is_better",
}


def search(experiments: Sequence[str], filter: str, page_size: int) -> Iterable[Run]:
    client, token = MlflowClient(), None
    while True:
        try:
            page = client.search_runs(
                list(experiments),
                filter,
                max_results=page_size,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        except MlflowException as error:
            raise RunsError(f"filter {filter!r}: {str(error).splitlines()[0]}") from error
        yield from (r for r in page if r.data.tags.get("colazero.kind") in KINDS)
        token = page.token
        if not token:
            return


def param(params: Mapping[str, str], name: str) -> str | None:
    """Return a run's parameter: what `name` was resolved to, where that is written beside it."""
    return params.get(f"resolved.{name}", params.get(name))


def metric(stored: str) -> str:
    """Return a metric's own name: the store groups some by a slash, as in `perplexity/sotu`."""
    return stored.removeprefix("work/").replace("/", ".", 1)


def row_of(run: Run) -> dict[str, Any]:
    data, info = run.data, run.info
    started = datetime.fromtimestamp(info.start_time / 1000, UTC)
    row: dict[str, Any] = {
        name: param(data.params, name) for name in ("model", "method", *COUNTS, *FLAGS, *NUMBERS)
    }
    row |= {name: param(data.params, name) for name in WORDS}
    row |= {column: data.tags.get(tag) for column, tag in TAGS.items()}
    row[TEXT] = _text(run)
    row |= {
        "kind": data.tags["colazero.kind"],
        "status": info.status,
        "run_id": info.run_id,
        "experiment_id": info.experiment_id,
        "date": started.date().isoformat(),
        "started": started.isoformat(timespec="milliseconds"),
        "error": "",
    }
    if info.status != "FINISHED":
        row["error"] = data.tags.get("colazero.error") or f"the run is {info.status}"
        return row
    return row | {metric(name): value for name, value in data.metrics.items()}


def _text(run: Run) -> str | None:
    """Return the digests of what a run was evaluated on, or of the run whose results it has."""
    source = run.data.tags.get("colazero.source_run")
    inputs = run.inputs.dataset_inputs if run.inputs else []
    found = {
        one.dataset.name: one.dataset.digest
        for one in inputs
        if any(t.key == "mlflow.data.context" and t.value == "evaluation" for t in one.tags)
    }
    if not found and source:
        return _text_of(source)
    return ",".join(found[name] for name in sorted(found)) or None


@cache
def _text_of(run_id: str) -> str | None:
    try:
        return _text(MlflowClient().get_run(run_id))
    except MlflowException:  # deleted since
        return None


def result_row(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        row = {name: values[name] for name in ("model", "method", "seed", *SIZES)}
        row["replicate"] = values.get("replicate", 1)
        row |= {name: float(values[name]) for name in ALWAYS}
        downstream = values.get("downstream") or {}
        row |= {f"downstream.{key}": float(value) for key, value in downstream.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunsError(
            f"{file} is no result file: {type(error).__name__}: {error}. It must be an object with "
            f"model, method, {', '.join(('seed', *SIZES, *ALWAYS))} and downstream. "
            "`replicate` may be left out for 1."
        ) from error
    kind = "baseline" if row["method"] == UNQUANTIZED else "cell"
    known = {"kind": kind, "status": "FINISHED", "run_id": str(file), "error": ""}
    return row | known | {"source_run": values.get("source_run")}


def tidy(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Give every column its type; a word where a number belongs (`auto`) becomes NA."""
    about = ("kind", "status", "error", "run_id", "experiment_id", "date", "started")
    first = ("model", "method", *COUNTS, *about)
    words = (*(name for name in first if name not in COUNTS), *WORDS, *TAGS, TEXT)
    table = pd.DataFrame(list(rows))
    known = {*first, *words, *FLAGS, *NUMBERS}
    metrics = sorted(({str(c) for c in table.columns} | set(ALWAYS)) - known)
    table = table.reindex(columns=[*dict.fromkeys((*first, *words, *FLAGS, *NUMBERS)), *metrics])
    for name in COUNTS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype("Int64")
    table["replicate"] = table["replicate"].fillna(1)  # of a run that knew of no other
    for name in (*NUMBERS, *metrics):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype("float64")
    for name in FLAGS:
        flag = table[name].astype("str").str.lower()
        table[name] = flag.map({"true": True, "false": False}).astype("boolean")
    for name in words:
        table[name] = table[name].astype("str").where(table[name].notna(), "")
    return table
