"""Names, addresses, searches and retries with MLflow's client."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from colazero import environment
from colazero.errors import first_line

log = logging.getLogger(__name__)

# --- The tags and metrics of runs. Each name that another file writes or reads stands here.

KIND = "colazero.kind"
"""suite, cell, baseline, select, quantize, evaluate, analysis or plan."""
OWNER = "colazero.owner"
ERROR = "colazero.error"
"""Why a run has no result."""
SOURCE = "colazero.source_run"
"""The run whose results this one took over."""
MANIFEST = "colazero.manifest"
"""The digest of the artifact that lists a run's files."""
FREED = "colazero.model_freed"
"""The date on which a run's model was removed to free space."""
CHECKPOINT, CHECKPOINT_PATH = "colazero.checkpoint_digest", "colazero.checkpoint_path"
HEARTBEAT = "colazero.heartbeat"
PROGRESS = "colazero.progress"
"""The progress of a suite, in JSON."""
UNBEGUN = "colazero.unbegun"
"""Marks a run that was ended because no program had begun it."""
LOOKS = "colazero.looks"
"""The numbers of seeds at which a suite was analyzed, as in `5,10`."""
STOPPED = "colazero.stopped"
"""Model → method → number of seeds after which it was stopped, in JSON."""
ENDED = "colazero.ended"
"""Marks a suite that ran all that it was going to run, before its analysis."""
NOTE, PARENT = "mlflow.note.content", "mlflow.parentRunId"

FIRST = ("perplexity", "kl_divergence", "top1_agreement", "nll_per_token")
"""Metrics that are logged first: MLflow's pages begin with them."""
SECONDS = ("selection_time_sec", "quant_time_sec", "total_time_sec")
GROUPS = (
    *("perplexity", "kl_divergence", "top1_agreement", "divergence", "downstream"),
    *("selection", "result", "look"),
)
WORK = "work"
SHOWN = {
    "orderByKey": f"metrics.`{FIRST[0]}`",  # cells then stand by themselves, not below their suite
    "orderByAsc": True,
    "selectedColumns": [
        *(f"metrics.`{name}`" for name in FIRST[:3]),
        *(f"params.`{name}`" for name in ("method", "seed", "quant_bits", "model")),
    ],
}
"""What MLflow's list of runs shows."""


def stored_metric(name: str) -> str:
    """Return a metric's name in the store, where a slash begins a group of MLflow's charts.

    `perplexity.sotu` → `perplexity/sotu`; `save_time_sec` → `work/save_time_sec`.
    """
    group, dot, rest = name.partition(".")
    if dot and group in GROUPS:
        return f"{group}/{rest}"
    return name if "/" in name or name in (*FIRST, *SECONDS) else f"{WORK}/{name}"


def metrics_of(run: Run) -> dict[str, float]:
    """Return a run's metrics by their own names, whichever version logged them."""
    values = run.data.metrics.items()
    return {name.removeprefix(f"{WORK}/").replace("/", ".", 1): value for name, value in values}


def params_of(run: Run) -> dict[str, str]:
    """Return a run's parameters; `resolved.NAME` counts where `mlflow run` had logged NAME."""
    params = sorted(run.data.params.items(), key=lambda item: item[0].startswith("resolved."))
    return {name.removeprefix("resolved."): value for name, value in params}


# --- Names that every store takes, none of which stands for two things.

LONGEST = 120
"""Characters. File systems take 255 bytes, databases 250 characters of a metric's name; other
parts of a name need room as well."""
LONGEST_RUN = 250
"""MLflow's column for a run's name, and half of what it takes for a dataset's."""
BETWEEN = "·"
"""Separates the parts of a run's name."""


def run_name(*parts: str) -> str:
    """Return a run's name of its parts: `42·cola_zero·opt-6.7b`."""
    return _cut(BETWEEN.join(parts))


def dataset_name(name: str) -> str:
    return _cut(name)


def model_name(name: str) -> str:
    """Return a name for a logged model: MLflow refuses dots, colons, slashes and quotes."""
    return _of_parts(name, "-")


def file_name(name: str) -> str:
    return _of_parts(name, ".-")


def result_name(name: str) -> str:
    """Return a downstream result's name (`arc_easy.acc`) as a part of a metric's."""
    return _safe(name, ".-")


