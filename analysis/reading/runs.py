"""Finished runs as one tidy, typed table with one row per cell; incomplete suites are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from analysis.reading.table import (
    COLUMNS,
    TEXT,
    UNQUANTIZED,
    Key,
    RunsError,
    by_setting,
    checked,
    complete,
    differing,
    drop_repeats,
    filled,
    newest,
    with_baselines,
)
from colazero.settings import CELL, SETTINGS

KINDS = ("cell", "baseline", "control")
BESIDE = "tags.`colazero.kind` != 'cell'"
"""The condition of runs other than cells: unquantized models and controls."""
SUITE = "tags.`colazero.kind` = 'suite'"
STOPPED = "colazero.stopped"
"""The tag of a suite with the number of seeds, by model and method, after which all was settled."""
SWEEP = "colazero.sweep"
"""The tag of a suite with the settings that it gives several values: name → values, as JSON."""


def _of_type(kind: type) -> tuple[str, ...]:
    """Return the settings whose values are of a type."""
    return tuple(n for n, one in SETTINGS.items() if one.type is kind and n not in CELL)


SIZES = ("n_calibration_samples", "seq_len", "quant_bits", "group_size")
"""The settings that a result file must name."""
COUNTS = tuple(dict.fromkeys(("seed", "replicate", *SIZES, *_of_type(int))))
FLAGS, NUMBERS, WORDS = _of_type(bool), _of_type(float), _of_type(str)
ALWAYS = ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec")
ABOUT = ("kind", "status", "error", "run_id", "experiment_id", "date", "started")
TAGS = {
    "suite": "mlflow.parentRunId",
    "source_run": "colazero.source_run",
    "key": "colazero.key",
    "calibration_digest": "colazero.calibration_digest",
    "order_digest": "colazero.order_digest",
    "model_revision": "colazero.model_revision",
    "stored_as": "colazero.base_model",
    "version.torch": "version.torch",
    "version.transformers": "version.transformers",
    "version.gptqmodel": "version.gptqmodel",
    "device_name": "colazero.device",
    "git_commit": "colazero.git_commit",
    "git_dirty": "colazero.git_dirty",
    "higher_is_better": "colazero.higher_is_better",
}


def search(experiments: Sequence[str], condition: str, order: str = "ASC") -> list[Run]:
    """Return the runs of experiments (ids), by the time at which they began.

    RunsError if MLflow does not understand the condition.
    """
    try:
        return mlflow.search_runs(
            list(experiments),
            condition,
            max_results=sys.maxsize,
            order_by=[f"attributes.start_time {order}"],
            output_format="list",
        )
    except MlflowException as error:
        raise RunsError(
            f"filter={condition!r}: write it as params.quant_bits = '4' "
            f"({str(error).splitlines()[0]})."
        ) from error


def param(run: Run, name: str) -> str | None:
    """Return a run's parameter, resolved if the run logged the resolved value."""
    params: Mapping[str, str] = run.data.params
    return params.get(f"resolved.{name}", params.get(name))


def listed(run: Run, name: str) -> list[str]:
    """Return the items of a run's parameter that is a list."""
    return [item.strip() for item in (param(run, name) or "").split(",") if item]


def row_of(run: Run) -> dict[str, Any]:
    data, info = run.data, run.info
    started = datetime.fromtimestamp(info.start_time / 1000, UTC)
    names = ("model", "method", *COUNTS, *FLAGS, *NUMBERS, *WORDS)
    row: dict[str, Any] = {name: param(run, name) for name in names}
    row |= {column: data.tags.get(tag) for column, tag in TAGS.items()}
    row |= {
        TEXT: _text(run),
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
    # The store groups some metrics by a slash, as in `perplexity/sotu`.
    return row | {
        name.removeprefix("work/").replace("/", ".", 1): value
        for name, value in data.metrics.items()
    }


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
            f"{file} is not a result file: {type(error).__name__}: {error}. It must be an object "
            f"with model, method, {', '.join(('seed', *SIZES, *ALWAYS))} and downstream. "
            "`replicate` may be left out for 1."
        ) from error
    kind = "baseline" if row["method"] == UNQUANTIZED else "cell"
    known = {"kind": kind, "status": "FINISHED", "run_id": str(file), "error": ""}
    return row | known | {"source_run": values.get("source_run")}


