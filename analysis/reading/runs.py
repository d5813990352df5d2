"""Finished runs as one tidy table: a row a cell, typed, and complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from analysis.reading.checks import (
    UNQUANTIZED,
    RunsError,
    blank_non_finite,
    complete,
    drop_repeats,
    mark_observations,
    refuse_duplicates,
    refuse_mixed_settings,
    refuse_unfinished,
)

PAGE = 1000
KINDS = ("cell", "baseline", "control")
COUNTS = ("seed", "replicate", "n_calibration_samples", "seq_len", "quant_bits", "group_size")
FLAGS = ("desc_act", "sym", "act_group_aware", "do_downstream")
NUMBERS = ("damp_percent",)
WORDS = (
    "corpus",
    "corpus_share",
    "eval_corpora",
    "eval_windows",
    "downstream_tasks",
    "device",
    "quantizer",
)
ALWAYS = ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec")
TAGS = {
    "source_run": "colazero.source_run",
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
STOPPED = "colazero.stopped"
"""The tag of a suite with the number of seeds, by model and method, after which all was settled."""


def load_suite(
    suite_run_id: str, *, allow_failed: bool = False, page_size: int = PAGE
) -> pd.DataFrame:
    """Read the runs of a suite: a row a cell, and a row with method `unquantized` a model.

    Columns: model, method, seed, replicate, kind (cell, baseline, control), status, error, run_id,
    experiment_id, date (its start, UTC), source_run, the parameters, every metric under its name
    (perplexity, …_sec in seconds, downstream.TASK.METRIC) and those of `mark_observations`, from
    which `observations` makes a row an independent observation. A cell that failed, is missing or
    gave no finite number has its reason in `error`, which is '' otherwise, and no metrics. Of a
    method that was settled before its last seed the seeds from there on are not missing.

    RunsError if the suite does not exist, holds a cell twice, mixes settings, or, unless
    `allow_failed`, has a cell with an `error`.
    """
    client = MlflowClient()
    parent = _get(client, suite_run_id)
    found = _search(
        client,
        parent.info.experiment_id,
        f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
        page_size,
    )
    table = _tidy(map(_row, found))
    ends = json.loads(parent.data.tags.get(STOPPED, "{}"))
    grid = [
        (model, method, int(seed), replicate)
        for model in _list(parent, "models")
        for method in _list(parent, "methods")
        for seed in _list(parent, "seeds")[: ends.get(model, {}).get(method)]
        for replicate in range(1, 1 + int(param(parent.data.params, "replicates") or 1))
    ]
    wanted = [*((model, UNQUANTIZED, None, 1) for model in _list(parent, "models")), *grid]
    return _checked(complete(drop_repeats(table), wanted), f"suite {suite_run_id}", allow_failed)


def seeds_of(suite_run_id: str) -> list[int]:
    """Return the seeds of a suite in their order; RunsError if it does not exist."""
    return [int(seed) for seed in _list(_get(MlflowClient(), suite_run_id), "seeds")]


def load_experiment(
    name: str, filter: str = "", *, allow_failed: bool = False, page_size: int = PAGE
) -> pd.DataFrame:
    """Read all cells of an experiment, whatever suite they belong to; columns as `load_suite`.

    filter: MLflow's search syntax, such as `params.seq_len = '512'`, to choose among settings. A
    cell that a later suite took over from an earlier one counts once. Complete means that every
    model has every method with every seed that occurs.

    RunsError as for `load_suite`.
    """
    client = MlflowClient()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        known = ", ".join(repr(e.name) for e in client.search_experiments())
        raise RunsError(f"there is no experiment {name!r}. Known: {known}.")
    found = _search(client, experiment.experiment_id, filter, page_size)
    table = drop_repeats(_tidy(map(_row, found)), across_suites=True)
    where = f"experiment {name!r}" + (f" with filter {filter!r}" if filter else "")
    return _checked(_balanced(table), where, allow_failed)


def load_folder(folder: str | Path) -> pd.DataFrame:
    """Read a folder of result files (`raw_runs/*.json`, one cell each); columns as `load_suite`.

    A file holds model, method, seed, n_calibration_samples, seq_len, quant_bits, group_size,
    selection_time_sec, quant_time_sec, total_time_sec, perplexity and downstream. It does not
    say which cells share a calibration set, so that each counts as an observation: name one file's
    run in the `source_run` of another that is the same work.

    RunsError for a file that is no such object, and as for `load_suite`.
    """
    files = sorted(Path(folder).glob("*.json"))
    table = _tidy(map(_result, files))
    return _checked(_balanced(table), f"folder {folder}", allow_failed=False)


def latest_suite(experiments: Sequence[str]) -> str:
    """Return the newest suite in the experiments of these ids; RunsError if there is none."""
    client = MlflowClient()
    runs = client.search_runs(
        list(experiments),
        "tags.`colazero.kind` = 'suite'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if runs:
        return str(runs[0].info.run_id)
    raise RunsError(
        "this experiment holds no suite. Run one first (python -m entrypoints.suite), or name what "
        "to read with suite=RUN_ID or experiment=NAME."
    )


def _get(client: MlflowClient, run_id: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RunsError(f"suite={run_id!r}: {str(error).splitlines()[0]}") from error
    missing = [n for n in ("models", "methods", "seeds") if not _list(run, n)]
    if run.data.tags.get("colazero.kind") != "suite" or missing:
        kind = run.data.tags.get("colazero.kind", "unknown")
        lacks = f", without the parameters {', '.join(missing)}" if missing else ""
        raise RunsError(f"suite={run_id!r} is no suite: a run of kind {kind!r}{lacks}.")
    return run


def _search(client: MlflowClient, experiment: str, filter: str, page_size: int) -> Iterable[Run]:
    token = None
    while True:
        try:
            page = client.search_runs(
                [experiment],
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


def _list(run: Run, name: str) -> list[str]:
    return [item.strip() for item in (param(run.data.params, name) or "").split(",") if item]


def _row(run: Run) -> dict[str, Any]:
    data, info = run.data, run.info
    row: dict[str, Any] = {
        name: param(data.params, name) for name in ("model", "method", *COUNTS, *FLAGS, *NUMBERS)
    }
    row |= {name: param(data.params, name) for name in WORDS}
    row |= {column: data.tags.get(tag) for column, tag in TAGS.items()}
    row |= {
        "kind": data.tags["colazero.kind"],
        "status": info.status,
        "run_id": info.run_id,
        "experiment_id": info.experiment_id,
        "date": datetime.fromtimestamp(info.start_time / 1000, UTC).date().isoformat(),
        "error": "",
    }
    if info.status != "FINISHED":
        row["error"] = data.tags.get("colazero.error") or f"the run is {info.status}"
        return row
    return row | data.metrics


def _result(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        row = {name: values[name] for name in ("model", "method", *COUNTS) if name != "replicate"}
        row["replicate"] = values.get("replicate", 1)
        row |= {name: float(values[name]) for name in ALWAYS}
        downstream = values.get("downstream") or {}
        row |= {f"downstream.{key}": float(value) for key, value in downstream.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunsError(
            f"{file} is no result file: {type(error).__name__}: {error}. It must be an object with "
            f"model, method, {', '.join((*COUNTS, *ALWAYS))} and downstream. "
            "`replicate` may be left out for 1."
        ) from error
    kind = "baseline" if row["method"] == UNQUANTIZED else "cell"
    known = {"kind": kind, "status": "FINISHED", "run_id": str(file), "error": ""}
    return row | known | {"source_run": values.get("source_run")}


def _tidy(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Give every column its type; a word where a number belongs (`auto`) becomes NA."""
    about = ("kind", "status", "error", "run_id", "experiment_id", "date")
    first = ("model", "method", *COUNTS, *about)
    words = (*(name for name in first if name not in COUNTS), *WORDS, *TAGS)
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


def _balanced(table: pd.DataFrame) -> pd.DataFrame:
    """Complete the product of the models, methods and seeds that occur."""
    cells = table[table["kind"] == "cell"]
    wanted = [
        (model, method, int(seed), int(replicate))
        for model in cells["model"].unique()
        for method in cells["method"].unique()
        for seed in cells["seed"].dropna().unique()
        for replicate in cells["replicate"].unique()
    ]
    return complete(table, wanted)


def _checked(table: pd.DataFrame, where: str, allow_failed: bool) -> pd.DataFrame:
    if table.empty:
        raise RunsError(f"{where} holds no cell.")
    table = blank_non_finite(table)
    refuse_duplicates(table, where)
    refuse_mixed_settings(table, where)
    if not allow_failed:
        refuse_unfinished(table, where)
    return mark_observations(table)
