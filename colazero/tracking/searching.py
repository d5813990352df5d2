"""Runs found in the store by what they are, whatever signs stand in what is looked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

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
