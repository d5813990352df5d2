"""Quantizers that need no calibration, and downstream tasks, in a suite and in single runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.store.client import metrics_of
from entrypoints import evaluate, quantize, single, suite

NAME = "colazero_own_task"


@pytest.fixture
def given(tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: Any) -> dict[str, str]:
    """What every entry point here is given; the store is the test's own."""
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("colazero")  # else MLflow remembers that of another test's store
    corpus = f"file:{corpus_file}"
    data = {"preset": "demo", "eval_corpora": corpus, "seq_len": "128", "eval_windows": "4"}
    return data | {"device": "cpu"}


@pytest.fixture
def cell(given: dict[str, str], tiny_llama: Path, corpus_file: Path) -> dict[str, str]:
    more = {"corpus": f"file:{corpus_file}", "n_calibration_samples": "4", "save_model": "none"}
    return given | more | {"model": str(tiny_llama)}


def runs(kind: str) -> dict[str, Run]:
    experiment = mlflow.get_experiment_by_name("colazero").experiment_id
    found = MlflowClient().search_runs([experiment], f"tags.`colazero.kind` = '{kind}'")
    return {run.info.run_name.rpartition("·")[0]: run for run in found}


def items(run: Run) -> list[dict[str, Any]]:
    path = "evaluation/downstream.jsonl.gz"
    file = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path)
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def scores(run: Run) -> dict[str, float]:
    return {k: v for k, v in metrics_of(run).items() if k.startswith("downstream.")}


def test_a_suite_with_downstream_tasks_and_a_control(cell: dict[str, str], own_task: Path) -> None:
    cell["models"] = cell.pop("model")
    more = {"methods": "gptq_default,random", "seeds": "42,43", "controls": "rtn"}
    more |= {"workers": "1", "do_downstream": "true", "downstream_tasks": str(own_task)}
    assert suite.run(cell | more) == 0
    cells, baselines = runs("cell"), runs("baseline") | runs("control")
    assert set(baselines) == {"unquantized", "rtn"}
    with_tasks = [baselines["unquantized"], baselines["rtn"]]
    with_tasks += [cells[f"42·{method}"] for method in ("gptq_default", "random")]
    for run in with_tasks:
        found = scores(run)
        assert {f"downstream.{NAME}.acc", f"downstream.{NAME}.acc_norm_stderr"} <= set(found)
        assert found["downstream.average.acc"] == found[f"downstream.{NAME}.acc"]
        rows = items(run)
        assert sum(row["acc"] for row in rows) / len(rows) == found["downstream.average.acc"]
        assert [r["doc_hash"] for r in rows] == [r["doc_hash"] for r in items(with_tasks[0])]
    for method in ("gptq_default", "random"):
        assert scores(cells[f"43·{method}"]) == {}

    (whole,) = runs("suite").values()
    folder = mlflow.artifacts.download_artifacts(run_id=whole.info.run_id, artifact_path="analysis")
    facts = json.loads((Path(folder) / "suite.json").read_text())["downstream_items"]
    assert len(facts) == 6, "every two of unquantized, rtn and two methods"
    table = (Path(folder) / "table.md").read_text()
    assert "| rtn " in table
    assert "p (McNemar)" in table


def test_rounding_needs_no_calibration_and_evaluates_as_any(cell: dict[str, str]) -> None:
    model = cell["model"]
    assert single.run(cell | {"quantizer": "rtn", "save_model": "artifact"}) == 0
    (rounded,) = runs("cell").values()
    assert rounded.data.metrics["selection_time_sec"] == 0
    assert metrics_of(rounded)["rtn_fallbacks"] == 0
    about = {"preset": "demo", "model": model, "device": "cpu", "calibration": "auto"}
    assert quantize.run(about | {"quantizer": "rtn"}) == 0
    (again,) = runs("quantize").values()
    digest = "colazero.checkpoint_digest"
    assert again.data.tags[digest] == rounded.data.tags[digest]

    data = {k: cell[k] for k in ("preset", "eval_corpora", "seq_len", "eval_windows", "device")}
    assert evaluate.run(data | {"model": f"runs:/{again.info.run_id}"}) == 0
    (found,) = runs("evaluate").values()
    expected = rounded.data.metrics["perplexity"]
    assert found.data.metrics["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_no_quantizer_is_the_model_itself(cell: dict[str, str]) -> None:
    assert single.run(cell | {"quantizer": "none"}) == 0
    (control,) = runs("cell").values()
    data = {k: cell[k] for k in ("preset", "eval_corpora", "seq_len", "eval_windows", "device")}
    assert evaluate.run(data | {"model": cell["model"]}) == 0
    (found,) = runs("evaluate").values()
    assert control.data.metrics["perplexity"] == found.data.metrics["perplexity"]
    assert control.data.metrics["quant_time_sec"] == 0
    with pytest.raises(UserError, match="quantizer='none'"):
        quantize.run(
            {"preset": "demo", "model": cell["model"], "quantizer": "none", "calibration": "auto"}
        )


def test_an_unknown_quantizer_and_one_without_its_gpu(cell: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"'gptq'.*'gptqmodel'"):
        single.run(cell | {"quantizer": "gptq"})
    with pytest.raises(UserError, match="device='cpu'"):
        single.run(cell | {"quantizer": "auto-gptq"})
