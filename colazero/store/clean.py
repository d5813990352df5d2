"""Find what may be removed: models, records, open runs of ended processes, the cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from colazero import environment
from colazero.errors import UserError, without_credentials
from colazero.store import claims, client, publish


@dataclass(frozen=True)
class Item:
    """Something that may be removed: its bytes, the suite it belongs to, why it must stay."""

    what: str
    name: str
    size: int
    remove: Callable[[], object]
    keep: str = ""
    suite: str = ""


def experiments() -> list[str]:
    """Return the ids of the experiments to search; UserError if the store has none of them.

    The environment names one, as `mlflow run --experiment-name` does; else it is our own two.
    """
    by_id, name = environment.experiment_id(), environment.experiment_name()
    if by_id:
        return client.homes(by_id)
    names = [name] if name else client.HOMES
    active = client.active_experiments(names)
    if not active:
        raise UserError(
            f"the tracking store has no experiment {' or '.join(names)}. "
            "Set MLFLOW_EXPERIMENT_NAME to one that it has."
        )
    return active


class Takers:
    """Which suites and single runs took over the results of which runs.

    Suites that were killed or failed do not count: the same command takes the results over again.
    """

    def __init__(self, experiments: Sequence[str]) -> None:
        self._of: dict[str, dict[str, bool]] = {}  # source run → suite or run → is it a suite
        condition = f"tags.`{client.SOURCE}` LIKE '%'"
        status = cache(lambda run_id: getattr(client.find_run(run_id), "info", None))
        for run in client.paged(MlflowClient().search_runs, list(experiments), condition):
            parent = run.data.tags.get(client.PARENT)
            info = status(parent) if parent else run.info
            if info and info.status in ("FINISHED", *claims.OPEN):
                takers = self._of.setdefault(run.data.tags[client.SOURCE], {})
                takers[parent or run.info.run_id] = parent is not None

    def outside(self, run_id: str, suites: Sequence[str]) -> str:
        """Return why a run's model must stay, if others than these suites use its results."""
        others = {taker: s for taker, s in self._of.get(run_id, {}).items() if taker not in suites}
        if not others:
            return ""
        named = [f"suite {taker}" if suite else f"run {taker}" for taker, suite in others.items()]
        return f"its results are also those of {', '.join(named)}"

    def closure(self, suites: Sequence[str]) -> list[str]:
        """Return these suites and all that must be named with them to remove their models."""
        named = list(suites)
        for suite in named:  # grows
            for run in client.children(suite):
                takers = self._of.get(run.info.run_id, {})
                named += [taker for taker, is_suite in takers.items() if is_suite]
                named[:] = dict.fromkeys(named)
        return named


def models_of(suites: Sequence[str]) -> Iterator[Item]:
    """Yield the models of the cells of suites, in the store or in a folder of this machine.

    A model whose results belong to a run outside these suites must stay.
    """
    for suite_id in suites:
        suite = client.find_run(suite_id)
        if suite is None or suite.data.tags.get(client.KIND) != "suite":
            raise UserError(f"suite={suite_id!r} is not a suite's run in this tracking store.")
    if not any(suites):
        return
    takers = takers_of(suites)
    for suite_id in suites:
        for run in client.children(suite_id):
            if client.FREED not in run.data.tags:
                keep = takers.outside(run.info.run_id, suites)
                yield from _models_of_run(run, keep, suite_id)


def takers_of(suites: Sequence[str]) -> Takers:
    """Return the takers in the experiments of these suites and in our own."""
    where = dict.fromkeys([*experiments(), *map(client.experiment_of, suites)])
    return Takers(list(where))


def _models_of_run(run: Run, keep: str, suite: str) -> Iterator[Item]:
    for output in run.outputs.model_outputs if run.outputs else []:
        yield _model_of(run, MlflowClient().get_logged_model(output.model_id), keep, suite)
    kept = Path(run.data.tags.get(client.CHECKPOINT_PATH, ""))
    if kept.name and kept.is_dir() and client.SOURCE not in run.data.tags:
        remove = partial(_free, kept, run.info.run_id)
        name = f"{run.info.run_name}: {kept}"
        yield Item("models", name, size_of(kept), remove, keep, suite)


