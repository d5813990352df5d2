"""The folder and the model card that `export` makes of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from mlflow.tracking import MlflowClient

from colazero.cache import file_digest
from colazero.errors import UserError
from colazero.store import fetch
from entrypoints import export

PARAMS = {
    "model": "org/tiny@main",
    "method": "cola_zero",
    "corpus": "sotu",
    "seed": "43",
    "replicate": "1",
    "n_calibration_samples": "8",
    "seq_len": "512",
    "quantizer": "onepass",
    "quant_bits": "4",
    "group_size": "64",
    "sym": "true",
    "desc_act": "false",
    "damp_percent": "0.05",
    "eval_windows": "16",
    "eval_seq_len": "512",
    "eval_corpora": "sotu",
}
TAGS = {
    "colazero.kind": "cell",
    "colazero.model_revision": "0123abcd",
    "colazero.calibration_digest": "feedfacefeedface",
    "version.torch": "2.13.0",
    "version.colazero": "0.1.0",
}


@pytest.fixture
def cell(
    shared_store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """Return the id of a suite's cell and the folder of its checkpoint."""
    experiment = shared_store.get_experiment_by_name("test")
    assert experiment
    suite = shared_store.create_run(experiment.experiment_id)
    for name, value in {"n": 5, "mean": 36.1, "low95": 35.8, "high95": 36.4}.items():
        shared_store.log_metric(suite.info.run_id, f"result/tiny.cola_zero.{name}", value)
    for name, value in {"percent": -0.2, "confidence": 0.975}.items():
        shared_store.log_metric(suite.info.run_id, f"result/tiny.cola_zero_vs_random.{name}", value)
    for name, value in {"low_percent": -1.66, "high_percent": 1.22}.items():
        shared_store.log_metric(suite.info.run_id, f"result/tiny.cola_zero_vs_random.{name}", value)
    for pair in ("cola_zero_vs_random", "random_vs_zipcal"):
        shared_store.set_tag(suite.info.run_id, f"verdict.tiny.{pair}", "inconclusive")
    tags = TAGS | {"mlflow.parentRunId": suite.info.run_id}
    run_id: str = shared_store.create_run(experiment.experiment_id, tags=tags).info.run_id
    for name, value in PARAMS.items():
        shared_store.log_param(run_id, name, value)
    for name, number in {"perplexity": 36.0639, "kl_divergence": 0.18634}.items():
        shared_store.log_metric(run_id, name, number)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").chmod(0o600)
    digests = {name: file_digest(folder / name) for name in ("config.json", "model.safetensors")}
    (folder / "sha256.json").write_text(json.dumps(digests))
    (folder / "MLmodel").write_text("flavors: {}")
    monkeypatch.setattr(fetch, "fetch_artifacts", lambda uri, what: folder)
    monkeypatch.setattr("colazero.store.open.connect", lambda **_: None)
    return run_id, folder


def exported(run_id: str, out: Path) -> str:
    assert export.run({"run": run_id, "out": str(out)}) == 0
    return (out / "README.md").read_text()


def test_the_card_says_what_the_store_knows(cell: tuple[str, Path], tmp_path: Path) -> None:
    text = exported(cell[0], tmp_path / "out")
    for words in (
        "org/tiny@main, revision `0123abcd`. Precision: bfloat16.",
        "| method | cola_zero |",
        "| seed, replicate | 43, 1 |",
        "`feedfacefeedface`",
        "8 × 512 tokens",
        "| perplexity | 36.0639 |",
        "| kl_divergence | 0.1863 |",
        "36.100, 95 % confidence interval 35.800 to 36.400 (5 observations)",
        "cola_zero vs random: inconclusive (-0.20 %, 97.5 % CI [-1.66, +1.22])",
        "vLLM 0.33: `vllm serve",
        "torch 2.13.0",
    ):
        assert words in " ".join(text.split()), words
    assert "zipcal" not in text, "a comparison of two other methods"
    data = ModelCard(text).data
    assert data.base_model == "org/tiny"
    assert data.library_name == "transformers"
    assert "gptq" in data.tags


