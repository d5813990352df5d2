"""What MLflow shows of our runs: names, groups, order, descriptions, and models that load."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.data.huggingface_dataset_source import HuggingFaceDatasetSource
from mlflow.tracking import MlflowClient

from analysis.reading.runs import row_of
from analysis.report import write
from colazero import corpora, environment
from colazero.errors import UserError, without_credentials
from colazero.store import claims, client, fetch, provenance, publish, record
from colazero.types import CalibrationSet, Corpus, Evaluation, Perplexity

ROOT = Path(__file__).resolve().parents[3]
ALL = {"perplexity": 20.5, "kl_divergence": 0.1, "top1_agreement": 0.9, "nll_per_token": 3.0}
ALL |= {"selection_time_sec": 1.0, "quant_time_sec": 2.0, "total_time_sec": 3.0}
ALL |= {"perplexity.sotu": 20.5, "perplexity.mine-1a.2": 21.5, "downstream.arc_easy.acc": 0.5}
ALL |= {"selection.entropy_bits": 8.0, "save_time_sec": 0.1, "rtn_fallbacks": 0.0}


@pytest.fixture
def cell(shared_store: MlflowClient) -> str:
    mlflow.set_experiment("test")
    with record.run("42·random·tiny", "cell") as run_id:
        record.log_params({"method": "random", "seed": "42", "model": "tiny", "quant_bits": "4"})
        record.log_metrics(dict(reversed(ALL.items())))
    return run_id


def test_metrics_are_grouped_and_read_back_by_their_own_names(
    cell: str, shared_store: MlflowClient
) -> None:
    run = shared_store.get_run(cell)
    assert {"perplexity/sotu", "perplexity/mine-1a.2", "work/save_time_sec"} <= set(
        run.data.metrics
    )
    assert not [name for name in run.data.metrics if "." in name.partition("/")[0]]
    assert client.metrics_of(run) == ALL
    row = row_of(run)
    assert {name: row[name] for name in ALL} == ALL, "the analysis reads the same names"


def test_runs_of_an_older_version_are_read_as_they_are(shared_store: MlflowClient) -> None:
    run_id = shared_store.create_run("0", tags={client.KIND: "cell"}).info.run_id
    for name, value in ALL.items():
        shared_store.log_metric(run_id, name, value)
    shared_store.set_terminated(run_id)
    run = shared_store.get_run(run_id)
    assert client.metrics_of(run) == ALL
    row = row_of(run)
    assert {name: row[name] for name in ALL} == ALL


def test_results_come_first_on_mlflows_pages(cell: str, shared_store: MlflowClient) -> None:
    shown = list(shared_store.get_run(cell).data.metrics)
    assert tuple(shown[:4]) == client.FIRST
    assert tuple(shown[4:7]) == client.SECONDS


def test_means_and_differences_come_first_on_a_suites_page(shared_store: MlflowClient) -> None:
    numbers = {"n": 5.0, "mean": 36.0, "std": 0.1}
    each = [SimpleNamespace(model="m", methods=(m,), numbers=numbers, verdict="") for m in "ab"]
    pair = SimpleNamespace(
        model="m", methods=("a", "b"), numbers={"confidence": 95.0, "percent": 1.0}, verdict="open"
    )
    run_id = shared_store.create_run("0").info.run_id
    claims.log_results(run_id, [*each, pair])
    logged = [name.removeprefix("result/m.") for name in shared_store.get_run(run_id).data.metrics]
    assert logged[:3] == ["a.mean", "b.mean", "a_vs_b.percent"]
    assert len(logged) == 8


def test_a_cell_describes_itself_in_a_line(cell: str, shared_store: MlflowClient) -> None:
    note = shared_store.get_run(cell).data.tags[client.NOTE]
    assert note == "perplexity 20.5, KL divergence 0.1: random, seed 42, tiny, 4 bits"


def test_a_run_lists_the_packages_that_it_ran_with(cell: str) -> None:
    text = mlflow.artifacts.load_text(f"runs:/{cell}/{provenance.PACKAGES}")
    assert f"mlflow=={mlflow.__version__}\n" in text
    assert f"numpy=={np.__version__}\n" in text


def test_the_list_of_runs_has_our_columns(shared_store: MlflowClient) -> None:
    experiment = shared_store.get_experiment(shared_store.create_experiment("columns"))
    client.describe_experiment(experiment)
    tags = shared_store.get_experiment(experiment.experiment_id).tags
    (key,) = [tag for tag in tags if tag.startswith("mlflow.sharedViewState.")]
    assert "metrics.`perplexity`" in json.loads(tags[key])["selectedColumns"]
    assert "cell" in tags[client.NOTE]
    run_id = shared_store.create_run(experiment.experiment_id).info.run_id
    (line,) = [line for line in client.where(run_id).splitlines() if line.startswith("all runs")]
    assert f"/experiments/{experiment.experiment_id}/runs?" in line
    assert line.endswith(f"viewStateShareKey={key.rpartition('.')[2]}")
    assert without_credentials(line) == line, "the key of a view is not a secret"


def test_an_analyzed_runs_report_has_an_address(cell: str) -> None:
    """An artifact's page is that of its run with `artifacts` and its path before the parameters."""
    page, *others = client.where(cell).splitlines()
    report, *same = client.where(cell, analyzed=True).splitlines()
    assert same == [page, *others]
    address, _, parameters = page.split()[1].partition("?")
    assert report == f"report: {address}/artifacts/{client.REPORT}?{parameters}"
    assert f"{write.FOLDER}/report.html" == client.REPORT


