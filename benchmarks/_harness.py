"""What benchmarks share: options, processes of their own, a clock, and peak memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colazero.errors import UserError
from colazero.settings import Settings
from colazero.suite_settings import parse


def options_of(about: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the head of a script; --json asks for JSON."""
    parser = argparse.ArgumentParser(
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def read(
    parser: argparse.ArgumentParser, kind: type[Settings]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return all options, and of them the parameters of `kind`, or `preset`, that were given.

    A wrong one ends the program as argparse does with its own: a sentence, and exit code 2.
    """
    names = ("preset", *kind.model_fields)
    for name in names:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    given = {name: value for name, value in vars(options).items() if name in names}
    try:
        parse(kind, {"preset": "demo"} | given)
    except UserError as error:
        parser.error(str(error))
    return options, given


@contextmanager
def told() -> Iterator[None]:
    """End the program with the sentence of a mistake that shows while it measures."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def rows_of(script: str, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run a script in a process of its own; yield its lines of JSON as they come.

    What it holds, patches and caches is gone with it. CalledProcessError if it fails.
    """
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[Any, float]:
    """Return what `work` returns and its seconds, the device's queue emptied."""
    begin = time.perf_counter()
    result = work()
    if device != "cpu":
        import torch

        torch.cuda.synchronize()
    return result, time.perf_counter() - begin


def peak_resident() -> float:
    """Return this process's peak of resident memory in GiB, libraries and mapped files among it.

    From Linux's VmHWM: getrusage's ru_maxrss starts, in a process that another one has started,
    at what that one had in use.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**20