def tidy(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Give every column its type; a word where a number belongs (`auto`) becomes NA."""
    words = ("model", "method", *ABOUT, *WORDS, *TAGS, TEXT)
    known = ("model", "method", *COUNTS, *ABOUT, *WORDS, *TAGS, TEXT, *FLAGS, *NUMBERS)
    table = pd.DataFrame(list(rows))
    metrics = sorted(({str(c) for c in table.columns} | set(ALWAYS)) - set(known))
    table = table.reindex(columns=[*known, *metrics])
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


def load_suite(suite_run_id: str, *, allow_failed: bool = False) -> pd.DataFrame:
    """Read the runs of a suite: one row per cell, and per model one with method `unquantized`.

    Columns: model, method, seed, replicate, kind (cell, baseline, control), status, error, run_id,
    suite (its run id), experiment_id, date and started (UTC), source_run, the parameters, every
    metric under its name (perplexity, …_sec in seconds, downstream.TASK.METRIC) and those of
    `mark_observations`. A cell that failed, is missing or gave no finite number has its reason in
    `error`, which is '' otherwise, and no metrics. Seeds of a method that was settled before them
    are not missing. Of a suite that gives a setting several values `model` names the setting too,
    `base_model` the model alone, and `facets` the settings that differ.

    RunsError if the suite does not exist, holds a cell twice, mixes settings, or, unless
    `allow_failed`, has a cell with an `error`.
    """
    suite = _suite(suite_run_id)
    table = with_baselines(drop_repeats(by_setting(_of_suite(suite, ""), list(_sweep(suite)))))
    return checked(table, f"suite {suite_run_id}", allow_failed=allow_failed)


def load_suites(suite_run_ids: Sequence[str], filter: str = "") -> pd.DataFrame:
    """Read the runs of several suites side by side; columns as `load_suite`.

    `model` names, and `facets` lists, the settings in which their cells differ. Of a cell's
    repeats the newest finished run is taken. filter: MLflow's search syntax. A suite is complete
    if each model and method that the filter leaves has every seed that it leaves.

    RunsError if a suite does not exist, or nothing is found.
    """
    found = [_of_suite(_suite(run_id), filter) for run_id in suite_run_ids]
    table = pd.concat(found, ignore_index=True)
    where = f"suites {', '.join(suite_run_ids)}{_with(filter)}"
    if not (table["kind"] == "cell").any():
        raise RunsError(f"{where}: no cell is found.")
    table = with_baselines(newest(by_setting(table, differing(table))))
    return checked(table, where, allow_failed=True)


def _with(filter: str) -> str:
    return f" with filter {filter!r}" if filter else ""


def _of_suite(suite: Run, filter: str) -> pd.DataFrame:
    """Read the rows of a suite, holes among them, settings in columns of their own alone."""
    condition = f"tags.mlflow.parentRunId = '{suite.info.run_id}'"
    table = _rows_of([suite.info.experiment_id], condition, filter)
    sweep = _sweep(suite)
    asked = {name: param(suite, name) or "auto" for name in COLUMNS}
    cells = filled(table[table["kind"] == "cell"], asked, sweep)
    parts = [table[table["kind"] != "cell"]]
    for values in product(*sweep.values()):
        setting = pd.Series(dict(zip(sweep, values, strict=True)), dtype=object)
        own = cells[cells[list(sweep)].eq(setting).fillna(False).all(axis=1)]
        whole = complete(drop_repeats(own), _seen(own) if filter else _grid(suite))
        for name, value in setting.items():
            whole.loc[whole["status"] == "MISSING", name] = value
        parts.append(filled(whole.assign(suite=suite.info.run_id), asked, sweep))
    found = pd.concat(parts, ignore_index=True).astype(table.dtypes.to_dict())
    # In the order in which the suite names them. Cells begin in an order of their own for each
    # seed, and workers race.
    for column in ("method", "model"):
        ranks = {name: k for k, name in enumerate(listed(suite, f"{column}s"))}
        rank = found[column].map(ranks).fillna(-1)
        found = found.loc[rank.sort_values(kind="stable").index]
    return found.reset_index(drop=True)


def _rows_of(experiments: Sequence[str], condition: str, filter: str) -> pd.DataFrame:
    """Read runs that meet both conditions; `filter` selects cells alone.

    Unquantized models and controls lack the settings that a filter names. They come with the cells
    of their suite and model.
    """

    def rows(*conditions: str) -> list[dict[str, Any]]:
        runs = search(experiments, " and ".join(one for one in conditions if one))
        return [row_of(run) for run in runs if run.data.tags.get("colazero.kind") in KINDS]

    found = rows(condition, filter)
    if filter:
        found = [row for row in found if row["kind"] == "cell"]
        own = {(row["suite"], row["model"]) for row in found}
        others = rows(condition, BESIDE)
        found += [row for row in others if (row["suite"], row["model"]) in own]
    return tidy(found)


def _sweep(suite: Run) -> dict[str, list[Any]]:
    """Return the settings of which a suite has several values: name → values."""
    swept = json.loads(suite.data.tags.get(SWEEP, "{}"))
    return {
        name: [SETTINGS[name].type(value) for value in values] for name, values in swept.items()
    }


def _grid(suite: Run) -> list[Key]:
    """Return the cells of a suite in one setting."""
    ends = json.loads(suite.data.tags.get(STOPPED, "{}"))
    return [
        (model, method, int(seed), replicate)
        for model in listed(suite, "models")
        for method in listed(suite, "methods")
        for seed in listed(suite, "seeds")[: ends.get(model, {}).get(method)]
        for replicate in range(1, 1 + int(param(suite, "replicates") or 1))
    ]


def seeds_of(suite_run_id: str) -> list[int]:
    """Return the seeds of a suite in their order; RunsError if it does not exist."""
    return [int(seed) for seed in listed(_suite(suite_run_id), "seeds")]


def named_by(*suites: str) -> dict[str, str]:
    """Return the methods that suites name as `primary` and `baseline`; the first suite counts.

    RunsError if there is no such suite.
    """
    found: dict[str, str] = {}
    for run in map(_suite, suites):
        named = {name: param(run, name) or "auto" for name in ("primary", "baseline")}
        found = {name: method for name, method in named.items() if method != "auto"} | found
    return found


def load_experiment(
    name: str | Sequence[str], filter: str = "", *, allow_failed: bool = False
) -> pd.DataFrame:
    """Read all cells of one or more experiments, of any suite; columns as `load_suites`.

    filter: MLflow's search syntax, such as `params.seq_len = '512'`. A suite is complete if, in
    each setting, each of its models and methods has every one of its seeds.

    RunsError if nothing is found, or, unless `allow_failed`, a cell has an `error`.
    """
    names = [name] if isinstance(name, str) else list(name)
    table = _rows_of([_experiment(one) for one in names], "", filter)
    where = f"experiment {', '.join(map(repr, names))}{_with(filter)}"
    if table.empty:
        raise RunsError(f"{where} holds no cell.")
    table, settings = filled(table), differing(table)
    table = by_setting(table, settings)
    suites = table[(table["kind"] == "cell") & (table["suite"] != "")].groupby(["suite", *settings])
    wanted = [key for _, own in suites for key in _seen(own)]
    return checked(complete(newest(table), wanted), where, allow_failed=allow_failed)


def _experiment(name: str) -> str:
    """Return the id of an experiment."""
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None:
        known = ", ".join(repr(e.name) for e in client.search_experiments())
        raise RunsError(f"there is no experiment {name!r}. Known: {known}.")
    return str(found.experiment_id)


def load_folder(folder: str | Path) -> pd.DataFrame:
    """Read a folder of result files (`raw_runs/*.json`, one cell each); columns as `load_suite`.

    A file holds model, method, seed, n_calibration_samples, seq_len, quant_bits, group_size,
    selection_time_sec, quant_time_sec, total_time_sec, perplexity and downstream. It does not
    say which cells share a calibration set, so each counts as an observation. If two files are the
    same work, name the run of one in the `source_run` of the other. Every model must have every
    method with every seed that occurs. RunsError as for `load_suite`.
    """
    files = sorted(Path(folder).glob("*.json"))
    table = by_setting(tidy(map(result_row, files)), [])
    table = complete(table, _seen(table[table["kind"] == "cell"]))
    return checked(table, f"folder {folder}", allow_failed=False)


def latest_suite(experiments: Sequence[str]) -> str:
    """Return the newest suite in the experiments of these ids; RunsError if there is none."""
    for run in search(experiments, SUITE, "DESC"):
        return str(run.info.run_id)
    raise RunsError(
        "this experiment holds no suite. Run one first (python -m entrypoints.suite), or name what "
        "to read with suite=RUN_ID or experiment=NAME."
    )


def suites_like(experiments: Sequence[str], model: str, settings: Mapping[str, str]) -> list[str]:
    """Return the 20 newest finished suites that hold a model in these settings, the newest first.

    settings: parameter -> value as a suite logs it; one that a suite did not log counts as equal.
    """
    done = f"{SUITE} and attributes.status = 'FINISHED'"
    return [
        str(run.info.run_id)
        for run in search(experiments, done, "DESC")
        if model in listed(run, "models")
        and all(param(run, name) in (None, value) for name, value in settings.items())
    ][:20]


def _suite(run_id: str) -> Run:
    """Return the run of a suite; RunsError if there is none of this id."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise RunsError(
            f"suite={run_id!r}: {str(error).splitlines()[0].rstrip('.')} in this tracking store. A "
            "suite prints its run id when it begins."
        ) from error
    missing = [n for n in ("models", "methods", "seeds") if not listed(run, n)]
    if run.data.tags.get("colazero.kind") != "suite" or missing:
        kind = run.data.tags.get("colazero.kind", "unknown")
        lacks = f", without the parameters {', '.join(missing)}" if missing else ""
        raise RunsError(f"suite={run_id!r} is not a suite but a run of kind {kind!r}{lacks}.")
    return run


def _seen(cells: pd.DataFrame) -> list[Key]:
    """Return the product of the models, methods, seeds and replicates that occur."""
    occur = (cells[name].dropna().unique() for name in CELL)
    return [(m, n, int(seed), int(replicate)) for m, n, seed, replicate in product(*occur)]
