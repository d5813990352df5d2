"""What `device` means: one GPU or none, set before torch is imported, or a refusal with reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.reading import table as checks
from colazero import devices, reuse
from colazero.blocks.weights import eval_dtype
from colazero.devices import Card, Seen
from colazero.errors import UserError
from colazero.reuse import differences
from colazero.settings import RunConfig
from colazero.suite import ray as on_ray
from colazero.types import Model

ROOT = Path(__file__).resolve().parents[2]
H100 = Card("NVIDIA H100 80GB HBM3", "9.0", "570.86", 70 * 10**9, 80 * 10**9)
EXTRAS = {"quantize": ["calibration"]}
RTX = Card("NVIDIA GeForce RTX 4090", "8.9", "570.86", 20 * 10**9, 24 * 10**9)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what makes this a machine of such GPUs; what a test takes, it takes for itself."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(devices, "_taken", [])
    for name in ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF"):
        os.environ.pop(name, None)  # GPTQModel, imported by another test, sets the second

    def make(*cards: Card, reason: str = "", driver: Path | None = None) -> None:
        monkeypatch.setattr(devices, "seen", lambda: Seen(cards, reason))
        monkeypatch.setattr(devices, "DRIVERS", (driver or Path("/nowhere"),))

    return make


@pytest.mark.parametrize(
    ("device", "before", "called", "sees"),
    [
        ("auto", None, "cuda:0", "0"),
        ("cuda", None, "cuda:0", "0"),
        ("cuda:1", None, "cuda:0", "1"),
        ("cuda:1", "GPU-ab, GPU-cd", "cuda:0", "GPU-cd"),
        ("cpu", None, "cpu", ""),
        ("cpu", "3", "cpu", ""),
    ],
)
def test_a_process_that_computes_sees_the_gpu_that_is_meant_and_no_other(
    machine: Any, device: str, before: str | None, called: str, sees: str
) -> None:
    machine(H100, RTX)
    if before:
        os.environ["CUDA_VISIBLE_DEVICES"] = before
    assert devices.take(device) == called
    assert os.environ["CUDA_VISIBLE_DEVICES"] == sees
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert os.environ["PYTORCH_ALLOC_CONF"] == devices.ALLOCATOR
    assert devices.resolve(called) == called, "and again, in this process"


def test_the_gpu_that_was_taken_is_the_one_that_is_told(machine: Any) -> None:
    machine(H100, RTX)
    assert devices.tags(devices.take("cuda:1")) == {
        "colazero.device": RTX.name,
        "colazero.driver": "570.86",
        "colazero.compute_capability": "8.9",
    }


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("fpu avx2", "float32"), ("avx2 avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")],
)
def test_a_cpu_is_told_with_the_dtype_that_decides_its_bits(
    flags: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name : any\nflags : {flags}\n")
    monkeypatch.setattr(devices, "CPU", cpuinfo)
    assert devices.cpu_dtype("cpu") == dtype
    assert devices.tags("cpu") == {"colazero.device": f"cpu ({dtype})"}
    assert devices.identity("cpu") == f"cpu ({dtype})"


def test_what_the_user_set_for_the_allocator_stays(machine: Any) -> None:
    machine(H100)
    os.environ["PYTORCH_ALLOC_CONF"] = "max_split_size_mb:64"
    devices.take("cuda")
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64"


@pytest.mark.parametrize("name", ["single", "quantize", "evaluate", "select"])
def test_every_entry_point_takes_its_device_before_torch_is_imported(name: str) -> None:
    code = f"""
import sys, entrypoints.{name} as entry
from colazero import devices
def take(device):
    sys.exit(10 + ("torch" in sys.modules))
