"""A whole suite on a tiny model: what is recorded, what is shared, what happens when cells fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from analysis.reading import load_suite
from colazero.cell import RESULT
from colazero.errors import UserError
from colazero.store import client
from colazero.suite import cells as status
from colazero.suite import plan
from entrypoints import suite as entry

METHODS = "gptq_default,random,cola_zero"


@pytest.fixture(scope="module")
def grid(tiny_llama: Path, corpus_file: Path) -> dict[str, str]:
    """Return what `entrypoints.suite` is given for three methods and two seeds."""
    corpus = f"file:{corpus_file}"
    return {
        "preset": "demo",
        "models": str(tiny_llama),
        "methods": METHODS,
        "seeds": "42,43",
        "corpus": corpus,
        "eval_corpora": corpus,
        "n_calibration_samples": "4",
        "seq_len": "128",
        "eval_windows": "6",
        "device": "cpu",
        "workers": "1",
    }


def use_store(folder: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("colazero")


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
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_store(folder)
        yield folder


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


def test_a_sweep_is_analysed_within_each_setting(
    store: Path, grid: dict[str, str], first: Run
) -> None:
    given = grid | {"quant_bits": "3,4", "methods": "random,gptq_default", "seeds": "42"}
    assert entry.run(given | {"replicates": "2"}) == 0
    suite = latest_suite()
    runs = children(suite)
    model = next(name for name in runs if name.startswith("unquantized")).split("·")[1]
    cells = {
        f"42·{method}{again}·quant_bits{bits}·{model}"
        for method in ("random", "gptq_default")
        for again in ("", "·replicate2")
        for bits in (3, 4)
    }
    assert set(runs) == cells | {f"unquantized·{model}"}
    assert json.loads(suite.data.tags["colazero.sweep"]) == {"quant_bits": [3, 4]}
    for bits in (3, 4):
        run = runs[f"42·random·quant_bits{bits}·{model}"]
        assert run.data.params["quant_bits"] == str(bits)
        earlier = children(first)[f"42·random·{model}"].info.run_id
        assert run.data.tags.get("colazero.source_run") == (earlier if bits == 4 else None)
    table = load_suite(suite.info.run_id)
    assert table.groupby("quant_bits")["model"].nunique().to_dict() == {3: 1, 4: 1}
    text = artifact(suite, "analysis/table.md").read_text()
    assert re.search(r"\| quant_bits \| method ", text)
    lines = [line.state for line in status.states(suite.info.run_id)]
    assert lines == ["done"] * 9


def test_without_the_usual_baseline_the_first_method_is_it_and_the_suite_says_so(
    store: Path, grid: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "colazero")
    assert entry.run(grid | {"methods": "stratified,random", "seeds": "42"}) == 0
    said = " ".join(caplog.messages)
    assert "baseline: stratified, the first method named, because gptq_default is not" in said
    assert "no method is the primary one" in said
    suite = latest_suite()
    assert suite.data.params["baseline"] == "stratified"
    results = artifact(suite, "analysis/results.md").read_text()
    assert "Random vs Stratified: " in results


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
    for words in ("6 cells to run", "512 tokens needed"):
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


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(
    store: Path,
    grid: dict[str, str],
    in_workers: Callable[[str], None],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    in_workers("""
        from colazero import pipeline

        real = pipeline.quantize

        def broken(config, *rest):
            if config.seed == 53:
                raise MemoryError("no room")
            return real(config, *rest)

        pipeline.quantize = broken
    """)
    measured = {"system_metrics": "true"}
    assert entry.run({**grid, "methods": "random", "seeds": "52,53", **measured}) == 1
    suite = latest_suite()
    runs = children(suite)
    failed = [run for run in runs.values() if run.info.status == "FAILED"]
    assert [run.data.params["seed"] for run in failed] == ["53"]
    assert "MemoryError: no room" in failed[0].data.tags["colazero.error"]
    assert sum(run.info.status == "FINISHED" for run in runs.values()) == 2
    assert re.search(r"53·\S+: MemoryError: no room", capsys.readouterr().err)
    counts = {"cells_done": 1, "cells_failed": 1, "cells_left": 0}
    assert counts.items() <= json.loads(suite.data.tags["colazero.progress"]).items()
    for run in runs.values():
        if run.data.tags["colazero.kind"] == "cell":
            assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_perplexity_that_is_no_number_fails_the_cell(
    store: Path, grid: dict[str, str], in_workers: Callable[[str], None]
) -> None:
    in_workers("""
        from colazero.evaluation import perplexity

        take = perplexity.Likelihoods.take

        def no_number(self, window, *given):
            found = take(self, window, *given)
            self._sums[window] = float("nan")
            return found

        perplexity.Likelihoods.take = no_number
    """)
    assert entry.run({**grid, "methods": "random", "seeds": "54"}) == 1
    failed = [
        r for r in children(latest_suite()).values() if r.data.tags["colazero.kind"] == "cell"
    ]
    assert failed[0].info.status == "FAILED"
    assert "not finite" in failed[0].data.tags["colazero.error"]


def test_a_damaged_model_is_refused_in_plain_words(
    store: Path, grid: dict[str, str], tiny_llama: Path, tmp_path: Path, caplog: Any
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_llama, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert entry.run({**grid, "models": str(damaged)}) == 1
    failed = children(latest_suite()).values()
    assert len(failed) == 6
    assert {run.info.status for run in failed} == {"FAILED"}
    assert all("is damaged" in run.data.tags["colazero.error"] for run in failed)
    assert "damaged" in caplog.text
    assert "Traceback" not in caplog.text
