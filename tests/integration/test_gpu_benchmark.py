"""The GPU benchmark runs at a tiny size on a CPU, and its floor counts what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the script in a process; return its exit code and its JSON lines."""
    command = [sys.executable, str(SCRIPT), "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, found


def test_it_runs_at_a_tiny_size(tmp_path: Path) -> None:
    code, lines = lines_of("--tiny", f"--out={tmp_path / 'kept'}")
    kept = (tmp_path / "kept" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines
    assert code == 0
    assert {"card", "driver", "python", "torch", "triton"} <= set(lines[0])
    found = {(line["who"], line["stage"]): line["value"] for line in lines[1:]}
    assert found["here", "verify"] > 0
    for stage in ("quantize", "save", "evaluate"):
        assert 0 < found["floor", stage] < found["here", stage]
    assert found["default", "quantize"] > 0
    assert found["here", "peak_host_gib"] > 0


def test_a_few_layers_without_the_default_call() -> None:
    code, lines = lines_of("--tiny", "--skip-default", "--layers=1")
    assert code == 0
    assert {(line["layers"], line["of"]) for line in lines[1:]} == {(1, 2)}
    assert {line["who"] for line in lines[1:]} == {"floor", "here"}


def test_triton_s_arithmetic_is_checked_without_a_card() -> None:
    pytest.importorskip("triton", reason="needs triton, as torch for CUDA does")
    code, lines = lines_of("--check", "--interpreter")
    checked = [line for line in lines if line.get("check") == "columns"]
    assert code == 0
    assert [line["codes_equal"] for line in checked] == [1.0] * 3
    assert {line["kernel"] for line in checked} == {"triton"}
    assert {line["order"] for line in checked} == {"none", "act_group_aware", "desc_act"}


def shifted(values: Any, weights: Any, factor: Any, *rest: Any) -> None:
    """Columns as the kernel of an earlier version computed them: by the first column's numbers."""
    from colazero.gptq import columns

    size = len(factor)
    first = torch.nn.functional.pad(factor[:, 0], (0, size)).unfold(0, size, 1)[:size]
    columns.reference(values, weights, first, *rest)


@pytest.mark.parametrize("kernel", ["shifted", "torch"])
def test_a_wrong_kernel_and_none_at_all_end_with_1(
    script: ModuleType, kernel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from colazero.gptq import columns

    block = {"shifted": shifted, "torch": columns.reference}[kernel]
    monkeypatch.setattr(columns, "for_device", lambda *_: (block, kernel))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--check", "--cpu", f"--out={tmp_path}"])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 1
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    equal = [line["codes_equal"] for line in lines if line.get("check") == "columns"]
    assert len(equal) == 3
    assert max(equal) < 1


def test_a_process_that_fails_costs_its_own_results_alone(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPTQModel's call does where it cannot be compiled: what was measured before stays."""
    results = script.Results(None, True)

    def rows_of(_: str, arguments: list[str]) -> Iterator[dict[str, float]]:
        yield {"quantize": 1.0}
        if arguments[1] == "default":
            raise subprocess.CalledProcessError(1, arguments)

    monkeypatch.setattr(script, "rows_of", rows_of)
    assert not script.measure("tiny", [], True, results, None)
    errors = [line["who"] for line in results.lines if "error" in line]
    assert errors == ["default"]
    assert {line["who"] for line in results.lines if "value" in line} >= {"here", "floor"}


def test_a_child_s_lines_come_with_its_failure(script: ModuleType) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        list(script.rows_of(str(SCRIPT), ["--worker", "nobody", "tiny", "."]))


def test_what_a_cell_launches_and_copies_is_counted(tiny_llama: Path) -> None:
    from safetensors.torch import load_file

    from benchmarks import _device

    few, many = (_device.count(tiny_llama, 2, 64, windows) for windows in (65, 129))
    assert set(few) == {"unquantized", "quantize", "evaluate", "verify"}
    for counts in few.values():
        assert set(counts) == set(_device.SECONDS)
        assert counts["launches"] > 0
        assert _device.seconds(counts) > 0
    weights = sum(t.nbytes for t in load_file(tiny_llama / "model.safetensors").values())
    up = few["quantize"]["bytes_up"] + few["quantize"]["bytes_ahead"]
    assert weights <= up < 2 * weights + 2**16
    # The first window and two batches of 64 take three passes where one batch takes two.
    assert 1.3 < many["evaluate"]["launches"] / few["evaluate"]["launches"] < 2.1
    assert many["quantize"]["launches"] == few["quantize"]["launches"]
    assert many["evaluate"]["python_calls"] > few["evaluate"]["python_calls"]


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
    found = dict(script.default_call(tmp_path, "cpu", 8, 128, 6))
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
