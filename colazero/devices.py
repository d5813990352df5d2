"""What a machine has: GPUs, main memory, and the dtype that its CPU computes in.

Libraries take the first GPU that they see, and some take all, whatever is asked for. So a process
that computes sees exactly one GPU, as `cuda:0`, or none for `cpu`. That is set before torch is
imported. Reading a GPU's free memory opens a context, which takes memory and, in exclusive mode,
the whole card. So processes that only plan or supervise read it in a short-lived process.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from colazero.errors import UserError

log = logging.getLogger(__name__)

ORDER = "PCI_BUS_ID"
"""GPUs are numbered as nvidia-smi does, not the fastest first."""
ALLOCATOR = "expandable_segments:True"
"""PyTorch's allocator grows its segments: blocks of many sizes would leave gaps between them."""
DRIVERS = (Path("/proc/driver/nvidia/gpus"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
"""Where NVIDIA's driver shows on Linux, and in Linux on Windows (WSL2), which lists no GPUs."""
CPU = Path("/proc/cpuinfo")
"""Where Linux lists a CPU's instructions."""
PATIENCE = 120
"""Seconds in which torch must list the GPUs: a hung driver never answers."""
BFLOAT16_SINCE = 8
"""The least compute capability of GPUs that multiply bfloat16."""
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
"""Where Linux shows groups of processes (cgroups), and those of this process."""
GROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Version of cgroups → files of limit and use, and the part of the use that is freed on demand."""


@dataclass(frozen=True)
class Card:
    """A GPU that torch sees; `free` and `total` in bytes. `problem`: why it cannot compute."""

    name: str
    capability: str
    driver: str
    free: int
    total: int
    problem: str = ""


@dataclass(frozen=True)
class Seen:
    """The GPUs that torch sees, and the `reason` where there are none."""

    cards: tuple[Card, ...]
    reason: str = ""


_taken: list[Card] = []
"""The GPU that `take` has chosen for this process."""


def cards() -> tuple[Card, ...]:
    """Return the GPUs that this process may use, in the order of `cuda:N`."""
    return tuple(_taken) or seen().cards


@lru_cache(maxsize=1)
def seen() -> Seen:
    """Return the GPUs that torch sees, listed once in a short-lived process."""
    installed = version("torch")
    if installed.endswith("+cpu"):
        return Seen((), f"torch {installed} is built for CPUs: install one that is built for CUDA")
    path = [os.environ.get("PYTHONPATH"), str(Path(__file__).resolve().parents[1])]
    environment = {"CUDA_DEVICE_ORDER": ORDER, **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "colazero.devices"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: inside a hung driver it does not end
        return Seen((), f"torch gave no answer in {PATIENCE} seconds: the GPU's driver hangs")
    try:
        answer = json.loads(out.splitlines()[-1])
        return Seen(tuple(Card(**card) for card in answer["cards"]), answer["reason"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (err.strip().splitlines() or ["no word"])[-1]
        return Seen((), f"asking torch for GPUs ended with exit code {process.returncode}: {last}")


def _answer() -> dict[str, Any]:
    """Return the GPUs that torch sees, in the form that `seen` reads."""
    import torch

    def first_line(error: BaseException) -> str:
        return (str(error).splitlines() or [type(error).__name__])[0]

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return {"cards": [], "reason": first_line(error)}
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        card: dict[str, Any] = {"name": about.name, "capability": f"{about.major}.{about.minor}"}
        card |= {"driver": _driver(), "total": about.total_memory}
        try:  # a GPU for which the wheel has no kernels is listed all the same
            torch.ones(2, device=f"cuda:{index}").sum().item()
            found.append(card | {"free": torch.cuda.mem_get_info(index)[0], "problem": ""})
        except RuntimeError as error:
            found.append(card | {"free": 0, "problem": first_line(error)})
    return {"cards": found, "reason": ""}


def _driver() -> str:
    """Return the version of NVIDIA's driver; `unknown` for other vendors."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # a library that is not NVIDIA's: its errors share no base
        return "unknown"


def present() -> bool:
    """Return whether an NVIDIA driver is installed and no GPU hidden, usable by torch or not."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in DRIVERS)


def resolve(device: str) -> str:
    """Return `cpu` or `cuda:N` for what was asked.

    Raise UserError if there is no such GPU, if torch cannot use it, or if `auto` would take the CPU
    of a machine that has a GPU.
    """
    if device == "cpu":
        return device
    found = cards()
    if device == "auto" and not found:
        if present():
            raise UserError(
                f"device='auto': this machine has an NVIDIA device that torch cannot use: "
                f"{seen().reason}. Repair that, or set device=cpu to compute on the CPU."
            )
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        reason = f" ({seen().reason})" if seen().reason and present() else ""
        raise UserError(
            f"device={device!r}: this machine has {len(found)} CUDA devices that torch can use"
            f"{reason}. Use device=cpu, or device=auto to take what there is."
        )
    for card in found if device in ("auto", "cuda") else found[index : index + 1]:
        if card.problem:
            raise UserError(
                f"device={device!r}: torch cannot compute on {card.name} (compute capability "
                f"{card.capability}, driver {card.driver}): {card.problem}. Name another one "
                "(device=cuda:N), hide it (CUDA_VISIBLE_DEVICES), or set device=cpu."
            )
    return f"cuda:{index}"


def shared_by(device: str) -> list[int]:
    """Return the numbers of the GPUs among which workers are divided: all, unless one is named."""
    resolved = resolve(device)
    if resolved == "cpu":
        return []
    return [*range(len(cards()))] if device in ("auto", "cuda") else [int(resolved[5:])]


def showing(index: int | None) -> dict[str, str]:
    """Return the variables with which a process sees one GPU of this machine, or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible if visible != [""] else [str(i) for i in range(1 + (index or 0))]
    return {**settings(), "CUDA_VISIBLE_DEVICES": "" if index is None else named[index].strip()}


def settings() -> dict[str, str]:
    """Return the variables that every computing process needs, apart from the visible GPU.

    Values that the user has set stay.
    """
    ours = {"CUDA_DEVICE_ORDER": ORDER, "PYTORCH_ALLOC_CONF": ALLOCATOR}
    return {name: os.environ.get(name) or value for name, value in ours.items()}


def take(device: str) -> str:
    """Make this process see only the GPU that `device` names; return `cpu` or `cuda:0`.

    Must come before torch is imported. Raise UserError as `resolve`.
    """
    resolved = resolve(device)
    index = None if resolved == "cpu" else int(resolved.partition(":")[2])
    chosen = [] if index is None else [cards()[index]]
    os.environ |= showing(index)
    if index is None:
        return "cpu"
    _taken[:] = chosen
    return "cuda:0"


def card_of(device: str) -> Card | None:
    """Return the GPU of this machine that `cuda:N` is; None for a CPU, or another machine's."""
    kind, _, index = device.partition(":")
    found = cards() if kind == "cuda" else ()
    return found[int(index or 0)] if int(index or 0) < len(found) else None


def facts(device: str) -> dict[str, str]:
    """Return what decides a result's bits of a GPU of this machine; of a CPU its dtype does."""
    card = card_of(device)
    if card is None:
        return {}
    return {"device": card.name, "driver": card.driver, "compute capability": card.capability}


def tags(device: str) -> dict[str, str]:
    """Return a run's tags about the device that it computes on; of a CPU with its dtype."""
    kind = f"cpu ({cpu_dtype(device)})" if device == "cpu" else device.partition(":")[0]
    known: Mapping[str, str] = facts(device) or {"device": kind}
    return {f"colazero.{name.replace(' ', '_')}": value for name, value in known.items()}


def identity(device: str) -> str:
    """Return in one line what decides bits on a device: it names results that are kept on disk."""
    return " ".join(tags(device).values())


def cpu_dtype(device: str) -> str:
    """Return the dtype that this machine's CPU computes in; `own` for other devices.

    It is part of a result, and so of its key.
    """
    if device != "cpu":
        return "own"
    try:
        flags = set(CPU.read_text().split())
    except OSError:
        flags = set()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a GPU has instructions for bfloat16: torch is slow, or fails, without."""
    card = card_of(device)
    return card is None or float(card.capability) >= BFLOAT16_SINCE


def settle(device: str) -> None:
    """Wait until a GPU has done all that it was given, before a clock is read; nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def release() -> None:
    """Give back the GPU memory that this process holds and does not use: it may wait for hours."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def main_memory() -> float:
    """Return the bytes of main memory that can be taken without anything being killed.

    Containers and schedulers of clusters limit groups of processes: whoever takes more than its
    group may have is killed, however much the machine has left.
    """
    return float(min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield what each group above this process has left, of those that are limited."""
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, (limit, used, reclaimable) = GROUPS, GROUP_FILES[2]
        elif "memory" in controllers.split(","):
            base, (limit, used, reclaimable) = GROUPS / "memory", GROUP_FILES[1]
        else:
            continue
        own = base / path.lstrip("/")
        for group in (own, *own.parents):
            with suppress(OSError, ValueError):  # not seen from in here, or the limit is "max"
                most, now = (int((group / name).read_text()) for name in (limit, used))
                rows = (group / "memory.stat").read_text().splitlines()
                freed = dict(row.split(maxsplit=1) for row in rows).get(reclaimable, 0)
                yield max(0, most - now + int(freed))


if __name__ == "__main__":
    print(json.dumps(_answer()))
