"""The GPU benchmark runs at a tiny size on a CPU, and its floor counts what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
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
    for stage in ("quantize", "save", "load", "evaluate"):
        assert 0 < found["floor"][stage] < found["here"][stage]
    assert found["default"]["quantize"] > 0
    assert found["here"]["peak_host_gib"] > 0


def test_the_floor_of_a_7b_model(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "device_speed", lambda device: (1.0, 1.0))
    floor = script.floor("llama-2-7b", "cuda:0", 128, 2048, 166)
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert linear == pytest.approx(6.48e9, rel=0.01)
    # Two operations a weight and token, and the head; attention adds a few per cent at 2,048.
    least = 2 * 166 * 2048 * (linear + 4096 * 32_000)
    assert least < floor["evaluate"] < 1.1 * least
    assert floor["quantize"] > 2 * 128 * 2048 * linear
