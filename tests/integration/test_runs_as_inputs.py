"""`runs:/ID` in the place of a model or a calibration set, and a cell that was done before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.store import claims, record
from entrypoints import evaluate, quantize, single


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, corpus_file: Path) -> dict[str, str]:
    corpus = f"file:{corpus_file}"
    return {
        "preset": "demo",
        "model": str(tiny_llama),
        "method": "random",
        "seed": "1",
        "corpus": corpus,
        "eval_corpora": corpus,
        "n_calibration_samples": "4",
        "seq_len": "64",
        "eval_windows": "6",
        "device": "cpu",
        "quant_bits": "8",
    }


def call(entry: Any, **given: str) -> Run:
    """Run an entry point as its command line would; return the newest run."""
    names = dict.fromkeys(("preset", *entry.PARAMETERS), "auto")
    if entry is quantize:
        names["calibration"] = "auto"
    assert entry.run(names | given) == 0
    experiment = mlflow.get_experiment_by_name("colazero").experiment_id
    found = MlflowClient().search_runs([experiment], order_by=["attributes.start_time DESC"])
    return found[0]


@pytest.fixture(scope="module")
def cell(settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A cell that was done with settings which no preset has."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        yield call(single, **settings)
        mlflow.set_tracking_uri(before)


def test_single_takes_over_what_is_done_unless_it_is_forced(
    cell: Run, settings: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    again = call(single, **settings)
    assert again.data.tags["colazero.source_run"] == cell.info.run_id
    assert again.data.metrics["perplexity"] == cell.data.metrics["perplexity"]
    said = capsys.readouterr().out
    assert cell.info.run_id in said
    assert "force=true" in said
    forced = call(single, **settings, force="true")
    assert "colazero.source_run" not in forced.data.tags
    with pytest.raises(UserError, match="force='perhaps'"):
        call(single, **settings, force="perhaps")


def test_evaluate_takes_a_runs_own_settings(cell: Run) -> None:
    model = f"runs:/{cell.info.run_id}"
    same = call(evaluate, model=model)
    assert same.data.metrics["perplexity"] == pytest.approx(cell.data.metrics["perplexity"], 1e-6)
    for name in ("seq_len", "eval_windows", "eval_corpora"):
        assert same.data.params[name] == cell.data.params[name]
    fewer = call(evaluate, model=model, eval_windows="2")
    assert (fewer.data.params["eval_windows"], fewer.data.params["seq_len"]) == ("2", "64")


def test_quantize_takes_a_runs_own_settings(cell: Run) -> None:
    same = call(quantize, calibration=f"runs:/{cell.info.run_id}")
    tag = "colazero.checkpoint_digest"
    assert same.data.tags[tag] == cell.data.tags[tag]
    assert same.data.params["quant_bits"] == "8"
    other = call(quantize, calibration=f"runs:/{cell.info.run_id}", quant_bits="4")
    assert other.data.params["quant_bits"] == "4"
    assert other.data.params["model"] == cell.data.params["model"]


def test_quantize_puts_in_front_of_a_window_what_its_set_was_made_for(
    cell: Run, settings: dict[str, str]
) -> None:
    made = call(single, **settings | {"bos": "always"})
    same = call(quantize, calibration=f"runs:/{made.info.run_id}")
    tag = "colazero.checkpoint_digest"
    assert same.data.params["bos"] == "always"
    assert same.data.tags[tag] == made.data.tags[tag] != cell.data.tags[tag]


def test_what_fails_late_keeps_its_numbers(
    cell: Run, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record, "keep", full)
        with pytest.raises(OSError, match="No space left"):
            call(single, **settings, force="true")
    failed = MlflowClient().search_runs([cell.info.experiment_id], max_results=1)[0]
    assert failed.info.status == "FAILED"
    assert "No space left on device" in failed.data.tags["colazero.error"]
    assert failed.data.metrics["perplexity"] == cell.data.metrics["perplexity"]
    files = MlflowClient().list_artifacts(failed.info.run_id, "evaluation")
    assert len(files) >= 1


@pytest.mark.parametrize("entry", [single, quantize])
def test_where_nothing_can_be_kept_nothing_is_begun(
    entry: Any, cell: Run, settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").touch()
    given = settings if entry is single else {"calibration": f"runs:/{cell.info.run_id}"}
    before = MlflowClient().search_runs([cell.info.experiment_id], max_results=1)[0]
    with pytest.raises(UserError, match=r"save_model='local': .*outputs/checkpoints"):
        call(entry, **given, save_model="local")
    after = MlflowClient().search_runs([cell.info.experiment_id], max_results=1)[0]
    assert after.info.run_id == before.info.run_id


def test_a_run_without_a_model_says_what_it_is(cell: Run) -> None:
    with record.run("suite", "suite") as suite:
        below = claims.create_child(suite, "a cell", "cell")
        with record.run("a cell", "cell", below):
            record.log_params({"model": "tiny"})
        plain = claims.create_child(suite, "tiny__unquantized", "baseline")
        with record.run("tiny__unquantized", "baseline", plain):
            record.log_params({"model": "tiny", "method": "unquantized"})
    with record.run("select", "select") as selected:
        pass
    for run_id, words in (
        (suite, f"it is a suite. Name one of its cells: runs:/{below} (a cell)"),
        (plain, "it is the unquantized model. Evaluate that itself: model=tiny"),
        (selected, "it chose a calibration set"),
        ("0" * 32, "has no such run"),
    ):
        with pytest.raises(UserError) as caught:
            call(evaluate, model=f"runs:/{run_id}")
        assert words in str(caught.value)
    for run_id, words in (
        (suite, "it is a suite. Name one of its cells"),
        (plain, "it is the unquantized model"),
        ("0" * 32, "has no such run"),
    ):
        with pytest.raises(UserError) as caught:
            call(quantize, calibration=f"runs:/{run_id}")
        assert words in str(caught.value)
