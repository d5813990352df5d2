"""A suite's status names its cells as the suite does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from colazero.store import claims, record
from colazero.suite import cells as status
from colazero.suite import plan
from colazero.suite import run as suite
from colazero.suite.supervisor import Report
from colazero.suite_settings import SuiteConfig


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("test")
    yield
    mlflow.set_tracking_uri(before)


def test_cells_of_ones_own_method_are_found(tiny_llama: Path) -> None:
    config = SuiteConfig.model_validate(
        {"models": str(tiny_llama), "methods": "mine.choice:last", "seeds": "1,2"}
    )
    report = Report()
    with record.run("suite", "suite") as run_id:
        record.log_config(config)
        record.flush()
        done = "1·mine.choice:last·tiny-llama"
        with record.run(done, "cell", claims.create_child(run_id, done, "cell")):
            pass
        (_, second) = config.cells()
        suite._fail_model(config, [second], ValueError("no such file"), run_id, report)
        failed = "2·mine.choice:last·tiny-llama"
        assert report.failed == {failed: "no such file"}
        found = {line.name: line.state for line in status.states(run_id)}
    assert found == {"unquantized·tiny-llama": "missing", done: "done", failed: "failed"}


def test_the_cells_of_a_sweep_are_named_as_the_suite_names_them(
    tiny_llama: Path, corpus_file: Path
) -> None:
    given = {"methods": "random", "seeds": "1,2", "quant_bits": "3,4", "controls": "rtn"}
    given |= {"seq_len": "32,64", "device": "cpu", "n_calibration_samples": 2, "eval_windows": 2}
    given |= {"corpus": f"file:{corpus_file}", "eval_corpora": f"file:{corpus_file}"}
    config = SuiteConfig.model_validate(given | {"models": str(tiny_llama)})
    with record.run("suite", "suite") as run_id:
        record.log_config(config)
        record.flush()
        found = [line.name for line in status.states(run_id)]
    jobs = plan.usable(config, str(tiny_llama), "cpu")
    assert sorted(found) == sorted(job.name for job in jobs)
    assert len(found) == 2 + 4 + 8


def test_what_a_look_made_unnecessary_is_not_missing(tiny_llama: Path) -> None:
    given = {"methods": "random,cola_zero", "seeds": "7-10", "until": "settled", "looks": "3"}
    config = SuiteConfig.model_validate(given | {"models": str(tiny_llama)})
    with record.run("suite", "suite") as run_id:
        record.log_config(config)
        record.flush()
        claims.log_look(run_id, [3], {}, {str(tiny_llama): {"random": 3}})
        found = {line.name.rpartition("·")[0]: line.state for line in status.states(run_id)}
    assert {name for name, state in found.items() if state == "settled"} == {"10·random"}
    assert len(found) == 9
    lines = [status.State("x", "settled"), status.State("y", "missing")]
    assert status.text(lines) == "1 missing, 1 settled\nmissing  y"
