"""Every entry point through `mlflow run` itself, chained by run ids, as a user would."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero import models, pipeline
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.store.client import metrics_of

ROOT = Path(__file__).resolve().parents[2]


class Project:
    """`mlflow run` on this project with the current environment and a store of its own."""

    def __init__(self, folder: Path, **fixed: str) -> None:
        self.folder, self.fixed = folder, fixed
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")

    def run(self, entry: str, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("mlflow")), "run", str(ROOT), "-e", entry]
        command += words or ("--env-manager", "local")
        for name, value in given.items():
            command += ["-P", f"{name}={value}"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # mlflow tells children of this process its own store and experiment: not these children.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db", "PATH": path}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def finished(self, entry: str, **given: str) -> Run:
        """Run an entry point that must succeed; return its run."""
        done = self.run(entry, **given)
        assert done.returncode == 0, done.stderr[-3000:]
        return self.latest()

    def latest(self) -> Run:
        return next(
            run
            for run in self.client.search_runs(["0"], order_by=["attributes.start_time DESC"])
            if "mlflow.parentRunId" not in run.data.tags
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def small(tiny_opt: Path, corpus_file: Path) -> dict[str, str]:
    return {"preset": "demo", "model": str(tiny_opt), "seq_len": "64"}


@pytest.fixture(scope="module")
def corpus(corpus_file: Path) -> str:
    return f"file:{corpus_file}"


def test_select_quantize_evaluate_in_a_chain(
    project: Project, small: dict[str, str], corpus: str
) -> None:
    selected = project.finished(
        "select", **small, corpus=corpus, method="random", n_calibration_samples="4"
    )
    assert selected.info.status == "FINISHED"
    assert selected.data.params["method"] == "random"
    assert selected.data.params["seed"] == "auto", "what mlflow was given"
    assert selected.data.params["resolved.seed"] == "42", "what that meant"
    calibration = f"runs:/{selected.info.run_id}"

    model = {"preset": "demo", "model": small["model"]}
    quantized = project.finished("quantize", **model, calibration=calibration, damp_percent="1e-1")
    assert quantized.data.params["resolved.group_size"] == "128"
    assert quantized.data.params["resolved.damp_percent"] == "0.1"
    digest = selected.data.tags["colazero.calibration_digest"]
    assert quantized.data.tags["colazero.calibration_digest"] == digest

    what = {"preset": "demo", "seq_len": "64", "eval_corpora": corpus, "eval_windows": "4"}
    evaluated = project.finished("evaluate", **what, model=f"runs:/{quantized.info.run_id}")
    text = pipeline.evaluation_text(models.fetch(small["model"]), corpus, 64, 4)
    windows, starts = text.windows, text.starts
    dense = load_dense(Path(small["model"]), "cpu")
    original = perplexity(dense, corpus, windows, starts).perplexity
    assert evaluated.data.metrics["perplexity"] != original
    assert evaluated.data.metrics["perplexity"] == pytest.approx(original, rel=0.1)


def test_single_does_the_three_in_one_run(
    project: Project, small: dict[str, str], corpus: str
) -> None:
    run = project.finished(
        "single",
        **small,
        corpus=corpus,
        eval_corpora=corpus,
        eval_windows="4",
        n_calibration_samples="4",
        seed="43",
        save_model="none",
    )
    assert run.data.params["seed"] == "43"
    assert run.data.params["resolved.method"] == "cola_zero"
    times = ("selection_time_sec", "quant_time_sec", "total_time_sec", "perplexity")
    assert metrics_of(run)["warm_up_time_sec"] > 0, "a kernel's start is no part of quant_time_sec"
    assert all(run.data.metrics[name] > 0 for name in times)
    assert not run.outputs or not run.outputs.model_outputs


def test_suite_then_analyze(project: Project, small: dict[str, str], corpus: str) -> None:
    settings = {key: value for key, value in small.items() if key != "model"}
    suite = project.finished(
        "suite",
        **settings,
        models=small["model"],
        methods="random,gptq_default",
        workers="1",
        seeds="7-8",
        corpus=corpus,
        eval_corpora=corpus,
        eval_windows="4",
        n_calibration_samples="4",
    )
    artifacts = [a.path for a in project.client.list_artifacts(suite.info.run_id, "analysis")]
    assert "analysis/summary_stats.json" in artifacts
    assert suite.data.params["resolved.seeds"] == "7,8", "what 7-8 is resolved to"
    assert suite.data.params["resolved.quantizer"] == "onepass", "what was not given at all"
    again = project.run("analyze", suite=suite.info.run_id)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "random" in again.stdout


def test_a_mistake_ends_in_one_message_and_leaves_nothing_running(project: Project) -> None:
    done = project.run("single", method="colazero")
    assert done.returncode != 0
    assert "unknown method 'colazero'. Did you mean 'cola_zero'?" in done.stderr
    assert "Traceback" not in done.stderr
    failed = project.latest()
    assert failed.info.status == "FAILED"
    assert failed.info.run_name == "single·method=colazero"
    assert "unknown method 'colazero'" in failed.data.tags["colazero.error"]


@pytest.mark.skipif(shutil.which("conda") is not None, reason="there is a conda")
def test_what_mlflow_leaves_running_without_conda_is_ended_by_the_next_that_computes(
    project: Project, small: dict[str, str], corpus: str
) -> None:
    left = project.run("single", "--run-name", "no conda")
    assert left.returncode != 0
    run = project.latest()
    assert run.info.status == "RUNNING", "or MLflow has learned to end it"
    with sqlite3.connect(project.folder / "mlflow.db") as store:  # as if an hour had gone by
        long_ago = run.info.start_time - 3_600_000
        change = "UPDATE runs SET start_time = ? WHERE run_uuid = ?"
        store.execute(change, (long_ago, run.info.run_id))
    settings = {name: value for name, value in small.items() if name in ("model", "seq_len")}
    data = {"corpus": corpus, "method": "random", "n_calibration_samples": "4"}
    project.finished("select", **settings, **data)
    ended = project.client.get_run(run.info.run_id)
    assert ended.info.status == "KILLED"
    assert "before it had begun" in ended.data.tags["colazero.error"]


def test_a_name_that_its_user_gave_a_run_stays(
    project: Project, small: dict[str, str], corpus: str
) -> None:
    settings = {name: value for name, value in small.items() if name in ("model", "seq_len")}
    data = {"corpus": corpus, "method": "random", "n_calibration_samples": "4"}
    words = ("--env-manager", "local", "--run-name", "mine-own-1")
    done = project.run("select", *words, **settings, **data)
    assert done.returncode == 0, done.stderr[-3000:]
    assert project.latest().info.run_name == "mine-own-1"
