"""What benchmarks share: the parameters of an entry point beside their own, and peak memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colazero.errors import UserError
from colazero.settings import Settings
from colazero.suite_settings import parse


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


def peak_resident() -> float:
    """Return this process's peak of resident memory in GiB, libraries and mapped files among it.

    From Linux's VmHWM: getrusage's ru_maxrss starts, in a process that another one has started,
    at what that one had in use.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 2**20
