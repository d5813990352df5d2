"""How an entry point begins: a Python that lacks a library, a script, the console command."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import entrypoints

ROOT = Path(__file__).resolve().parents[3]


def call(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, **more
    )


@pytest.mark.parametrize("name", entrypoints.NAMES)
def test_a_python_that_has_no_library(name: str) -> None:
    """Without `site` there are no installed packages."""
    done = call("-S", "-m", f"entrypoints.{name}", env={"PATH": ""})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: colazero needs libraries that this Python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        wanted = requirement.partition(">=")[0]
        assert (f" {wanted}," in line or f" {wanted}." in line) == (
            wanted not in entrypoints.OPTIONAL
        )


@pytest.mark.parametrize("package", ["torch", "pyyaml", "lm-eval"])
def test_a_python_that_lacks_one(package: str, in_workers: Callable[[str], None]) -> None:
    in_workers(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        f"    if name == {package!r}: raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version"
    )
    done = call("-m", "entrypoints.single", "--help")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"does not have: {package}. " in line


def test_no_library_is_imported_to_look_for_it() -> None:
    code = "import sys, entrypoints as e; print(e.missing(), {'torch', 'numpy'} & set(sys.modules))"
    assert call("-c", code).stdout == "[] set()\n"


@pytest.mark.parametrize("name", entrypoints.NAMES)
def test_a_script_says_how_to_run_it(name: str) -> None:
    done = call(f"entrypoints/{name}.py", "--plan=true")
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"python -m entrypoints.{name}" in line


def test_the_console_command_runs_an_entry_point_with_its_parameters() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["colazero"].partition(":")
    command = f"import {module}; {module}.{function}()"
    done = call("-c", command, "single", "--sed=1")
    assert done.returncode == 2
    assert "'sed'" in done.stderr
    assert "'seed'" in done.stderr
    done = call("-c", command, "sweep")
    assert done.returncode == 2
    assert "'sweep'" in done.stderr
    assert all(name in done.stderr for name in entrypoints.NAMES)
    assert call("-c", command, "--help").returncode == 0