def corpus_name(name: str) -> str:
    """Return a corpus's name as a part of a metric's and a file's: `sotu`, `mine-1a2b3c4d`.

    A file's stem gets a digest of its whole path, so that `a/text.txt` and `b/text.txt` differ.
    """
    if not name.startswith("file:"):
        return _safe(name, ".-")
    stem = PurePosixPath(name.removeprefix("file:").rstrip("/")).stem
    return _with_digest(_mended(stem, "-"), name)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_RUN else _with_digest(name[:LONGEST], name)


def _of_parts(name: str, signs: str) -> str:
    """Do as `_safe` for a run's name: `__` between its parts, a digest where that is ambiguous."""
    plain = name.replace(BETWEEN, "__")
    mended = _mended(plain, signs)
    unambiguous = plain.replace("__", BETWEEN) == name
    return mended if mended == plain and unambiguous and name else _with_digest(mended, name)


def _safe(name: str, signs: str) -> str:
    """Return a name of allowed characters; one that had to change gets a digest of what it was."""
    mended = _mended(name, signs)
    return name if mended == name and name else _with_digest(mended, name)


def _mended(name: str, signs: str) -> str:
    """Return a name with `_` in the place of all but ASCII letters, digits, `_` and `signs`."""
    return re.sub(rf"[^A-Za-z0-9_{re.escape(signs)}]|^\.+", "_", name)[:LONGEST]