def _model_of(run: Run, model: LoggedModel, keep: str, suite: str) -> Item:
    name = f"{run.info.run_name}: {model.model_id}"
    remove = partial(_free, model, run.info.run_id)
    return Item("models", name, _size(model), remove, keep, suite)


def kept_in_store(*, orphans: bool) -> Iterator[Item]:
    """Yield all models: those of deleted runs, which `mlflow gc` leaves, may be removed.

    orphans: only those of deleted runs.
    """
    takers = Takers(experiments())
    for model in client.paged(MlflowClient().search_logged_models, experiments()):
        if model.model_type != "gptq":
            continue
        run_id = model.source_run_id or ""
        run = client.find_run(run_id)
        if run is None or run.info.lifecycle_stage == "deleted":
            name = f"of a deleted run: {model.name} {model.model_id}"
            keep = takers.outside(run_id, [])
            yield Item("models", name, _size(model), partial(_free, model, None), keep)
        elif not orphans:
            suite = run.data.tags.get(client.PARENT, "")
            yield _model_of(
                run, model, "name its suite" if suite else "delete its run first", suite
            )


def _free(model: LoggedModel | Path, run_id: str | None) -> None:
    """Remove a model's files, then the model; its run keeps its numbers and is still reused."""
    if run_id is not None:
        MlflowClient().set_tag(run_id, client.FREED, time.strftime("%Y-%m-%d"))
    if isinstance(model, Path):
        shutil.rmtree(model)
        return
    files = get_artifact_repository(model.artifact_location)
    files.delete_artifacts()  # type: ignore[no-untyped-call]
    MlflowClient().delete_logged_model(model.model_id)


def _size(model: LoggedModel) -> int:
    """Return the bytes of a model's files."""
    folders, size = [""], 0
    for folder in folders:  # grows
        for file in MlflowClient().list_logged_model_artifacts(model.model_id, folder or None):
            if file.is_dir:
                folders.append(file.path)
            else:
                size += file.file_size or 0
    return size


def stale_records(*, send: bool = False) -> Iterator[Item]:
    """Yield the records in the cache; those of running processes must stay.

    With `send`, `remove` logs a whole record to this store instead.
    """
    store = without_credentials(mlflow.get_tracking_uri())
    for folder in sorted(publish.records_folder().glob("*")):
        record = publish.read_record(folder.name)
        if record is None:
            yield Item("records", f"{folder}: unreadable", size_of(folder), _rm(folder))
            continue
        state = "results that no store has yet" if record.whole() else "not whole"
        name = f"{folder} of {record.model.get('name', 'a run')} for {record.store}: {state}"
        keep = "its process is at work" if claims.owner_alive(record.owner) else ""
        remove: Callable[[], object] = _rm(folder)
        if send:
            here = record.store == store and record.whole()
            keep = keep or ("" if here else "it is not whole, or for another store")
            remove = partial(publish.settle, record.run_id)
        yield Item("records", name, size_of(folder), remove, keep)


def left_running() -> Iterator[Item]:
    """Yield open runs whose process has ended; removing one marks it as KILLED.

    They include runs whose `mlflow run` has not started a program yet: it opens its run again.
    """
    dead = {r.info.run_id: r for each in experiments() for r in claims.abandoned(each, 0)}
    for run_id, run in dead.items():
        remove = partial(claims.end_as_killed, run, "when it was cleaned up")
        yield Item("running", f"{run.info.run_name} {run_id}: {run.info.status}", 0, remove)


def cached() -> Iterator[Item]:
    """Yield the parts of the cache except records; none may be removed during a run."""
    busy = any(claims.owner_alive(record.owner) for record in publish.left_behind())
    keep = "a run is using it" if busy else ""
    for part in sorted(environment.cache_dir().glob("*")):
        if part != publish.records_folder():
            yield Item("cache", str(part), size_of(part), _rm(part), keep)


def _rm(place: Path) -> Callable[[], object]:
    return partial(shutil.rmtree, place) if place.is_dir() else place.unlink


def size_of(place: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files if file.is_file())
