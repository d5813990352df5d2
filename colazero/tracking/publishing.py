"""Sending sealed records to the tracking store: again if need be, and never twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero.errors import first_line, without_credentials
from colazero.tracking import names, records, runs
from colazero.tracking.records import Record

log = logging.getLogger(__name__)

DATASET = ("dataset_name", "dataset_digest")
FREED = "colazero.model_freed"
"""The tag of a run whose model was removed to make room."""
_warned_of: set[str] = set()
"""Runs whose damage this process has told: each is looked at several times."""


def publish(record: Record) -> None:
    """Send a sealed record and end its run.

    What arrived at an earlier try is not doubled: parameters, tags and artifacts have one place
    each, metrics carry their time, and a model is looked for before it is made.
    """
    client = MlflowClient()
    run = client.get_run(record.run_id)
    send_values(record, run, _send_model(record, run))
    if record.status == "FINISHED" and "colazero.error" in run.data.tags:  # of an earlier attempt
        client.delete_tag(record.run_id, "colazero.error")
    if (record.folder / "artifacts").is_dir():
        client.log_artifacts(record.run_id, str(record.folder / "artifacts"))
    client.set_terminated(record.run_id, record.status)


def send_values(record: Record, run: Run, model_id: str | None = None) -> None:
    """Send a record's parameters, tags, metrics and datasets.

    `mlflow run` has logged the strings it was given before we start, and MLflow never changes a
    logged parameter: where `seed=auto` stands already, the value goes to `resolved.seed`.
    """
    there: Mapping[str, str] = run.data.params
    params = [
        Param(name if there.get(name, value) == value else f"resolved.{name}", value)
        for name, value in record.params.items()
    ]
    on = {name: dict(zip(DATASET, pair, strict=True)) for name, pair in record.measured_on.items()}
    metrics = [
        Metric(name, value, when, step=0, model_id=model_id, **on.get(name, {}))
        for name, value, when in record.metrics
    ]
    tags = [RunTag(name, value) for name, value in record.tags.items()]
    client = MlflowClient()
    client.log_batch(record.run_id, metrics, params, tags)
    if record.datasets:
        client.log_inputs(record.run_id, datasets=[_dataset(**d) for d in record.datasets])


def leave_reason(record: Record, reason: str) -> None:
    """End a run as FAILED whose results are not in the store, with the reason and the numbers."""
    client, shown = MlflowClient(), without_credentials(reason)[:4000]
    try:
        client.set_tag(record.run_id, "colazero.error", shown)
        send_values(record, client.get_run(record.run_id))
        client.set_terminated(record.run_id, "FAILED")
    except (MlflowException, OSError) as error:
        log.warning("run %s lacks its numbers: %s", record.run_id, first_line(error))


def _dataset(name: str, digest: str, context: str, profile: str) -> DatasetInput:
    source = json.dumps({"corpus": name})
    dataset = Dataset(name, digest, "colazero", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _send_model(record: Record, run: Run) -> str | None:
    if not record.model:
        return None
    client = MlflowClient()
    experiment = run.info.experiment_id
    there = client.search_logged_models([experiment], f"source_run_id = '{record.run_id}'")
    model_id = next((m.model_id for m in there if str(m.status) == "READY"), None)
    if model_id is None:
        for half in there:
            client.delete_logged_model(half.model_id)
        model_id = client.create_logged_model(
            experiment,
            name=names.of_model(record.model["name"]),
            source_run_id=record.run_id,
            model_type="gptq",
            tags={"base_model": record.model["base"]},
        ).model_id
        client.log_model_artifacts(model_id, str(record.folder / "model"))
        client.finalize_logged_model(model_id, "READY")
    outputs: list[Any] = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        client.log_outputs(record.run_id, [LoggedModelOutput(model_id, step=0)])
    return str(model_id)


def intact(run: Run) -> bool:
    """Tell whether a finished run's files are all in the store, each in its size.

    Raises what asking again later may cure: a store that is away has damaged nothing.
    """
    if "colazero.manifest" not in run.data.tags:
        return True
    try:
        damaged = _damaged(run)
    except FileNotFoundError as error:
        damaged = [str(error)]
    except MlflowException as error:
        if error.error_code not in runs.PERMANENT:
            raise
        damaged = [first_line(error)]
    if damaged and run.info.run_id not in _warned_of:
        _warned_of.add(run.info.run_id)
        where = without_credentials(run.info.artifact_uri)
        log.warning(
            *("run %s is not reused, files are damaged or gone: %s (looked in %s)",),
            *(run.info.run_id, ", ".join(damaged), where),
        )
    return not damaged


def _damaged(run: Run) -> list[str]:
    client = MlflowClient()
    there = {f.path: f.file_size for f in client.list_artifacts(run.info.run_id)}
    if "manifest.json" not in there:  # to load it would raise what an outage does
        return ["manifest.json"]
    try:
        manifest = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/manifest.json"))
    except json.JSONDecodeError:
        return ["manifest.json"]
    folders = {name.rpartition("/")[0] for name in manifest if name.startswith("artifacts/")}
    for folder in sorted(folders - {"artifacts"}):
        listed = client.list_artifacts(run.info.run_id, folder.removeprefix("artifacts/"))
        there |= {file.path: file.file_size for file in listed}
    there = {f"artifacts/{path}": size for path, size in there.items()}
    outputs = run.outputs.model_outputs if run.outputs and FREED not in run.data.tags else []
    for output in outputs:
        listed = client.list_logged_model_artifacts(output.model_id)
        there |= {f"model/{file.path}": file.file_size for file in listed}
    if FREED in run.data.tags:  # its model was given up, its numbers are good
        manifest = {name: v for name, v in manifest.items() if not name.startswith("model/")}
    return sorted(name for name, (size, _) in manifest.items() if there.get(name) != size)


def settle(run_id: str) -> Run | None:
    """Return a run that is over: FINISHED, or now that the record is sent that it had sealed.

    None if it must be done. A FINISHED run takes nothing more: a record that there is of it, from
    an attempt whose sending nobody saw the end of, is dropped.
    """
    run = MlflowClient().get_run(run_id)
    over = run.info.status == "FINISHED"
    record = records.read(run_id)
    if record is not None:
        if not over and record.whole():
            publish(record)
            run, over = MlflowClient().get_run(run_id), True
        record.discard()
    return run if over else None


def recover(experiment: str) -> None:
    """Put right what processes left that are gone: send what they had sealed, end their runs."""
    store = without_credentials(mlflow.get_tracking_uri())
    for record in records.left_behind():
        if record.store != store or runs.owner_alive(record.owner):
            continue
        try:
            if runs.alive(MlflowClient().get_run(record.run_id)):  # on another machine, or again
                continue
            if settle(record.run_id):
                log.info("results of run %s, left on disk, are now logged", record.run_id)
        except (MlflowException, OSError) as error:
            reason = first_line(error)
            log.warning("results in %s cannot be logged now: %s", record.folder, reason)
    runs.patiently(runs.bury_the_dead, experiment)