def _with_digest(mended: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{mended or 'unnamed'}-{digest}"


# --- Addresses of stores, read by SQLAlchemy's and MLflow's own parsers.

SERVERS = ("http", "https", "databricks")
DATABASE_SERVERS = ("postgresql", "mysql", "mssql")


def store_kind(uri: str) -> str:
    """Return `postgresql` for `postgresql+psycopg://…`, `http` for `http://…`."""
    return uri.partition(":")[0].partition("+")[0].lower()


def in_memory(uri: str) -> bool:
    """Return True for a SQLite database that no other process sees."""
    return store_kind(uri) == "sqlite" and _database(uri) in (None, "", ":memory:")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for any other, in memory or `file:…?uri=true`."""
    name = _database(uri) if store_kind(uri) == "sqlite" else None
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name)


def sqlite_uri(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def local_folder(uri: str) -> Path | None:
    """Return the folder that an artifact URI names; None if it is not on this machine."""
    if not uri.startswith(("/", "file:/")):
        return None
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def _database(uri: str) -> str | None:
    try:
        return make_url(uri).database
    except ArgumentError:
        return None


# --- Patience and variables that change what MLflow records.

PERMANENT = (
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
    *("BAD_REQUEST", "INVALID_STATE"),
)
"""MLflow's error codes for which a retry does not help."""
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Errors of file systems for which a retry does not help."""
OVERRIDES = (
    *("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"),
    *("MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_TRUNCATE_LONG_VALUES"),
)
T = TypeVar("T")


def patiently(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call, and repeat the call for up to COLAZERO_PATIENCE minutes while the store fails.

    `call` must be safe to repeat. Errors for which a retry does not help raise at once.
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


def ignore_overrides() -> None:
    """Unset MLflow settings that change where or how values are logged.

    MLflow adds every metric to the model that `MLFLOW_ACTIVE_MODEL_ID` or
    `mlflow.set_active_model` names. Asynchronous logging hides errors.
    """
    ignored = [name for name in OVERRIDES if os.environ.pop(name, None) is not None]
    if model := mlflow.get_active_model_id():
        mlflow.clear_active_model()
        ignored.append(f"the active model {model}")
    if ignored:
        log.warning("ignored, as it changes what MLflow records: %s", ", ".join(ignored))


# --- Searches.

EXPERIMENT = "colazero"
HOMES = (EXPERIMENT, "Default")
"""Experiments of runs for which none was named: the first for `python -m entrypoints.NAME`, the
second for `mlflow run`, which creates its run before our code starts."""


def homes(experiment: str) -> list[str]:
    """Return the ids of the experiments to search: `colazero` and `Default` together."""
    return list(_homes(mlflow.get_tracking_uri(), experiment))


@lru_cache
def _homes(_store: str, experiment: str) -> tuple[str, ...]:
    if MlflowClient().get_experiment(experiment).name not in HOMES:
        return (experiment,)
    return tuple(dict.fromkeys([experiment, *active_experiments(HOMES)]))


def active_experiments(names: Iterable[str]) -> list[str]:
    """Return the ids of the experiments of these names that exist and are not deleted."""
    named = [MlflowClient().get_experiment_by_name(name) for name in names]
    return [str(e.experiment_id) for e in named if e and e.lifecycle_stage == "active"]


def search(
    experiments: list[str],
    *,
    status: str = "",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Yield all runs with this status, tags and parameters, the latest first."""
    tags, params = tags or {}, params or {}
    clauses = [_clause(f"tags.`{name}`", value) for name, value in tags.items()]
    clauses += [_clause(f"params.`{name}`", value) for name, value in params.items()]
    if status:
        clauses.append(_clause("attributes.status", status))
    condition = " and ".join(filter(None, clauses))
    for run in paged(MlflowClient().search_runs, experiments, condition, max_results=1000):
        # Some databases take `A` for `a`.
        if tags.items() <= run.data.tags.items() and params.items() <= run.data.params.items():
            yield run


def paged(call: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
    """Yield what a search of MLflow's client returns, page after page."""
    token = None
    while token != "":
        page = call(*arguments, **named, page_token=token)
        yield from page
        token = page.token or ""


def _clause(name: str, value: str) -> str:
    """Return a condition; none for a value that MLflow's grammar cannot write.

    The grammar has no escapes: a value needs quotes that it does not contain. `search` filters
    again what such a condition lets through.
    """
    quote = next((sign for sign in "'\"" if sign not in value), None)
    return f"{name} = {quote}{value}{quote}" if quote else ""


def find_run(run_id: str) -> Run | None:
    """Return a run; None if the store has none of this id."""
    if not run_id:
        return None
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in PERMANENT:
            return None
        raise


def children(suite: str) -> list[Run]:
    """Return all nested runs of a suite."""
    return list(search([experiment_of(suite)], tags={PARENT: suite}))


def experiment_of(run_id: str) -> str:
    """Return the id of the experiment that a run is in."""
    return str(MlflowClient().get_run(run_id).info.experiment_id)


# --- MLflow's pages.

LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a file or a database, unless it gets another port."""
VIEW = "colazero"
"""The shared view of an experiment that shows our columns."""


def page_address(server: str, experiment: str, run_id: str) -> str:
    """Return where a server shows a run, in the view for machine learning.

    Without that parameter, MLflow 3.17 opens its view for language model applications.
    """
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


REPORT = "analysis/report.html"
"""The artifact of an analyzed run that is read first."""


def where(run_id: str, *, analyzed: bool = False) -> str:
    """Return a line per address: a run's page, its report if it is analyzed, the list of runs."""
    uri, server = urlsplit(mlflow.get_tracking_uri()), LOCAL_PAGES
    if uri.scheme in ("http", "https"):  # without a name and a password
        server = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path}".rstrip("/")
    page = page_address(server, experiment_of(run_id), run_id)
    runs = page.partition("/runs/")[0] + "/runs?workflowType=machine_learning"
    running = " (while mlflow ui runs)" if page.startswith(LOCAL_PAGES) else ""
    lines = [f"page: {page}{running}", f"all runs: {runs}&viewStateShareKey={VIEW}"]
    if analyzed:
        lines.insert(0, f"report: {page.replace('?', f'/artifacts/{REPORT}?')}")
    return "\n".join(lines)


def describe_experiment(experiment: Experiment) -> None:
    """Give an experiment a shared view with our columns, and a description if it is ours."""
    wanted = {f"mlflow.sharedViewState.{VIEW}": json.dumps(SHOWN)}
    if NOTE not in experiment.tags and experiment.name != HOMES[1]:
        wanted[NOTE] = ABOUT
    for tag, value in wanted.items():
        if experiment.tags.get(tag) != value:
            MlflowClient().set_experiment_tag(experiment.experiment_id, tag, value)


ABOUT = (
    "Which calibration text should GPTQ get? A *suite* run holds one *cell* per method and seed, "
    "each a quantized model with its perplexity on the evaluation text, and the verdicts. "
    "`report.html` among its artifacts is the report."
)
