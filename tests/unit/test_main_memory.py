"""Main memory as a container or a cluster's scheduler limits it: files as Linux shows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from colazero import devices

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 20 GiB free, whose groups are in the folder returned."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=20 * GIB))
    monkeypatch.setattr(devices, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(devices, "OWN_GROUPS", tmp_path / "own")
    return tmp_path / "groups"


def group(folder: Path, version: int, limit: str, used: int, reclaimable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = devices.GROUP_FILES[version]
    for name, text in zip(names, (limit, str(used)), strict=False):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {reclaimable}\n")


def belongs(machine: Path, *lines: str) -> None:
    machine.with_name("own").write_text("".join(f"{line}\n" for line in lines))


def test_without_groups_it_is_the_machines(machine: Path) -> None:
    assert devices.main_memory() == 20 * GIB


def test_a_group_that_may_have_less_than_the_machine_decides(machine: Path) -> None:
    belongs(machine, "0::/job/step")
    group(machine / "job" / "step", 2, str(8 * GIB), 3 * GIB, GIB)
    assert devices.main_memory() == 6 * GIB, "files that are only cached go when asked for"


def test_a_group_above_decides_too(machine: Path) -> None:
    belongs(machine, "0::/job/step")
    group(machine / "job", 2, str(4 * GIB), 3 * GIB)
    group(machine / "job" / "step", 2, "max", GIB)
    assert devices.main_memory() == GIB


def test_the_older_interface(machine: Path) -> None:
    belongs(machine, "5:cpuset:/", "4:cpu,memory:/slurm/job", "0::/")
    group(machine / "memory" / "slurm" / "job", 1, str(4 * GIB), GIB, GIB // 2)
    group(machine / "memory", 1, str(2**63 - 4096), 30 * GIB)
    assert devices.main_memory() == 3.5 * GIB


def test_a_container_sees_its_own_group_at_the_top(machine: Path) -> None:
    belongs(machine, "4:memory:/docker/0123abcd")
    group(machine / "memory", 1, str(2 * GIB), GIB)
    assert devices.main_memory() == GIB


def test_a_full_group_has_nothing_left(machine: Path) -> None:
    belongs(machine, "0::/")
    group(machine, 2, str(GIB), GIB + 5)
    assert devices.main_memory() == 0
