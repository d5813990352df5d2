"""Run names, store addresses, searches: what the other files need of MLflow's client."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from colazero import environment
from colazero.errors import first_line
from colazero.types import label

log = logging.getLogger(__name__)

SERVERS = ("http", "https", "databricks")


DATABASE_SERVERS = ("postgresql", "mysql", "mssql")


def store_kind(uri: str) -> str:
    """Return `postgresql` of `postgresql+psycopg://…`, `http` of `http://…`."""
    return uri.partition(":")[0].partition("+")[0].lower()


def in_memory(uri: str) -> bool:
    """Tell whether a store is a SQLite database that no other process sees."""
    return store_kind(uri) == "sqlite" and _database(uri) in (None, "", ":memory:")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for another store, and for one in memory.

    One that SQLite is to read as a URI of its own (`file:…?uri=true`) counts as another.
    """
    name = _database(uri) if store_kind(uri) == "sqlite" else None
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name)


def sqlite_uri(file: Path) -> str:
    """Return the URI of a SQLite file."""
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def local_folder(uri: str) -> Path | None:
    """Return the folder that an artifact URI names; None if it is no folder of this machine."""
    if not uri.startswith(("/", "file:/")):
        return None
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def _database(uri: str) -> str | None:
    try:
        return make_url(uri).database
    except ArgumentError:
        return None


LONGEST = 120
"""Characters. File systems take 255 bytes, databases 250 characters of a metric's name; what stands
before and behind a name needs room as well."""


LONGEST_RUN = 250
"""The length of the column in which MLflow's databases keep a run's name."""


LONGEST_DATASET = 250
"""Half of what MLflow takes."""


BETWEEN = "·"
"""Stands between the parts of a run's name, in none of which it is likely to be."""


def run_name(*parts: str) -> str:
    """Return a run's name of its parts: `cola_zero·seed42·opt-6.7b`.

    In the names of models and files each sign becomes `__`.
    """
    name = BETWEEN.join(parts)
    return name if len(name) <= LONGEST_RUN else _with_digest(name[:LONGEST], name)


def model_name(name: str) -> str:
    """Return a name for a logged model, in which MLflow takes no dot, colon, slash or quote."""
    return _of_parts(name, "-")


def file_name(name: str) -> str:
    """Return a name for a file or a folder."""
    return _of_parts(name, ".-")


def result_name(name: str) -> str:
    """Return a downstream result's name (`arc_easy.acc`) as a part of a metric's."""
    return _safe(name, ".-")


def corpus_name(name: str) -> str:
    """Return a corpus's name as a part of a metric's and a file's name: `sotu`, `mine-1a2b3c4d`.

    A corpus of the user's own is called by the stem of its file and a digest of all of its name,
    so that `a/text.txt` and `b/text.txt` are two.
    """
    if not name.startswith("file:"):
        return _safe(name, ".-")
    stem = PurePosixPath(name.removeprefix("file:").rstrip("/")).stem
    return _with_digest(_mended(stem, "-"), name)


def dataset_name(name: str) -> str:
    """Return a name for a dataset, in which every character may stand."""
    return name if len(name) <= LONGEST_DATASET else _with_digest(name[:LONGEST], name)


def _of_parts(name: str, signs: str) -> str:
    """As `_safe`, of `joined` parts: a digest if they could not be told apart any more."""
    plain = name.replace(BETWEEN, "__")
    mended = _mended(plain, signs)
    told_apart = plain.replace("__", BETWEEN) == name
    return mended if mended == plain and told_apart and name else _with_digest(mended, name)


def _safe(name: str, signs: str) -> str:
    mended = _mended(name, signs)
    return name if mended == name and name else _with_digest(mended, name)


def _mended(name: str, signs: str) -> str:
    """Return a name with `_` in the place of all but ASCII letters, digits, `_` and `signs`."""
    return re.sub(rf"[^A-Za-z0-9_{re.escape(signs)}]|^\.+", "_", name)[:LONGEST]


