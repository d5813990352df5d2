"""Main memory that this process may still take: of the machine, or of the group that it runs in.

Containers and schedulers of clusters limit groups of processes (cgroups): whoever takes more than
its group may have is killed, however much the machine has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""Where Linux shows groups, and to which a process belongs."""
FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Version of cgroups → where limit and use stand, and what of the use goes when it is asked for."""


def available() -> float:
    """Return the bytes that can be taken without anything being killed, as far as can be known."""
    return float(min([psutil.virtual_memory().available, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """Yield what each group above this process has left, of those that are limited."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, version = GROUPS, 2
        elif "memory" in controllers.split(","):
            base, version = GROUPS / "memory", 1
        else:
            continue
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(base):
                yield from _left(folder, *FILES[version])


def _left(group: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """Yield what a group has left; nothing where it has no limit, or is not seen from in here."""
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        rows = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no such file, or "max"
        return
    counts = dict(row.split(maxsplit=1) for row in rows)
    yield max(0, most - now + int(counts.get(reclaimable, 0)))
