"""Finds what may be removed: models, records, open runs of dead processes, the cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from colazero import environment
from colazero.errors import UserError, without_credentials
from colazero.store import claims, client, publish


@dataclass(frozen=True)
class Item:
    """Something that may go: what it is, its bytes, and why it must stay, if it must."""

    what: str
    name: str
    size: int
    remove: Callable[[], object]
    keep: str = ""


def experiments() -> list[str]:
    """Return the ids of the experiments that are looked through; UserError if none is there.

    The one that the environment names, as `mlflow run --experiment-name` does, else our own two.
    """
    by_id, name, service = (
        environment.experiment_id(),
        environment.experiment_name(),
        MlflowClient(),
    )
    if by_id:
        return client.homes(by_id)
    names = [name] if name else client.HOMES
    found = [service.get_experiment_by_name(one) for one in names]
    there = [str(e.experiment_id) for e in found if e and e.lifecycle_stage == "active"]
    if not there:
        raise UserError(
            f"the tracking store has no experiment {' or '.join(names)}. "
            "Set MLFLOW_EXPERIMENT_NAME to one that it has."
        )
    return there


def models_of(suites: Sequence[str]) -> Iterator[Item]:
    """Yield the models of the cells of suites, in the store or in a folder of this machine.

    One of a cell whose results runs outside these suites have taken over must stay.
    """
    for suite_id in suites:
        suite = client.find_run(suite_id)
        if suite is None or suite.data.tags.get("colazero.kind") != "suite":
            raise UserError(f"suite={suite_id!r} is no suite's run in this tracking store.")
    for run in (run for suite_id in suites for run in client.children(suite_id)):
        if publish.FREED in run.data.tags:
            continue
        keep = _taken_over(run.info.run_id, run.info.experiment_id, suites)
        for output in run.outputs.model_outputs if run.outputs else []:
            model = MlflowClient().get_logged_model(output.model_id)
            remove = partial(_free, model, run.info.run_id)
            name = f"{run.info.run_name}: {model.model_id}"
            yield Item("models", name, _size(model), remove, keep)
        kept = Path(run.data.tags.get("colazero.checkpoint_path", ""))
        if kept.name and kept.is_dir() and "colazero.source_run" not in run.data.tags:
            remove = partial(_free_folder, kept, run.info.run_id)
            yield Item("models", f"{run.info.run_name}: {kept}", size_of(kept), remove, keep)


def _taken_over(run_id: str, experiment: str, suites: Sequence[str]) -> str:
    """Say which run outside the suites, none where it was deleted, has a run's results, if any."""
    where = experiments()
    where = [*where, *({experiment} - set(where))]
    for other in client.search(where, tags={"colazero.source_run": run_id}):
        parent = other.data.tags.get("mlflow.parentRunId", "none")
        if parent not in suites:
            way = "delete that run first"
            if parent != "none" and suites:
                way = f"name both: --suite={','.join([*suites, parent])}"
            taker = f"run {other.info.run_id} (suite {parent})"
            return f"{taker} has taken its results over; to remove it {way}"
    return ""


def kept_in_store(*, orphans: bool) -> Iterator[Item]:
    """Yield the models of runs that were deleted, which `mlflow gc` leaves where they are.

    Those of runs that are there stay, and are yielded too unless `orphans` alone are wanted.
    """
    service, token = MlflowClient(), None
    while True:
        page = service.search_logged_models(experiments(), page_token=token)
        for model in page:
            if model.model_type != "gptq":
                continue
            run = client.find_run(model.source_run_id) if model.source_run_id else None
            if run is None or run.info.lifecycle_stage == "deleted":
                name = f"of a run that was deleted: {model.name} {model.model_id}"
                of = model.source_run_id
                keep = _taken_over(of, model.experiment_id, []) if of else ""
                yield Item("models", name, _size(model), partial(_free, model, None), keep)
            elif not orphans:
                suite = run.data.tags.get("mlflow.parentRunId")
                way = f"--suite={suite}" if suite else "once its run is deleted"
                name = f"{run.info.run_name}: {model.model_id}"
                keep = f"to remove it: --what=models {way} --do=remove"
                yield Item("models", name, _size(model), partial(_free, model, None), keep)
        token = page.token
        if not token:
            return


def _free(model: LoggedModel, run_id: str | None) -> None:
    """Remove a model's files and then the model; its run keeps its numbers, and is still reused."""
    service = MlflowClient()
    if run_id is not None:
        service.set_tag(run_id, publish.FREED, time.strftime("%Y-%m-%d"))
    files = get_artifact_repository(model.artifact_location)
    files.delete_artifacts()  # type: ignore[no-untyped-call]
    service.delete_logged_model(model.model_id)


def _free_folder(folder: Path, run_id: str) -> None:
    MlflowClient().set_tag(run_id, publish.FREED, time.strftime("%Y-%m-%d"))
    shutil.rmtree(folder)


def _size(model: LoggedModel) -> int:
    """Return the bytes of a model's files."""
    service, waiting, size = MlflowClient(), [""], 0
    while waiting:
        for file in service.list_logged_model_artifacts(model.model_id, waiting.pop() or None):
            if file.is_dir:
                waiting.append(file.path)
            else:
                size += file.file_size or 0
    return size


def stale_records(*, send: bool = False) -> Iterator[Item]:
    """Yield the records in the cache; one whose process lives must stay.

    `send`: instead of removing it, `remove` logs a record that is whole on this store.
    """
    store = without_credentials(mlflow.get_tracking_uri())
    for folder in sorted(publish.records_folder().glob("*")):
        record = publish.read_record(folder.name)
        if record is None:
            yield Item("records", f"{folder}: nothing to be read", size_of(folder), _rm(folder))
            continue
        whole = "results that no store has yet" if record.whole() else "not whole"
        name = f"{folder} of {record.model.get('name', 'a run')} for {record.store}: {whole}"
        keep = "its process is at work" if claims.owner_alive(record.owner) else ""
        remove: Callable[[], object] = _rm(folder)
        if send:
            here = record.store == store and record.whole()
            keep = keep or ("" if here else "it is not whole, or for another store")
            remove = partial(publish.settle, record.run_id)
        yield Item("records", name, size_of(folder), remove, keep)


def left_running() -> Iterator[Item]:
    """Yield open runs whose process is gone; to remove one is to end it as KILLED."""
    dead = {run.info.run_id: run for one in experiments() for run in claims.the_dead(one)}
    for run_id, run in dead.items():
        end = partial(claims.end, run_id, "KILLED", "its process was gone when it was cleaned up")
        yield Item("running", f"{run.info.run_name} {run_id}: {run.info.status}", 0, end)


def cached() -> Iterator[Item]:
    """Yield the parts of the cache but records; none may go while a run is at work."""
    busy = any(claims.owner_alive(record.owner) for record in publish.left_behind())
    keep = "a run is at work" if busy else ""
    cache = environment.cache_dir()
    for part in sorted(cache.glob("*")):
        if part != publish.records_folder():
            yield Item("cache", str(part), size_of(part), _rm(part), keep)


def _rm(place: Path) -> Callable[[], object]:
    return partial(shutil.rmtree, place) if place.is_dir() else place.unlink


def size_of(place: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
