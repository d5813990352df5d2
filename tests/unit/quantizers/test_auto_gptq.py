"""AutoGPTQ around its nested project, which needs a GPU and an environment of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient
from mlflow.utils.process import ShellCommandException

from colazero import pipeline
from colazero.errors import UserError
from colazero.quantizers import auto_gptq
from colazero.settings import RunConfig
from colazero.store import record
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Work

SECONDS = {"quant_time_sec": 7.0, "save_time_sec": 2.0}


@pytest.fixture
def script() -> ModuleType:
    """The nested project's own script."""
    spec = importlib.util.spec_from_file_location("nested", auto_gptq.PROJECT / "quantize.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seconds_are_those_of_the_nested_project(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    given: dict[str, str] = {}
    handed_over: list[Any] = []
    windows = np.asfortranarray(np.arange(32, dtype=np.int32).reshape(2, 16))

    def project(_: Path, entry_point: str, parameters: Mapping[str, str]) -> None:
        given.update(parameters)
        declared = yaml.safe_load((auto_gptq.PROJECT / "MLproject").read_text())
        assert set(parameters) == set(declared["entry_points"][entry_point]["parameters"])
        Path(parameters["out"]).mkdir()
        (Path(parameters["out"]) / "seconds.json").write_text(json.dumps(SECONDS))
        handed_over.append(load_file(parameters["calibration"])["input_ids"])

    monkeypatch.setattr(auto_gptq, "run_project", project)
    calibration = CalibrationSet(windows, (), {})
    settings = QuantizationSettings(4, 64, False, True, 0.05, False)
    done = auto_gptq.quantize(Work(tiny_llama, calibration, settings, tmp_path / "out", "cuda:1"))
    assert done == QuantizationReport(**SECONDS, modules=[])
    assert given["device"] == "cuda:1"
    assert np.array_equal(handed_over[0], windows), "in their order, whatever their strides"
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "seconds.json").exists()


def test_saving_is_timed_where_it_is_done(
    script: ModuleType, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Model:
        def quantize(self, rows: list[Any]) -> None:
            spend(7)

        def save_quantized(self, out: str) -> None:
            spend(2)
            Path(out).mkdir()
            (Path(out) / "quantize_config.json").write_text("{}")

    library: Any = ModuleType("auto_gptq")
    library.AutoGPTQForCausalLM = SimpleNamespace(from_pretrained=lambda *_: Model())
    library.BaseQuantizeConfig = SimpleNamespace
    monkeypatch.setitem(sys.modules, "auto_gptq", library)
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: now))
    windows = tmp_path / "windows.safetensors"
    save_file({"input_ids": np.zeros((1, 16), dtype=np.int32)}, windows)
    words = {"bits": "4", "group_size": "64", "desc_act": "false", "sym": "true"}
    options = argparse.Namespace(
        model=tiny_llama, calibration=windows, out=tmp_path / "out", damp_percent="0.05", **words
    )
    assert script.quantize(options) == SECONDS


@pytest.mark.parametrize(
    ("device", "before", "visible"),
    [("cuda:0", None, "0"), ("cuda:1", None, "1"), ("cuda:1", "2,5", "5"), ("cuda", "3", "3")],
)
def test_the_device_asked_for_is_the_only_one_it_sees(
    script: ModuleType, device: str, before: str | None, visible: str
) -> None:
    assert script.visible(device, before) == visible


def test_what_it_does_not_tell_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        mlflow.set_experiment("test")
        with record.run("quantize", "quantize") as run_id:
            record.log_quantization(QuantizationReport(*SECONDS.values(), []))
        logged = MlflowClient().get_run(run_id).data.metrics
        assert {name.rpartition("/")[2]: value for name, value in logged.items()} == SECONDS
    finally:
        mlflow.set_tracking_uri(uri)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", ""])
def test_pickled_weights_are_refused(weights: str, script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    if weights:
        (tmp_path / weights).write_bytes(b"pickle")
    with pytest.raises(SystemExit, match=r"has no \.safetensors file"):
        script.copy_with_older_config(tmp_path, tmp_path)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "training_args.bin", "modeling_mine.py"])
def test_only_safetensors_and_json_reach_the_older_libraries(
    other: str, script: ModuleType, tiny_llama: Path, tmp_path: Path
) -> None:
    model, folder = tmp_path / "model", tmp_path / "folder"
    folder.mkdir()
    shutil.copytree(tiny_llama, model)
    (model / other).write_bytes(b"pickle or code")
    script.copy_with_older_config(model, folder)
    assert (folder / "model.safetensors").is_symlink()
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}


def test_an_environment_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ShellCommandException("Non-zero exit code: 2")

    monkeypatch.setattr(mlflow.projects, "run", fail)
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    with pytest.raises(UserError, match=r"auto_gptq failed: Non-zero exit code: 2"):
        auto_gptq.run_project(auto_gptq.PROJECT, "quantize", {})


def test_group_aware_order_is_refused_before_any_work() -> None:
    # Resolved for another machine, as a suite on a cluster is: that one may have the device.
    config = RunConfig(quantizer="auto-gptq", act_group_aware=True, device="cuda:0")
    with pytest.raises(UserError, match=r"'auto-gptq'.*act_group_aware"):
        pipeline.check(config, [], [], device="cuda:0")
    pipeline.check(config.model_copy(update={"act_group_aware": "auto"}), [], [], device="cuda:0")
