"""What torch sees of this machine's GPUs, as JSON: a process of its own, run by `devices.seen`.

A process that asks a GPU for its memory opens a context there, which takes some of it and, in
exclusive mode, all of the card. Here it ends with the process. Imports nothing of this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def answer() -> dict[str, Any]:
    """Return `cards`, and where there are none that torch sees, the `reason` that it gives."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return {"cards": [], "reason": _first_line(error)}
    driver = _driver()
    return {
        "cards": [_card(index) | {"driver": driver} for index in range(torch.cuda.device_count())],
        "reason": "",
    }


def _card(index: int) -> dict[str, Any]:
    """Describe a GPU, and try it: one that the wheel has no kernels for is seen all the same."""
    import torch

    about = torch.cuda.get_device_properties(index)
    found = {"name": about.name, "capability": f"{about.major}.{about.minor}"}
    try:
        torch.ones(2, device=f"cuda:{index}").sum().item()
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return found | {"free": 0, "total": about.total_memory, "problem": _first_line(error)}
    return found | {"free": free, "total": total, "problem": ""}


def _driver() -> str:
    """Return the version of NVIDIA's driver; `unknown` for other vendors."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # not installed, or a library that is not NVIDIA's: its errors share no base
        return _driver_file()


def _driver_file() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    print(json.dumps(answer()))
