"""The GPU benchmark runs at a tiny size on a CPU, and its floor counts what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_at_a_tiny_size() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--json"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["tiny"]
    assert found["here"]["verify"] > 0
    for stage in ("quantize", "save", "evaluate"):
        assert 0 < found["floor"][stage] < found["here"][stage]
    assert found["default"]["quantize"] > 0
    assert found["here"]["peak_host_gib"] > 0


def test_what_the_default_call_compiles_once_is_not_counted(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    toys: list[Path] = []

    class Model:
        first = True

        def quantize(self, rows: object) -> None:
            nonlocal now
            now += 30 if Model.first else 1
            Model.first = False

        def save(self, folder: str) -> None:
            nonlocal now
            now += 2

    library: Any = ModuleType("gptqmodel")
    library.GPTQModel = SimpleNamespace(load=lambda *_, **__: Model())
    library.QuantizeConfig = SimpleNamespace
    monkeypatch.setitem(sys.modules, "gptqmodel", library)
    hooked: Any = ModuleType("gptqmodel.nn_modules.hooked_linear")
    hooked.STOP_FORWARD_EXCEPTION = Exception()
    monkeypatch.setitem(sys.modules, "gptqmodel.nn_modules", ModuleType("gptqmodel.nn_modules"))
    monkeypatch.setitem(sys.modules, hooked.__name__, hooked)
    monkeypatch.setattr(script, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(script, "make_model", lambda shape, device, folder: toys.append(folder))
    found = script.default_call(tmp_path, "cpu", 8, 128, 6)
    assert (found["quantize"], found["save"]) == (1, 2)
    assert len(toys) == 1


def test_the_floor_counted_by_hand(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 6, "intermediate_size": 12, "num_hidden_layers": 2, "vocab_size": 10}
    monkeypatch.setitem(script.SHAPES, "by hand", shape)
    monkeypatch.setattr(script, "device_speed", lambda device: (1.0, 1.0))
    # A layer has 4·6² + 3·6·12 = 360 weights. 2 windows of 4 are 8 tokens. Each takes 2·360, and
    # 2·4·6 for attention: 8·768 = 6,144.
    # Inputs are three times 6 wide and once 12. Hessians: 8·(3·36 + 144) = 2,016.
    # Factors: 4/3·(3·216 + 1,728) = 3,168. Errors: 4·6·36 + 2·12·36 + 6·144 = 2,592.
    # Evaluated are 12 tokens, with a head of 6·10.
    assert script.floor("by hand", "cpu", samples=2, seq_len=4, windows=3) == pytest.approx(
        {
            "quantize": 2 * (6_144 + 2_016 + 3_168 + 2_592),
            "evaluate": 12 * (2 * 768 + 120),
            "save": (720 + 120) / 2,
        }
    )


def test_the_floor_of_a_7b_model(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "device_speed", lambda device: (1.0, 1.0))
    floor = script.floor("llama-2-7b", "cuda:0", 128, 2048, 166)
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert linear == pytest.approx(6.48e9, rel=0.01)
    # Two operations a weight and token, and the head; attention adds a few per cent at 2,048.
    least = 2 * 166 * 2048 * (linear + 4096 * 32_000)
    assert least < floor["evaluate"] < 1.1 * least
    assert floor["quantize"] > 2 * 128 * 2048 * linear
