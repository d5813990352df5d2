"""Entry points, one file each: `colazero NAME`, `python -m entrypoints.NAME` or `mlflow run`."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from entrypoints import _interrupts

NAMES = ("select", "quantize", "evaluate", "single", "suite", "analyze", "clean", "export")
OPTIONAL = ("pip", "nvidia-ml-py", "optimum")
"""Dependencies that are not needed to start: an error names them where they are used."""


def main() -> None:
    """Run the entry point that the command line names: `colazero suite --seeds=42-46`."""
    words = sys.argv[1:]
    if not words or words[0] not in NAMES:
        asked = words[:1] in (["--help"], ["-h"])
        said = f"usage: colazero {{{','.join(NAMES)}}} [--parameter=value ...]"
        if words and not asked:
            said += f"\nerror: unknown command {words[0]!r}. Allowed: {', '.join(NAMES)}."
        print(said, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    _begin()
    del sys.argv[0]
    runpy.run_module(f"entrypoints.{words[0]}", run_name="__main__", alter_sys=True)


def missing() -> list[str]:
    """Return the project's dependencies that are not installed, without importing any."""
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [line for line in metadata.requires("colazero") or () if "extra ==" not in line]
    lacking = []
    for name in (re.split(r"[^\w-]", line)[0] for line in lines):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            lacking.append(name)
    return [name for name in lacking if name not in OPTIONAL]


def _begin() -> None:
    """Refuse a Python that lacks a library, and hold signals back while libraries are imported.

    Otherwise a signal in these seconds would leave the run of `mlflow run` open.
    """
    if lacking := missing():
        print(
            f"error: colazero needs libraries that this Python ({sys.executable}) does not have: "
            f"{', '.join(lacking)}. Activate the environment in which it is installed, or run "
            "`pip install -e .` in the project's folder.",
            file=sys.stderr,
        )
        sys.exit(2)
    _interrupts.install()


if sys.argv[:1] == ["-m"]:  # `python -m entrypoints.NAME` is looking for the module
    _begin()
