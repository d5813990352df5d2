"""Cells that an older version logged: not reused, and the reason is given."""

from __future__ import annotations

import pytest
from mlflow.tracking import MlflowClient

from colazero.settings import RunConfig
from colazero.store import fetch, record

NOW = RunConfig(model="tiny", method="random", seed=7, device="cpu")


def why(store: MlflowClient, config: RunConfig = NOW) -> str:
    experiment = store.get_experiment_by_name("test").experiment_id
    return fetch.older_version(record.params_of(config), store.search_runs([experiment]))


def log_cell(store: MlflowClient, lacks: str = "", **other: str) -> None:
    """Log a finished cell of these parameters, as a version without the parameter `lacks` would."""
    experiment = store.get_experiment_by_name("test").experiment_id
    tags = {"colazero.kind": "cell", "colazero.git_commit": "31a0aac99"}
    run_id = store.create_run(experiment, tags=tags).info.run_id
    for name, value in (record.params_of(NOW) | other).items():
        if name != lacks:
            store.log_param(run_id, name, value)
    store.set_terminated(run_id)


@pytest.mark.parametrize("lacks", ["proxy_model", "bos", "replicate"])
def test_the_parameter_that_an_older_version_lacks_is_named(
    lacks: str, shared_store: MlflowClient
) -> None:
    config = NOW.model_copy(update={"seed": 100 + len(lacks)})
    log_cell(shared_store, lacks, seed=str(config.seed))
    reason = why(shared_store, config)
    assert "31a0aac" in reason
    assert lacks in reason


def test_a_version_with_other_keys_is_named(shared_store: MlflowClient) -> None:
    log_cell(shared_store)
    assert "31a0aac" in why(shared_store)


@pytest.mark.parametrize("change", [{"seed": 8}, {"quant_bits": 3}, {"method": "stratified"}])
def test_a_cell_of_other_settings_is_no_reason(
    change: dict[str, int | str], shared_store: MlflowClient
) -> None:
    log_cell(shared_store)
    assert why(shared_store, NOW.model_copy(update=change)) == ""