@pytest.mark.parametrize(
    ("changed", "words", "tag"),
    [
        (
            {"quantizer": "awq"},
            ["4-bit checkpoint in AWQ's format", "quantizer=awq: quant_bits=4, group_size=64."],
            "awq",
        ),
        (
            {"quantizer": "wanda", "sparsity": "0.5", "pattern": "2:4"},
            ["plain weights (pruned, 50% sparse, 2:4)", "wanda: sparsity=0.5, pattern=2:4."],
            "pruned",
        ),
        ({"quantizer": "rtn"}, ["rounded to nearest", "sym=true, quant_bits=4"], "gptq"),
    ],
)
def test_the_card_is_of_the_quantizer(
    changed: dict[str, str],
    words: list[str],
    tag: str,
    cell: tuple[str, Path],
    shared_store: MlflowClient,
    tmp_path: Path,
) -> None:
    for name, value in changed.items():
        shared_store.log_param(cell[0], f"resolved.{name}", value)
    text = exported(cell[0], tmp_path / "out")
    for word in words:
        assert word in " ".join(text.split()), word
    assert tag in ModelCard(text).data.tags
    foreign = {"awq": "damp_percent", "pruned": "-bit", "gptq": "damp_percent"}[tag]
    assert foreign not in text


def test_the_checkpoint_is_copied_without_mlflows_files_as_the_umask_says(
    cell: tuple[str, Path], tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        exported(f"runs:/{cell[0]}", tmp_path / "out")
    finally:
        os.umask(before)
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files["model.safetensors"].stat().st_mode & 0o777 == 0o644
    assert files["model.safetensors"].read_bytes() == b"weights"


def test_a_damaged_checkpoint_is_not_exported(cell: tuple[str, Path], tmp_path: Path) -> None:
    (cell[1] / "model.safetensors").write_bytes(b"weight!")
    with pytest.raises(UserError, match=r"model\.safetensors.* damaged"):
        exported(cell[0], tmp_path / "out")
    (cell[1] / "sha256.json").unlink()
    with pytest.raises(UserError, match=r"sha256\.json"):
        exported(cell[0], tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/tiny@main", "org/tiny@main"),
        ("sotu", "sotu"),
        ("/data/me/models/tiny", "tiny"),
        ("file:/data/me/my.jsonl", "file:my.jsonl"),
        ("file:data/my.jsonl", "file:my.jsonl"),
        ("mix:sotu=0.5,wikitext2=0.5", "mix:sotu=0.5,wikitext2=0.5"),
        ("mix:file:/data/me/a.txt=0.5,file:b/c.txt=0.5", "mix:file:a.txt=0.5,file:c.txt=0.5"),
    ],
)
def test_a_card_names_no_folder_of_the_machine(name: str, shown: str) -> None:
    assert export.public(name) == shown


@pytest.mark.parametrize(
    ("change", "loads"),
    [
        ({}, True),
        ({"quant_bits": "8", "group_size": "-1"}, True),
        ({"quant_bits": "3"}, False),
        ({"group_size": "16"}, False),
        ({"group_size": "256"}, False),
        ({"sym": "false"}, False),
    ],
)
def test_vllm_is_named_only_for_what_it_loads(change: dict[str, str], loads: bool) -> None:
    lines = export.runtimes(PARAMS | change)
    assert (lines[-1].startswith("vLLM")) == loads
    assert lines[0].startswith("transformers")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("/models/own.Q8_0.gguf", "own.Q8_0.gguf"),
        ("/models/own.GGUF", "own.GGUF"),
    ],
)
def test_a_model_from_a_gguf_file_had_been_rounded_before(
    model: str, words: str, tmp_path: Path
) -> None:
    assert words in export.precision(model, tmp_path, "onepass")
    assert "dequantized" in export.precision(model, tmp_path, "onepass")


def test_mistakes_are_sentences(cell: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for given, words in (
        ({"run": "auto", "out": "x"}, "run is missing"),
        ({"run": cell[0], "out": "auto"}, "out is missing"),
        ({"run": cell[0], "out": str(tmp_path / "full")}, "full.* empty"),
        ({"run": cell[0], "out": str(tmp_path / "full" / "file")}, "file.* empty"),
        ({"run": "0" * 32, "out": str(tmp_path / "new")}, "no such run"),
    ):
        with pytest.raises(UserError, match=words):
            export.run(given)
    assert not (tmp_path / "new").exists()
