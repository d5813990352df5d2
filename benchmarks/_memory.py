"""The most memory that this process has had."""

from __future__ import annotations

from pathlib import Path


def peak_resident() -> float:
    """Return this process's peak of resident memory in GiB, libraries and mapped files among it.

    From Linux's VmHWM: getrusage's ru_maxrss starts, in a process that another one has started,
    at what that one had in use.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**20
