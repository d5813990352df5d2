"""Your own statistics: one function in one file of this folder, found without editing another.

A file `NAME.py` defines a function `NAME(values, reference)`:

- values: shape [n], the metric of one method on one model, a value an independent observation;
- reference: the unquantized model's value, or None where it was not measured;
- returns a number, or None where it is undefined;
- the first line of its docstring says what it is, with its unit, and heads it in the report.

It is computed for every method and appears in the report and in suite.json. What it raises is
shown in its place: it cannot keep a report from being written.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from analysis.stats.samples import FloatArray

Statistic = Callable[[FloatArray, float | None], float | None]


class Own(NamedTuple):
    """A statistic's name, what it is, and its function."""

    name: str
    description: str
    function: Statistic


@cache
def all_statistics() -> tuple[Own, ...]:
    """Return the statistics of this folder by name."""
    return tuple(_load(module) for module in sorted(m.name for m in pkgutil.iter_modules(__path__)))


def _load(name: str) -> Own:
    """Import one file; one that cannot be used becomes a statistic that says so."""
    try:
        function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        about = (inspect.getdoc(function) or name).splitlines()[0].rstrip(".")
        return Own(name, about, function)
    except Exception as error:
        return Own(name, name, _failing(error))


def _failing(error: Exception) -> Statistic:
    def fail(values: FloatArray, reference: float | None) -> float | None:
        raise error

    return fail


def evaluate(
    statistics: Sequence[Own], values: Sequence[float], reference: float | None
) -> Mapping[str, float | str | None]:
    """Return name → number, None where it is undefined, or the error as text."""
    return {one.name: _one(one.function, values, reference) for one in statistics}


def _one(
    function: Statistic, values: Sequence[float], reference: float | None
) -> float | str | None:
    try:
        result = function(np.array(values, dtype=np.float64), reference)
        return float(result) if result is not None and math.isfinite(result) else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