def _with_digest(mended: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{mended or 'unnamed'}-{digest}"


EXPERIMENT = "colazero"


HOMES = (EXPERIMENT, "Default")
"""Where runs are if nobody names an experiment: those of `python -m entrypoints.NAME` in the first,
those of `mlflow run`, which makes its run before any of our code is asked, in MLflow's own."""


def homes(experiment: str) -> list[str]:
    """Return the ids of the experiments in which work of `experiment` may be done already.

    Of the two in which runs are that were given none each counts for the other as well.
    """
    return list(_homes(mlflow.get_tracking_uri(), experiment))


@lru_cache
def _homes(_store: str, experiment: str) -> tuple[str, ...]:
    client = MlflowClient()
    if client.get_experiment(experiment).name not in HOMES:
        return (experiment,)
    found = [client.get_experiment_by_name(name) for name in HOMES]
    there = [str(e.experiment_id) for e in found if e and e.lifecycle_stage == "active"]
    return tuple(dict.fromkeys([experiment, *there]))


def search(
    experiments: list[str],
    *,
    status: str = "",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Yield all runs that have the status, tags and parameters, those that began last first."""
    tags, params = tags or {}, params or {}
    clauses = [_clause(f"tags.`{name}`", value) for name, value in tags.items()]
    clauses += [_clause(f"params.`{name}`", value) for name, value in params.items()]
    if status:
        clauses.append(_clause("attributes.status", status))
    condition = " and ".join(filter(None, clauses))
    client, token = MlflowClient(), None
    while True:
        page = client.search_runs(experiments, condition, max_results=1000, page_token=token)
        for run in page:  # some databases take `A` for `a`
            if tags.items() <= run.data.tags.items() and params.items() <= run.data.params.items():
                yield run
        token = page.token
        if not token:
            return


def _clause(name: str, value: str) -> str:
    """Return a condition; none for a value that MLflow's grammar has no way to write.

    It knows no escapes: a value stands between the quotes that it does not hold itself. What is
    left out, or understood too widely, `search` sorts out afterwards.
    """
    quote = next((sign for sign in "'\"" if sign not in value), None)
    return f"{name} = {quote}{value}{quote}" if quote else ""


PERMANENT = (
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
    *("BAD_REQUEST", "INVALID_STATE"),
)
"""MLflow's error codes that no waiting will cure."""


REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What a file system says that no waiting will cure."""


T = TypeVar("T")


def patiently(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call, and while the store is away or refuses, call again for up to COLAZERO_PATIENCE minutes.

    `call` must do no harm when it is repeated. What the store will never take is raised at once.
    """
    patience = environment.patience()
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return call(*arguments, **named)
        except (MlflowException, OSError) as error:
            for_good = getattr(error, "error_code", "") in PERMANENT or (
                isinstance(error, OSError) and error.errno in REFUSED
            )
            if for_good or time.monotonic() > deadline:
                raise
            if pause == 1:
                log.warning(
                    "the tracking store refuses; it is asked again for %.0f minutes: %s",
                    patience / 60,
                    first_line(error),
                )
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def children(suite: str) -> list[Run]:
    """Return all runs below a suite's."""
    return list(search([experiment_of(suite)], tags={"mlflow.parentRunId": suite}))


def find_run(run_id: str) -> Run | None:
    """Return a run; None if the store has none of this id."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in PERMANENT:
            return None
        raise


def experiment_of(run_id: str) -> str:
    """Return the id of the experiment that a run is in."""
    return str(MlflowClient().get_run(run_id).info.experiment_id)


LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows what is in a file or in a database, unless it is told another port."""


def page_of(run_id: str) -> str:
    """Return the address of a run's page, in the view for machine learning.

    Without that, MLflow 3.17 opens the one for language model applications.
    """
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    uri, server = urlsplit(mlflow.get_tracking_uri()), LOCAL_PAGES
    if uri.scheme in ("http", "https"):  # nobody's name and password
        server = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path}".rstrip("/")
    return page_address(server, experiment, run_id)


def page_address(server: str, experiment: str, run_id: str) -> str:
    """Return where a server shows a run."""
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def with_settings(markdown: str, params: Mapping[str, str]) -> str:
    """Return a description with the parameters below as they were resolved.

    MLflow's own list of them shows what `mlflow run` was given, `auto` for most, in their place.
    """
    if not params:
        return markdown
    rows = [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in params.items()]
    return "\n".join([markdown, "", "| parameter | as resolved |", "| --- | --- |", *rows]).strip()


def where(run_id: str) -> str:
    """Say where a run can be looked at, and what must be running for that."""
    page = page_of(run_id)
    return f"page: {page}" + (" (while mlflow ui runs)" if page.startswith(LOCAL_PAGES) else "")


LOOKS = "colazero.looks"
"""The tag with the numbers of seeds at which was looked, as in `5,10`."""


STOPPED = "colazero.stopped"
"""The tag, in JSON, with the number of seeds after which a method of a model got no more."""


MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""


def log_look(
    suite: str,
    looks: Sequence[int],
    metrics: Mapping[str, float],
    stopped: Mapping[str, Mapping[str, int]],
) -> None:
    """Log a look.

    looks: numbers of seeds of all looks so far; the last is the metrics' step. stopped: model →
    method → number of seeds after which it got no more.
    """
    client, now = MlflowClient(), int(1000 * time.time())
    values = [Metric(name, value, now, looks[-1]) for name, value in metrics.items()]
    for start in range(0, len(values), MOST_METRICS):
        client.log_batch(suite, values[start : start + MOST_METRICS])
    if stopped:
        client.set_tag(suite, STOPPED, json.dumps(stopped))
    client.set_tag(suite, LOOKS, ",".join(map(str, looks)))  # last: the look is whole then


def stopped_at(suite: Run) -> dict[str, dict[str, int]]:
    """Return where methods stopped, as `log_look` was told: model → method → seeds."""
    found: dict[str, dict[str, int]] = json.loads(suite.data.tags.get(STOPPED, "{}"))
    return found


MOST_TAGS = 100
"""Tags that MLflow takes at once; of metrics it takes more."""


class Headline(Protocol):
    """What is said of one method of a model, or of two of them."""

    @property
    def model(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def numbers(self) -> Mapping[str, float]: ...
    @property
    def verdict(self) -> str: ...


def log_results(run_id: str, said: Iterable[Headline]) -> None:
    """Log numbers as `result.MODEL.METHOD.mean`, verdicts as tags `verdict.MODEL.A_vs_B`."""
    now, metrics, tags = int(1000 * time.time()), [], []
    for one in said:
        plain, bracket, setting = one.model.partition(" [")  # a path may be in the latter
        model, *methods = map(result_name, (label(plain) + bracket + setting, *one.methods))
        of = f"{model}.{'_vs_'.join(methods)}"
        metrics += [Metric(f"result.{of}.{k}", v, now, step=0) for k, v in one.numbers.items()]
        if one.verdict:
            tags.append(RunTag(f"verdict.{of}", one.verdict))
    client = MlflowClient()
    for start in range(0, max(len(metrics), len(tags)), MOST_TAGS):
        part = slice(start, start + MOST_TAGS)
        client.log_batch(run_id, metrics[part], tags=tags[part])


OVERRIDES = (
    *("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"),
    *("MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_TRUNCATE_LONG_VALUES"),
)
"""Variables of MLflow's that change whether and how values reach the store."""


def ignore_overrides() -> None:
    """Unset what would send our values elsewhere: an active model, asynchronous logging.

    MLflow adds every metric to the model that `MLFLOW_ACTIVE_MODEL_ID` or
    `mlflow.set_active_model` names, whoever's it is. Asynchronous logging hides errors.
    """
    ignored = [name for name in OVERRIDES if os.environ.pop(name, None) is not None]
    if model := mlflow.get_active_model_id():
        mlflow.clear_active_model()
        ignored.append(f"the active model {model}")
    if ignored:
        log.warning("ignored, as it changes what MLflow records: %s", ", ".join(ignored))
