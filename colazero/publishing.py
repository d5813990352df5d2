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

from colazero import records, runs
from colazero.records import Record

log = logging.getLogger(__name__)


def publish(record: Record) -> None:
    """Send a sealed record and end its run.

    What arrived at an earlier try is not doubled: parameters, tags and artifacts have one place
    each, metrics carry their time, and a model is looked for before it is made.
    """
    client = MlflowClient()
    run = client.get_run(record.run_id)
    send_values(record, run, _send_model(record, run))
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
    metrics = [Metric(*metric, step=0, model_id=model_id) for metric in record.metrics]
    tags = [RunTag(name, value) for name, value in record.tags.items()]
    client = MlflowClient()
    client.log_batch(record.run_id, metrics, params, tags)
    if record.datasets:
        client.log_inputs(record.run_id, datasets=[_dataset(**d) for d in record.datasets])


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
            name=record.model["name"],
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
    """Tell whether a finished run's files are all in the store, each in its size."""
    if "colazero.manifest" not in run.data.tags:
        return True
    client = MlflowClient()
    try:
        manifest = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/manifest.json"))
        there: dict[str, int | None] = {}
        folders = {"", *(name.rpartition("/")[0] for name in manifest)}
        for folder in sorted(f.removeprefix("artifacts").strip("/") for f in folders):
            if folder != "model" and not folder.startswith("model/"):
                listed = client.list_artifacts(run.info.run_id, folder)
                there |= {f"artifacts/{file.path}": file.file_size for file in listed}
        for output in run.outputs.model_outputs if run.outputs else []:
            listed = client.list_logged_model_artifacts(output.model_id)
            there |= {f"model/{file.path}": file.file_size for file in listed}
    except (MlflowException, OSError, ValueError) as error:
        log.warning("run %s is not reused, its files cannot be read: %s", run.info.run_id, error)
        return False
    damaged = sorted(name for name, (size, _) in manifest.items() if there.get(name) != size)
    if damaged:
        log.warning("run %s is not reused, files are damaged: %s", run.info.run_id, damaged)
    return not damaged


def publish_left_behind(run_id: str) -> Record | None:
    """Send the record that a worker left sealed when it was lost, and return it if there is one."""
    record = records.read(run_id)
    if record is None or not record.whole():
        return None
    publish(record)
    record.discard()
    return record


def recover(experiment: str) -> None:
    """Put right what processes left that are gone: send what they had sealed, end their runs."""
    store = mlflow.get_tracking_uri()
    for record in records.left_behind():
        if record.store != store or runs.owner_alive(record.owner) is not False:
            continue
        try:
            if publish_left_behind(record.run_id):
                log.info("results of run %s, left on disk, are now logged", record.run_id)
            else:
                record.discard()
        except MlflowException as error:
            log.warning("results in %s cannot be logged: %s", record.folder, error)
    runs.bury_the_dead(experiment)
