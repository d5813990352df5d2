"""A whole suite on a tiny model: what is recorded, what is shared, what a plan of it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero.cell import RESULT
from colazero.errors import UserError
from colazero.store import client
from colazero.suite import plan
from entrypoints import suite as entry

METHODS = "gptq_default,random,cola_zero"


def latest_suite() -> Run:
    found = MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("colazero").experiment_id],
        "tags.`colazero.kind` = 'suite'",
        order_by=["attributes.start_time DESC"],
    )
    return found[0]


def children(suite: Run) -> dict[str, Run]:
    found = MlflowClient().search_runs(
        [suite.info.experiment_id], f"tags.mlflow.parentRunId = '{suite.info.run_id}'"
    )
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def first(store: Path, grid: dict[str, str]) -> Run:
    assert entry.run(dict(grid)) == 0
    return latest_suite()


def artifact(run: Run, path: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=path))


def test_every_cell_is_a_finished_nested_run(first: Run) -> None:
    runs = children(first)
    model = next(iter(runs)).rpartition("·")[2]
    expected = {f"{s}·{m}·{model}" for m in METHODS.split(",") for s in (42, 43)}
    assert set(runs) == expected | {f"unquantized·{model}"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert first.info.status == "FINISHED"
    assert re.fullmatch(rf"\d\d-\d\d \d\d:\d\d·demo·{model}", first.info.run_name)


def test_metrics_are_linked_to_the_model_and_the_text_that_they_were_measured_on(
    first: Run,
) -> None:
    for run in children(first).values():
        if run.data.tags["colazero.kind"] != "cell":
            continue
        (output,) = run.outputs.model_outputs
        on = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}["evaluation"]
        found = {m.key: m for m in mlflow.get_logged_model(output.model_id).metrics}
        assert found["perplexity"].value == run.data.metrics["perplexity"]
        for name in ("perplexity", "kl_divergence", "nll_per_token"):
            linked = found[name]
            assert (linked.dataset_name, linked.dataset_digest) == (on.name, on.digest)
        assert found["quant_time_sec"].dataset_name is None


def test_the_suites_run_has_each_methods_numbers_and_every_verdict(first: Run) -> None:
    stats = json.loads(artifact(first, "analysis/summary_stats.json").read_text())
    ((path, found),) = stats.items()
    model, metrics = Path(path).name, client.metrics_of(first)
    for method in METHODS.split(","):
        assert metrics[f"result.{model}.{method}.mean"] == found[method]["ppl"]["mean"]
        limits = found[method]["ppl"]["ci95"] or (None, None)  # no interval of equal values
        for name, limit in zip(("low95", "high95"), limits, strict=True):
            assert metrics.get(f"result.{model}.{method}.{name}") == limit
    assert f"result.{model}.cola_zero.low95" in metrics
    tests = {name.removeprefix("ttest_"): v for name, v in found.items() if "_vs_" in name}
    assert len(tests) == 3
    for pair, values in tests.items():
        assert first.data.tags[f"verdict.{model}.{pair}"] == values["verdict"]
        assert metrics[f"result.{model}.{pair}.percent"] == values["headline"]["percent"]


def test_no_file_of_the_analysis_writes_truth_as_python_does(first: Run) -> None:
    for file in artifact(first, "analysis").rglob("*"):
        if file.suffix in (".html", ".md", ".csv", ".json", ".tex"):
            text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", file.read_text(encoding="utf-8"))
            assert not re.search(r"\b(True|False)\b", text), file.name
    cells = artifact(first, "analysis/cells.csv").read_text()
    assert ",true," in cells


def test_methods_and_seeds_differ_but_gptq_default_never(first: Run) -> None:
    digests: dict[str, set[str]] = {}
    for run in children(first).values():
        if run.data.tags["colazero.kind"] == "cell":
            digest = run.data.tags["colazero.calibration_digest"]
            digests.setdefault(run.data.params["method"], set()).add(digest)
    assert len(digests["gptq_default"]) == 1
    assert len(digests["random"]) == len(digests["cola_zero"]) == 2
    assert len(set.union(*digests.values())) == 5


def test_one_set_in_two_orders_is_quantized_twice(first: Run) -> None:
    found = [r for r in children(first).values() if r.data.params["method"] == "gptq_default"]
    assert not any("colazero.source_run" in run.data.tags for run in found)
    # Whether sums in another order flip a code of so small a model is chance.
    for name, different in (("calibration", 1), ("order", 2)):
        assert len({run.data.tags[f"colazero.{name}_digest"] for run in found}) == different


def test_every_cell_has_the_measures_and_pictures_of_its_own_calibration_set(first: Run) -> None:
    for run in children(first).values():
        if run.data.tags["colazero.kind"] == "cell":
            found = client.metrics_of(run)
            assert found["selection.tokens_given"] == found["selection.tokens_asked"] == 4 * 128
            assert found["selection.test_13gram_overlap"] < 0.1
            assert ("selection.clusters" in found) == (run.data.params["method"] == "cola_zero")
            files = {file.name for file in artifact(run, "selection").iterdir()}
            assert files == {"selection.png", "selection.svg", "windows.html"}


def test_result_json_has_the_missions_keys(first: Run) -> None:
    for run in children(first).values():
        if run.data.tags["colazero.kind"] == "cell":
            result = json.loads(artifact(run, "result.json").read_text())
            assert list(result)[: len(RESULT)] == list(RESULT)
            assert result["perplexity"] == pytest.approx(run.data.metrics["perplexity"])
            assert result["group_size"] == 128
            assert result["downstream"] == {}


def test_the_windows_add_up_to_the_perplexity(first: Run) -> None:
    for run in children(first).values():
        if "colazero.source_run" not in run.data.tags:
            (file,) = artifact(run, "evaluation").glob("*.parquet")
            rows = pd.read_parquet(file)
            assert len(rows) == 6
            assert (rows["tokens"] == 127).all()
            total = float(np.exp(rows["nll"].sum() / rows["tokens"].sum()))
            assert run.data.metrics["perplexity"] == pytest.approx(total, rel=1e-12)


def test_data_models_and_environment_are_on_record(first: Run) -> None:
    for run in children(first).values():
        tags = run.data.tags
        assert tags["version.gptqmodel"] == "7.6.0"
        assert tags["colazero.git_dirty"]
        if tags["colazero.kind"] == "cell" and "colazero.source_run" not in tags:
            inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
            assert inputs["calibration"].digest == tags["colazero.calibration_digest"]
            assert inputs["evaluation"].digest
            (output,) = run.outputs.model_outputs
            folder = mlflow.artifacts.download_artifacts(f"models:/{output.model_id}")
            manifest = json.loads((Path(folder) / "sha256.json").read_text())
            assert "quantize_config.json" in manifest
            assert mlflow.get_logged_model(output.model_id).status == "READY"


def test_the_parents_description_is_the_table(first: Run) -> None:
    table = first.data.tags["mlflow.note.content"]
    for word in (*METHODS.split(","), "CV", "±"):
        assert word in table


def test_the_parent_tells_how_far_the_suite_is(first: Run) -> None:
    counts = {"cells_done": 6, "cells_reused": 0, "cells_failed": 0, "cells_left": 0}
    progress = json.loads(first.data.tags["colazero.progress"])
    assert progress == counts | {"seconds_left": 0}
    assert not {name for name in first.data.metrics if "cells" in name}, "bars that say nothing"


def test_a_plan_runs_nothing_and_says_what_it_would(
    first: Run, grid: dict[str, str], capsys: Any
) -> None:
    experiment = first.info.experiment_id
    before = len(MlflowClient().search_runs([experiment]))
    assert entry.run({**grid, "seeds": "142,143", "plan": "true"}) == 0
    told = capsys.readouterr().out
    for words in ("6 cells to run", "512 tokens needed", "on 6 windows no verdict"):
        assert words in told
    (plan,) = MlflowClient().search_runs([experiment], "tags.`colazero.kind` = 'plan'")
    assert "plan.json" in {file.path for file in MlflowClient().list_artifacts(plan.info.run_id)}
    after = MlflowClient().search_runs([experiment])
    assert len(after) == before + 1, "the plan alone"


@pytest.mark.usefixtures("first")
def test_a_plan_that_cannot_be_carried_out_is_shown_before_it_is_refused(
    grid: dict[str, str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "needs", lambda *_: [plan.Need("disk", 2.0, 1.0, "GB")])
    with pytest.raises(UserError, match=r"disk: 2\.0 GB.* 1\.0 GB"):
        entry.run({**grid, "seeds": "142,143", "plan": "true"})
    told = capsys.readouterr().out
    assert "6 cells to run" in told
    assert "disk: 2.0 GB needed" in told


def test_a_plan_after_the_suite_has_nothing_left_to_run(
    first: Run, grid: dict[str, str], capsys: Any
) -> None:
    assert entry.run({**grid, "plan": "true"}) == 0
    told = capsys.readouterr().out
    for line in ("0 cells to run\n", "6 cells to reuse:\n"):
        assert line in told
    assert "43·gptq_default" in told.partition("to reuse:")[2]


def test_run_again_everything_is_reused_bit_for_bit(first: Run, grid: dict[str, str]) -> None:
    assert entry.run(dict(grid)) == 0
    again = latest_suite()
    assert again.info.run_id != first.info.run_id
    before, after = children(first), children(again)
    assert set(before) == set(after)
    for name, run in after.items():
        assert "colazero.source_run" in run.data.tags
        assert run.data.metrics["perplexity"] == before[name].data.metrics["perplexity"]