def test_a_users_description_of_an_experiment_stays(shared_store: MlflowClient) -> None:
    made = shared_store.create_experiment("described", tags={client.NOTE: "my thesis"})
    client.describe_experiment(shared_store.get_experiment(made))
    assert shared_store.get_experiment(made).tags[client.NOTE] == "my thesis"


ON_HUB = Corpus("c4", "1", ["a"], ["b"], source={"path": "a/b", "config_name": "en"})
FILES = {
    "mine.jsonl": "file:FOLDER/mine.jsonl",
    "rows.csv": "file:FOLDER/rows.csv:body",
    "set/train/a.csv": "file:FOLDER/set:body",
    "clone/train.jsonl": "hf:FOLDER/clone",
}


def logged_sources(corpus: Corpus, store: MlflowClient) -> list[Any]:
    """Return what MLflow makes of the sources of a set from a corpus and of a result on it."""
    mlflow.set_experiment("test")
    calibration = CalibrationSet(np.ones((2, 8), np.int32), [], {})
    one = np.ones(1)
    result = Perplexity(corpus.name, one, one, one, "d", source=corpus.source)
    with record.run("42·random·tiny", "cell") as run_id:
        record.log_dataset(corpus, calibration.digest, "calibration", windows=2, tokens=16)
        record.log_evaluation(Evaluation([result]))
    inputs = store.get_run(run_id).inputs.dataset_inputs
    assert len(inputs) == 2
    return [mlflow.data.get_source(each) for each in inputs]


@pytest.mark.parametrize("file", FILES)
def test_the_source_of_ones_own_text_is_where_it_lies(
    file: str, shared_store: MlflowClient, tmp_path: Path, monkeypatch: Any
) -> None:
    rows = '{"text": "one"}\n{"text": "two"}\n' if file.endswith("jsonl") else "id,body\n1,a\n2,b\n"
    path = tmp_path / "elsewhere" / file
    path.parent.mkdir(parents=True)
    path.write_text(rows)
    monkeypatch.chdir(tmp_path)
    corpus = corpora.load(FILES[file].replace("FOLDER", "elsewhere"))
    monkeypatch.chdir("/")
    for source in logged_sources(corpus, shared_store):
        there = Path(source.load())
        assert (there if there.is_file() else next(there.rglob(path.name))).read_text() == rows


