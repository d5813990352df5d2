"""A Python that lacks a library is told so in a sentence, whichever library and entry point."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from entrypoints import _requirements

ROOT = Path(__file__).resolve().parents[3]
ENTRY_POINTS = ("select", "quantize", "evaluate", "single", "suite", "analyze", "clean")
MISSED_WHERE_USED = {"pip", "nvidia-ml-py", "optimum"}


def test_the_modules_are_those_of_the_projects_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split("=|>", line)[0] for line in project["dependencies"]} - MISSED_WHERE_USED
    of_module = packages_distributions()
    provided = {_plain(name) for module in _requirements.NEEDED for name in of_module[module]}
    assert set(map(_plain, wanted)) <= provided
    assert not set(map(_plain, MISSED_WHERE_USED)) & provided
    for module in _requirements.NEEDED:
        assert set(map(_plain, of_module[module])) & set(map(_plain, wanted)), module


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_python_that_has_none_of_them(name: str) -> None:
    """Without `site` there are no installed packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", f"entrypoints.{name}"],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: colazero needs libraries that this Python")
    assert ", ".join(_requirements.NEEDED) in line


@pytest.mark.parametrize("module", ["torch", "yaml", "lm_eval"])
def test_a_python_that_lacks_one(module: str, in_workers: Callable[[str], None]) -> None:
    in_workers(f"import sys\nsys.modules[{module!r}] = None")
    done = subprocess.run(
        [sys.executable, "-m", "entrypoints.single", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"does not have: {module}. Activate" in line


def test_nothing_is_imported_to_look_for_it() -> None:
    code = (
        "import sys; from entrypoints import _requirements as r; found = r.missing(); "
        "print(found, sorted(set(r.NEEDED) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] []\n"
