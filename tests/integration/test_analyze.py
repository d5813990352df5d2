"""`analyze` on whole suites in a store: what it logs, where, and what a mistake ends with."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from synthetic_suites import Suites

from analysis.report.write import analyze
from analysis.summary import Options
from colazero.errors import UserError
from entrypoints.analyze import PARAMETERS, run

ROOT = Path(__file__).parents[2]

MODEL = "smollm2-135m"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that subprocesses find by its environment variable: (folder, suites, environment)."""
    folder = tmp_path_factory.mktemp("analyze")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    yield folder, Suites(folder, "colazero"), environment
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def suite(store):
    """A suite with one failed cell, its parent run still open."""
    return store[1].suite(**{f"{MODEL}/random/44": {"status": "FAILED"}})


def artifacts(run_id, folder="analysis"):
    return {Path(f.path).name for f in MlflowClient().list_artifacts(run_id, folder)}


def command(store, *arguments):
    folder, _, environment = store
    return subprocess.run(
        [sys.executable, "-m", "entrypoints.analyze", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_into_the_open_run_of_a_suite_with_a_failed_cell(suite, tmp_path):
    client = MlflowClient()
    assert client.get_run(suite).info.status == "RUNNING"
    text = analyze(suite, out=tmp_path / "results")
    assert client.get_run(suite).info.status == "RUNNING"
    assert "| random       | 4 seeds         |" in text
    assert "COLA-Zero vs Random: inconclusive" in text
    assert "1 of 16 runs has no result" in text
    logged = artifacts(suite)
    assert {"report.html", "summary_stats.json", "table.tex", "figures"} <= logged
    assert logged == {file.name for file in (tmp_path / "results").iterdir()}
    assert len(artifacts(suite, "analysis/figures")) == 10
    stats = json.loads(mlflow.artifacts.load_text(f"runs:/{suite}/analysis/summary_stats.json"))
    assert stats[MODEL]["ttest_cola_zero_vs_random"]["headline"]["on_text"]["n_windows"] == 16
    assert stats[MODEL]["random"]["ppl"]["n"] == 4


def test_the_entry_point_finds_the_latest_suite_and_logs_into_its_own_run(store, suite):
    done = command(store, "--margin=5", "--out=copy")
    assert done.returncode == 0, done.stderr
    assert "COLA-Zero vs Random: " in done.stdout
    own = re.search(r"report: .*/runs/(\w+)/artifacts/", done.stdout)[1]
    assert own != suite
    found = MlflowClient().get_run(own)
    assert found.data.tags["colazero.kind"] == "analysis"
    assert found.data.params["suite"] == suite
    assert found.info.status == "FINISHED"
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{own}/analysis/suite.json"))
    assert facts["options"]["margin"] == 5
    assert facts["options"]["post_hoc"] == ["margin 5 %"]
    assert (store[0] / "copy/report.html").exists()
    assert (store[0] / "copy/figures/seeds.svg").exists()


def test_a_mistake_is_one_sentence_and_exit_code_2(store):
    done = command(store, "--suite=none")
    assert done.returncode == 2, done.stderr
    assert "error: suite='none'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_experiment_with_a_hole_is_refused(suite):
    with pytest.raises(UserError, match=r"incomplete.*random/seed 44"):
        run({"experiment": "colazero"})


def test_suites_of_other_bits_stand_side_by_side(store, tmp_path):
    folder, suites, _ = store
    ids = [suites.suite(settings={"quant_bits": bits}, seeds=3) for bits in ("2", "3")]
    done = command(store, f"--suites={','.join(ids)}", "--out=bits")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| quant_bits \| method +\|", done.stdout)
    for bits in (2, 3):
        assert re.search(rf"\| {bits} +\| cola_zero +\| 3 seeds", done.stdout)
        assert f"{MODEL} [quant_bits={bits}]: COLA-Zero vs Random: " in done.stdout
    own = re.search(r"report: .*/runs/(\w+)/artifacts/", done.stdout)[1]
    assert MlflowClient().get_run(own).data.params["suites"] == ",".join(ids)
    page = (folder / "bits/report.html").read_text()
    assert "The runs differ in quant_bits (2, 3). Each setting is analysed on its own" in page
    figures = {file.name for file in (folder / "bits/figures").glob("*.svg")}
    assert {f"seeds_{MODEL}__quant_bits_{bits}_.svg" for bits in (2, 3)} <= figures
    table = (folder / "bits/table.csv").read_text().splitlines()
    assert table[0].startswith("model,quant_bits,method,n,")
    assert {line.split(",")[1] for line in table[1:]} == {"2", "3"}

    done = command(store, f"--suites={','.join(ids)}", "--filter=params.quant_bits = '2'")
    assert done.returncode == 0, done.stderr
    assert "quant_bits" not in done.stdout
    done = command(store, "--filter=params.quant_bits = '3'")
    assert done.returncode == 0, done.stderr
    assert "COLA-Zero vs Random: " in done.stdout


def test_a_suite_names_its_own_primary_method_and_baseline(store):
    params = {"resolved.primary": "random", "resolved.baseline": "cola_zero"}
    suite = store[1].suite(settings={"primary": "auto", "baseline": "auto"} | params, seeds=2)
    assert "Random vs COLA-Zero: " in analyze(suite)
    text = analyze(suite, Options(primary="gptq_default"))
    assert "(GPTQ default against each other method)" in text


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ({"resolved.baseline": "stratified"}, "Random vs Stratified: "),
        ({"resolved.primary": "random"}, "Random vs Stratified: "),
        ({}, "Stratified vs Random: "),
    ],
)
def test_an_experiment_is_compared_as_its_suites_name_it_and_no_comparison_is_left_out(
    store, capsys, named, line
):
    folder, _, _ = store
    suites = Suites(folder, f"of their own {sorted(named)}")
    methods = {"stratified": (23.4, 0.35), "random": (23.1, 0.30)}
    plain = {"primary": "auto", "baseline": "auto"}
    suites.suite(methods=methods, settings=plain | named, seeds=3)
    auto = dict.fromkeys(PARAMETERS, "auto")
    assert run(auto | {"experiment": suites.name}) == 0
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"suites": "a,b", "suite": "c"}, "suite and suites exclude each other"),
        ({"margin": "much"}, "margin='much': must be a number"),
        ({"alpha": "2"}, "alpha=2: must lie between 0 and 0.5"),
        ({"direction": "up"}, "direction='up': must be lower or higher"),
        ({"suite": "a", "experiment": "b"}, "suite and experiment exclude each other"),
        ({"out": __file__}, r"out='.*test_analyze\.py': File exists\. Name a folder"),
        ({"out": f"{__file__}/below"}, r"out='.*below': Not a directory\. Name a folder"),
    ],
)
def test_a_mistake_in_a_parameter_is_found_before_anything_is_opened(given, message):
    with pytest.raises(UserError, match=message):
        run(given)
