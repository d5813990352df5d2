"""What `device` means: one GPU, which the process that computes sees as `cuda:0`, or none.

Libraries take the first GPU that they see, and some take all, whatever they are told. So a process
that computes sees exactly one, or none for `cpu`: that is set before torch is imported. Processes
that only plan or watch ask for GPUs in a short-lived process, and never open one themselves.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from colazero.devices.processor import cpu_dtype
from colazero.errors import UserError

log = logging.getLogger(__name__)

ORDER = "PCI_BUS_ID"
"""The order in which GPUs are numbered: as nvidia-smi does, not the fastest first."""
ALLOCATOR = "expandable_segments:True"
"""PyTorch's allocator grows its segments: blocks of many sizes would leave gaps between them."""
PROC = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver lists its devices on Linux."""


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
"""What `take` has chosen for this process."""


@lru_cache(maxsize=1)
def seen() -> Seen:
    """Ask, once, in a process that ends; a torch that is built for CPUs need not be asked."""
    installed = version("torch")
    if installed.endswith("+cpu"):
        return Seen((), f"torch {installed} is built for CPUs: install one that is built for CUDA")
    command = [sys.executable, str(Path(__file__).with_name("ask.py"))]
    ordered = {**os.environ, "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", ORDER)}
    done = subprocess.run(command, env=ordered, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return Seen(tuple(Card(**card) for card in found["cards"]), found["reason"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return Seen((), f"asking torch for GPUs ended with exit code {done.returncode}: {last}")


def cards() -> tuple[Card, ...]:
    """Return the GPUs that this process may use, in the order of `cuda:N`."""
    return tuple(_taken) or seen().cards


def present() -> bool:
    """Tell whether an NVIDIA device is there and not hidden, usable by torch or not."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return PROC.is_dir() and any(PROC.iterdir())


def resolve(device: str) -> str:
    """Return `cpu` or `cuda:N` for what was asked.

    UserError if there is no such GPU, if torch cannot use it, or if `auto` would take the CPU of a
    machine that has one.
    """
    if device == "cpu":
        return device
    found = cards()
    if device == "auto" and not found:
        if present():
            raise UserError(
                f"device='auto': this machine has an NVIDIA device that torch cannot use: "
                f"{seen().reason}. Mend that, or set device=cpu to compute on the CPU."
            )
        return "cpu"
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        reason = f" ({seen().reason})" if seen().reason and present() else ""
        raise UserError(
            f"device={device!r}: this machine has {len(found)} CUDA devices that torch can use"
            f"{reason}. Use device=cpu, or device=auto to take what there is."
        )
    _refuse_unusable(device, found if device in ("auto", "cuda") else found[index : index + 1])
    return f"cuda:{index}"


def _refuse_unusable(device: str, found: tuple[Card, ...]) -> None:
    """Raise UserError for a GPU that torch sees and cannot compute on."""
    for card in found:
        if card.problem:
            raise UserError(
                f"device={device!r}: torch cannot compute on {card.name} (compute capability "
                f"{card.capability}, driver {card.driver}): {card.problem}. Name another one "
                "(device=cuda:N), hide it (CUDA_VISIBLE_DEVICES), or set device=cpu."
            )


def showing(index: int | None) -> dict[str, str]:
    """Return the environment in which a process sees one GPU of those seen here, or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible if visible != [""] else [str(i) for i in range(1 + (index or 0))]
    return {**settings(), "CUDA_VISIBLE_DEVICES": "" if index is None else named[index].strip()}


def settings() -> dict[str, str]:
    """Return the environment of every process that computes, less which GPU it sees.

    What the user has set stays.
    """
    ours = {"CUDA_DEVICE_ORDER": ORDER, "PYTORCH_ALLOC_CONF": ALLOCATOR}
    return {name: os.environ.get(name) or value for name, value in ours.items()}


def take(device: str) -> str:
    """Let this process see the GPU that `device` means and no other; return what it is called.

    `cpu` or `cuda:0`. Must come before torch is imported. UserError as `resolve`.
    """
    resolved = resolve(device)
    index = None if resolved == "cpu" else int(resolved.partition(":")[2])
    if index is not None:
        card = cards()[index]
    os.environ |= showing(index)
    if index is None:
        return "cpu"
    _taken[:] = [card]
    return "cuda:0"


def facts(device: str) -> dict[str, str]:
    """Return what of a device decides a result's bits; nothing of CPUs, whose dtype does.

    Nothing either of a GPU that is not of this machine.
    """
    kind, _, index = device.partition(":")
    found = cards() if kind == "cuda" else ()
    if int(index or 0) >= len(found):
        return {}
    card = found[int(index or 0)]
    return {"device": card.name, "driver": card.driver, "compute capability": card.capability}


def tags(device: str) -> dict[str, str]:
    """Return a run's tags about the device that it computes on; of a CPU with its dtype."""
    kind = f"cpu ({cpu_dtype(device)})" if device == "cpu" else device.partition(":")[0]
    known: Mapping[str, str] = facts(device) or {"device": kind}
    return {f"colazero.{name.replace(' ', '_')}": value for name, value in known.items()}


def identity(device: str) -> str:
    """Return in one line all of a device that decides bits: it names results kept on disk."""
    return " ".join(tags(device).values())


def release() -> None:
    """Give back what this process holds of its GPU and does not use: it may wait for hours."""
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
