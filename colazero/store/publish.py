"""Keep a run's record on disk until the store has all of it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
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

from colazero.cache import cache_dir, file_digest
from colazero.errors import UserError, first_line, without_credentials
from colazero.store import claims, client

log = logging.getLogger(__name__)

SEAL = "record.json"


@dataclass
class Record:
    """Parameters, tags, metrics ([name, value, milliseconds]), datasets and files of one run.

    `measured_on`: metric → name and digest of the dataset it was measured on. `artifacts` and
    `model` below `folder` hold the files; `model` describes the latter.
    """

    run_id: str
    store: str
    owner: str
    status: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    datasets: list[dict[str, str]] = field(default_factory=list)
    measured_on: dict[str, tuple[str, str]] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    """Digests that the caller knew when it added files, so that none is read twice."""

    @property
    def folder(self) -> Path:
        return records_folder() / self.run_id

    def begin(self) -> None:
        """Make an empty folder that says which process it belongs to."""
        self.discard()
        self.folder.mkdir(parents=True)
        self._write()

    def artifact(self, path: str, kind: str = "artifacts") -> Path:
        """Return where an artifact's file goes, or with kind `model` a file of the model."""
        target = self.folder / kind / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def add_metrics(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.metrics += [(name, float(value), now) for name, value in values.items()]

    def add_files(
        self, source: Path, path: str = "", kind: str = "artifacts", digests: Mapping[str, str] = {}
    ) -> None:
        """Add a folder's files; on the same file system they take no extra room.

        digests: known digests, by names in `source`; ignored for a file that had to be copied.
        """
        mode = (self.folder / SEAL).stat().st_mode  # the umask's
        for file in sorted(source.rglob("*")):
            name = str(file.relative_to(source))
            if file.is_file():
                with suppress(PermissionError):  # safetensors writes files for their owner only
                    file.chmod(mode)
                target = self.artifact(str(Path(path, name)), kind)
                if link_or_copy(file, target) and name in digests:
                    self.known[str(target.relative_to(self.folder))] = digests[name]

    def seal(self, status: str) -> None:
        """Write everything down, with the files' digests; from here on the record counts."""
        self.status = status
        manifest = self.artifact("manifest.json")
        manifest.unlink(missing_ok=True)
        self.files = {}
        for kind in ("artifacts", "model"):
            for file in sorted((self.folder / kind).rglob("*")):
                if file.is_file():
                    name = str(file.relative_to(self.folder))
                    digest = self.known.get(name) or file_digest(file)
                    self.files[name] = file.stat().st_size, digest
        if self.files:
            manifest.write_text(json.dumps(self.files, indent=1) + "\n")
            self.tags[client.MANIFEST] = file_digest(manifest)
        self._write()

    def whole(self) -> bool:
        """Return True if the record is sealed and its files are those that were sealed."""
        try:
            return bool(self.status) and all(
                file_digest(self.folder / name) == digest
                for name, (_, digest) in self.files.items()
            )
        except OSError:
            return False

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        draft = self.folder / f"{SEAL}.draft"
        with draft.open("w") as stream:
            json.dump(asdict(self), stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(self.folder / SEAL)


def read_record(run_id: str) -> Record | None:
    """Return a run's record, sealed or not; None if it has none."""
    try:
        values: dict[str, Any] = json.loads((records_folder() / run_id / SEAL).read_text())
        values["metrics"] = [tuple(metric) for metric in values["metrics"]]
        return Record(**values)
    except (OSError, ValueError, TypeError):
        return None


def refuse_unwritable() -> None:
    """Raise UserError, before a run is opened, if it could not write its record."""
    try:
        records_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=records_folder()):
            pass
    except OSError as error:
        raise UserError(
            f"the cache {records_folder().parent} cannot be written ({error.strerror}). Make room "
            "or give yourself the right to write there, or name another folder in COLAZERO_CACHE."
        ) from error


def left_behind() -> list[Record]:
    """Return all records in the cache."""
    folders = sorted(records_folder().glob("*"))
    return [record for folder in folders if (record := read_record(folder.name))]


def records_folder() -> Path:
    return cache_dir() / "records"


def link_or_copy(source: str | Path, target: str | Path) -> bool:
    """Hard-link a file, or copy it where that is impossible; return True for a link."""
    try:
        os.link(source, target)
        return True
    except OSError:
        shutil.copyfile(source, target)
        return False


_warned_of: set[str] = set()
"""Runs whose damage this process has reported: each is looked at several times."""


def publish(record: Record) -> None:
    """Send a sealed record and end its run.

    Sending it again doubles nothing: parameters, tags and artifacts have one place each, metrics
    carry their time, and an existing model is looked for first.
    """
    service = MlflowClient()
    run = service.get_run(record.run_id)
    send_values(record, run, _send_model(record, run))
    if record.status == "FINISHED" and client.ERROR in run.data.tags:  # of an earlier attempt
        service.delete_tag(record.run_id, client.ERROR)
    if (record.folder / "artifacts").is_dir():
        service.log_artifacts(record.run_id, str(record.folder / "artifacts"))
    service.set_terminated(record.run_id, record.status)


def send_values(record: Record, run: Run, model_id: str | None = None) -> None:
    """Send a record's parameters, tags, metrics and datasets.

    `mlflow run` logs the strings that it received before our code starts, and MLflow never changes
    a logged parameter: if `seed=auto` stands there, the value goes to `resolved.seed`. MLflow's
    pages show metrics in the order of logging: results come first.
    """
    there: Mapping[str, str] = run.data.params
    params = [
        Param(name if there.get(name, value) == value else f"resolved.{name}", value)
        for name, value in record.params.items()
    ]
    order = {name: place for place, name in enumerate((*client.FIRST, *client.SECONDS))}
    metrics = []
    for name, value, when in sorted(record.metrics, key=lambda m: order.get(m[0], len(order))):
        dataset, digest = record.measured_on.get(name, (None, None))
        stored = client.stored_metric(name)
        metrics.append(Metric(stored, value, when, 0, model_id, dataset, digest))
    tags = [RunTag(name, value) for name, value in record.tags.items()]
    service = MlflowClient()
    service.log_batch(record.run_id, metrics, params, tags)
    if record.datasets:
        service.log_inputs(record.run_id, datasets=[_dataset_input(**d) for d in record.datasets])


def leave_reason(record: Record, reason: str) -> None:
    """End a run whose files the store lacks as FAILED, with the reason and the numbers."""
    service, shown = MlflowClient(), without_credentials(reason)[:4000]
    try:
        service.set_tag(record.run_id, client.ERROR, shown)
        send_values(record, service.get_run(record.run_id))
        service.set_terminated(record.run_id, "FAILED")
    except (MlflowException, OSError) as error:
        log.warning("run %s lacks its numbers: %s", record.run_id, first_line(error))


def _dataset_input(
    name: str, digest: str, context: str, profile: str, source_type: str = "", source: str = ""
) -> DatasetInput:
    """Return a dataset; records of an earlier version name no source."""
    source = source or json.dumps({"tags": {"corpus": name}})
    dataset = Dataset(name, digest, source_type or "code", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def _send_model(record: Record, run: Run) -> str | None:
    if not record.model:
        return None
    service = MlflowClient()
    experiment = run.info.experiment_id
    there = service.search_logged_models([experiment], f"source_run_id = '{record.run_id}'")
    model_id = next((m.model_id for m in there if str(m.status) == "READY"), None)
    if model_id is None:
        for half in there:
            service.delete_logged_model(half.model_id)
        model_id = service.create_logged_model(
            experiment,
            name=client.model_name(record.model["name"]),
            source_run_id=record.run_id,
            model_type="gptq",
            tags={"base_model": record.model["base"]},
            params=record.params,
        ).model_id
        service.log_model_artifacts(model_id, str(record.folder / "model"))
        service.finalize_logged_model(model_id, "READY")
    outputs: list[Any] = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        service.log_outputs(record.run_id, [LoggedModelOutput(model_id, step=0)])
    return str(model_id)


def intact(run: Run) -> bool:
    """Return True if the store has all files of a finished run, each in its size.

    Raise if the store does not answer: the files may be intact.
    """
    if client.MANIFEST not in run.data.tags:
        return True
    try:
        damaged = _damaged(run)
    except FileNotFoundError as error:
        damaged = [str(error)]
    except MlflowException as error:
        if error.error_code not in client.PERMANENT:
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
    service = MlflowClient()
    there = {f.path: f.file_size for f in service.list_artifacts(run.info.run_id)}
    if "manifest.json" not in there:  # to load it would raise what an outage does
        return ["manifest.json"]
    try:
        manifest = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/manifest.json"))
    except json.JSONDecodeError:
        return ["manifest.json"]
    folders = {name.rpartition("/")[0] for name in manifest}
    for folder in sorted(name for name in folders if name.startswith("artifacts/")):
        listed = service.list_artifacts(run.info.run_id, folder.removeprefix("artifacts/"))
        there |= {file.path: file.file_size for file in listed}
    there = {f"artifacts/{path}": size for path, size in there.items()}
    outputs = run.outputs.model_outputs if run.outputs and client.FREED not in run.data.tags else []
    for output in outputs:
        for folder in sorted(name for name in folders if f"{name}/".startswith("model/")):
            path = folder.removeprefix("model").lstrip("/") or None
            listed = service.list_logged_model_artifacts(output.model_id, path)
            there |= {f"model/{file.path}": file.file_size for file in listed}
    if client.FREED in run.data.tags:  # its numbers are good
        manifest = {name: v for name, v in manifest.items() if not name.startswith("model/")}
    return sorted(name for name, (size, _) in manifest.items() if there.get(name) != size)


def settle(run_id: str) -> Run | None:
    """Return a run that is FINISHED, if need be after sending its sealed record; else None.

    A FINISHED run takes nothing more: a record that an interrupted sender left is dropped.
    """
    run = MlflowClient().get_run(run_id)
    over = run.info.status == "FINISHED"
    record = read_record(run_id)
    if record is not None:
        if not over and record.whole():
            publish(record)
            run, over = MlflowClient().get_run(run_id), True
        record.discard()
    return run if over else None


def recover(experiment: str) -> None:
    """Send sealed records of processes that have ended, and end their other runs."""
    store = without_credentials(mlflow.get_tracking_uri())
    for record in left_behind():
        if record.store != store or claims.owner_alive(record.owner):
            continue
        try:
            if claims.alive(MlflowClient().get_run(record.run_id)):  # on another machine, or again
                continue
            if settle(record.run_id):
                log.info("results of run %s, left on disk, are now logged", record.run_id)
        except (MlflowException, OSError) as error:
            reason = first_line(error)
            log.warning("results in %s cannot be logged now: %s", record.folder, reason)
    client.patiently(claims.end_abandoned, experiment)