devices.take = take
entry.run(dict.fromkeys([*entry.PARAMETERS, *{EXTRAS.get(name, [])}, "preset"], "auto"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 10


def test_no_gpu_is_the_cpu(machine: Any) -> None:
    machine(reason="No CUDA GPUs are available")
    assert devices.resolve("auto") == "cpu"
    with pytest.raises(UserError, match=r"device='.* 0 CUDA"):
        devices.resolve("cuda:0")


def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason(
    machine: Any, tmp_path: Path
) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    why = "The NVIDIA driver on your system is too old (found version 11040)"
    machine(reason=why, driver=tmp_path)
    for device in ("auto", "cuda"):
        with pytest.raises(UserError) as caught:
            devices.resolve(device)
        assert why in str(caught.value)
    assert devices.resolve("cpu") == "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert devices.resolve("auto") == "cpu", "it is hidden on purpose"


def test_a_gpu_that_the_wheel_has_no_kernels_for_is_refused(machine: Any) -> None:
    old = replace(RTX, name="Tesla K40", capability="3.5", problem="no kernel image is available")
    machine(H100, old)
    for device in ("auto", "cuda", "cuda:1"):
        with pytest.raises(UserError, match=r"cannot compute on Tesla K40 .*no kernel image"):
            devices.resolve(device)
    assert devices.resolve("cuda:0") == "cuda:0"


def test_cells_on_other_cards_or_drivers_have_keys_of_their_own(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "data_context", lambda *_: {})
    monkeypatch.setattr(reuse, "code_context", lambda *_: {})
    model = Model("m", Path("m"), "1")

    def key(card: Card, device: str = "cuda:0") -> str:
        machine(card, card)
        return reuse.key_of(RunConfig(device=device), model)

    assert key(H100) == key(H100, "cuda:1")
    assert key(H100) == key(replace(H100, free=1)), "memory changes no result"
    others = [replace(H100, driver="580.1"), replace(H100, capability="9.1"), RTX]
    assert len({key(H100), *map(key, others), key(H100, "cpu")}) == 5


def test_what_is_kept_on_disk_is_of_one_kind_of_device(machine: Any) -> None:
    found = []
    for card in (H100, RTX):
        machine(card)
        found.append(devices.identity("cuda:0"))
    assert len({*found, devices.identity("cpu")}) == 3


def test_another_device_is_named_as_why_a_cell_is_new() -> None:
    said = differences({"device": H100.name}, {"device": RTX.name})
    assert said == f"device was {H100.name} and is {RTX.name}"


def test_a_worker_of_ray_without_a_gpu_sees_none(machine: Any) -> None:
    machine(H100)
    assert on_ray._gpu({"CPU": 1, "GPU": 0})["CUDA_VISIBLE_DEVICES"] == ""
    mine = on_ray._gpu({"CPU": 1, "GPU": 1})
    assert mine["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_VISIBLE_DEVICES" not in mine, "Ray sets it"


FAKE_TORCH = """
class _Of:
    name, major, minor, total_memory = "NVIDIA H100", 9, 0, 80
class cuda:
    init = staticmethod(lambda: None)
    device_count = staticmethod(lambda: 2)
    get_device_properties = staticmethod(lambda i: _Of)
    mem_get_info = staticmethod(lambda i: (70 + i, 80))
def ones(n, device):
    if device == "cuda:1":
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\\nmore")
    class T:
        sum = item = lambda self: self
    return T()
"""


def test_gpus_are_asked_for_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "version", lambda _: "2.13.0+cu130")
    devices.seen.cache_clear()
    try:
        first, second = devices.seen().cards
    finally:
        devices.seen.cache_clear()
    assert (first.name, first.capability, first.free, first.problem) == (
        "NVIDIA H100",
        "9.0",
        70,
        "",
    )
    assert second.problem == "CUDA error: all CUDA-capable devices are busy"


def test_a_driver_that_hangs_is_an_answer_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = FAKE_TORCH.replace("lambda: None", "lambda: __import__('time').sleep(60)")
    (tmp_path / "torch.py").write_text(hangs)
    (tmp_path / "gpus").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "version", lambda _: "2.13.0+cu130")
    monkeypatch.setattr(devices, "PATIENCE", 2)
    monkeypatch.setattr(devices, "DRIVERS", (tmp_path / "gpus",))
    devices.seen.cache_clear()
    try:
        with pytest.raises(UserError, match=r"device='auto'.*2 seconds.*driver hangs"):
            devices.resolve("auto")
        assert devices.resolve("cpu") == "cpu"
    finally:
        devices.seen.cache_clear()


@pytest.mark.parametrize("place", ["gpus/0000:01:00.0/information", "lib/libcuda.so.1"])
def test_the_cpu_is_not_taken_in_silence_where_a_driver_is_installed(
    place: str, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Linux the driver lists its GPUs; within Windows (WSL2) there is its library alone."""
    machine(reason="torch 2.13.0+cpu is built for CPUs")
    folder = tmp_path / place.partition("/")[0]
    monkeypatch.setattr(devices, "DRIVERS", (tmp_path / "gpus", tmp_path / "lib/libcuda.so.1"))
    assert devices.resolve("auto") == "cpu"
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    assert folder.is_dir()
    with pytest.raises(UserError, match=r"device='auto'.*built for CPUs"):
        devices.resolve("auto")


@pytest.mark.parametrize(
    ("capability", "own", "dtype"),
    [
        ("7.5", "bfloat16", "float16"),
        ("7.5", "float16", "float16"),
        ("7.0", "float32", "float16"),
        ("8.0", "bfloat16", "bfloat16"),
        ("12.0", "float32", "bfloat16"),
    ],
)
def test_a_gpu_without_bfloat16_computes_in_float16(
    capability: str, own: str, dtype: str, machine: Any, tmp_path: Path
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(dtype=own).save_pretrained(tmp_path)
    machine(replace(RTX, capability=capability))
    assert str(eval_dtype(tmp_path, "cuda:0")) == f"torch.{dtype}"


def test_a_process_that_cannot_ask_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "version", lambda _: "2.13.0+cu130")
    devices.seen.cache_clear()
    try:
        assert "libcudart.so.13: cannot open" in devices.seen().reason
    finally:
        devices.seen.cache_clear()


def test_what_is_asked_of_the_real_torch_is_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "colazero.devices"], cwd=ROOT, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert set(found) == {"cards", "reason"}
    assert found["cards"] or found["reason"]


def test_runs_on_different_devices_are_told() -> None:
    import pandas as pd

    names = [H100.name, H100.name, RTX.name, ""]
    said = checks.mixed_devices(pd.DataFrame({"device_name": names}))
    assert f"1 on {RTX.name}, 2 on {H100.name}" in said
    assert checks.mixed_devices(pd.DataFrame({"device_name": names[:2]})) == ""