@pytest.mark.parametrize("name", ["sotu", "mix:sotu=0.5,file:FILE=0.5"])
def test_a_corpus_of_no_place_is_named(
    name: str, shared_store: MlflowClient, corpus_file: Path
) -> None:
    corpus = corpora.load(name.replace("FILE", str(corpus_file)))
    for source in logged_sources(corpus, shared_store):
        assert source.to_dict()["tags"]["corpus"] == corpus.name


def test_the_source_of_a_data_set_of_the_hub_is_there(shared_store: MlflowClient) -> None:
    for source in logged_sources(ON_HUB, shared_store):
        assert isinstance(source, HuggingFaceDatasetSource)
        assert (source.path, source.config_name, source.split) == ("a/b", "en", None)


def test_a_kept_model_is_found_registered_loaded_and_served_by_mlflow(
    shared_store: MlflowClient, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.set_experiment("test")
    with record.run("42·random·tiny", "cell") as run_id:
        record.log_params({"method": "random", "seed": "42"})
        with record.workspace() as work:
            for file in tiny_llama.iterdir():
                (work / file.name).write_bytes(file.read_bytes())
            record.log_checkpoint(work, provenance.manifest(work), "42·random·tiny", "tiny")
    assert publish.intact(shared_store.get_run(run_id)), "its files are looked for in all folders"
    page = (ROOT / "docs" / "guide" / "python.md").read_text()
    (lines,) = re.findall(r"```python\n(# Register.*?)```", page, re.S)
    names: dict[str, Any] = {"mlflow": mlflow}
    exec(lines.replace("colazero", "test"), names)
    assert names["model"].source_run_id == run_id
    assert "The state" in capsys.readouterr().out
    for name in ("my-gptq@champion", "my-gptq/1", names["model"].model_id):
        assert fetch.find(f"models:/{name}").info.run_id == run_id
        folder = fetch.fetch_artifacts(f"models:/{name}", "model")
        assert (folder / "config.json").read_text() == (tiny_llama / "config.json").read_text()
    for name in ("my-gptq@loser", "my-gptq/7", "other/1", "m-0", "my-gptq/x"):
        with pytest.raises(UserError, match=f"models:/{name} cannot be used"):
            fetch.fetch_artifacts(f"models:/{name}", "model")
    served = mlflow.pyfunc.load_model("models:/my-gptq@champion").predict(["The state"])
    assert len(served) == 1
    assert isinstance(served[0], str)


TAGS = {
    *("kind", "owner", "error", "source_run", "manifest", "model_freed", "checkpoint_digest"),
    *("checkpoint_path", "heartbeat", "progress", "unbegun", "looks", "stopped", "ended", "key"),
    *("config", "work_key", "model_revision", "base_model", "device", "column_kernel", "sweep"),
    *("work_key_without_downstream", "calibration_digest", "order_digest", "higher_is_better"),
    *("git_commit", "git_dirty", "verified", "halved"),
}


def test_every_tag_has_one_name() -> None:
    """A misspelled tag would be read as missing."""
    spelled = {
        node.value
        for package in ("colazero", "analysis", "entrypoints", "benchmarks", "studies")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"colazero\.[a-z_0-9]+", node.value)
    }
    modules = {f"colazero.{path.stem}" for path in (ROOT / "colazero").iterdir()}
    assert spelled - modules <= {f"colazero.{name}" for name in TAGS}


def test_mlflows_own_names_that_are_used_here_exist() -> None:
    """Which version of MLflow broke: these have no documented way in."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.rest_utils import http_request
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    used = (get_artifact_repository, resolve_tags, get_default_host_creds, http_request)
    assert all(callable(each) for each in (*used, local_file_uri_to_path)), mlflow.__version__
    assert MAX_PARAM_VAL_LENGTH >= 6000
    assert environment.run_id() is None
