"""Your own statistics: one function in one file of this folder, found without editing another file.

A file `NAME.py` defines a function `NAME`. It gets what its parameters name:

- values: shape [n], the metric of one method on one model, one value per independent observation;
- reference: the unquantized model's value, or None where it was not measured;
- windows: shape [n, W], the metric's sum over each evaluation window (nats for a perplexity);
- tokens: shape [W], the predicted tokens in each window.

With `values_a`, `values_b`, `windows_a` or `windows_b` in place of `values` and `windows` it
compares two methods, and is called for every comparison. It returns a number, or None if it is
undefined. The first line of its docstring, with its unit, is its heading in the report.

Results appear in the report and in suite.json. Where the runs have no windows, a statistic that
asks for them is undefined. If it raises an error, the report
shows the error in its place.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

Statistic = Callable[..., float | None]
OPTIONAL = ("reference",)
"""What may be None when a function is called; without anything else it is undefined."""


class Own(NamedTuple):
    """A statistic's name, what it is, its function, and whether it is about two methods."""

    name: str
    description: str
    function: Statistic
    of_pairs: bool = False


@cache
def all_statistics() -> tuple[Own, ...]:
    """Return the statistics of this folder by name."""
    return tuple(_load(module) for module in sorted(m.name for m in pkgutil.iter_modules(__path__)))


def _load(name: str) -> Own:
    """Import one file; one that cannot be used becomes a statistic that says so."""
    try:
        function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        about = (inspect.getdoc(function) or name).splitlines()[0].rstrip(".")
        return Own(name, about, function, any(p.endswith(("_a", "_b")) for p in _takes(function)))
    except Exception as error:
        return Own(name, name, _failing(error))


def _failing(error: Exception) -> Statistic:
    def fail() -> float | None:
        raise error

    return fail


def evaluate(
    statistics: Sequence[Own], given: Mapping[str, Any]
) -> Mapping[str, float | str | None]:
    """Return name → number, None where it is undefined, or the error as text.

    given: what a function may name; sequences are handed on as arrays of float64.
    """
    return {one.name: _one(one.function, given) for one in statistics}


def _one(function: Statistic, given: Mapping[str, Any]) -> float | str | None:
    try:
        names = _takes(function)
        unknown = [name for name in names if name not in given]
        if unknown:
            raise TypeError(f"no parameter {unknown[0]!r}; there are {', '.join(given)}")
        if any(given[name] is None for name in names if name not in OPTIONAL):
            return None
        result = function(**{name: _array(given[name]) for name in names})
        return float(result) if result is not None and math.isfinite(result) else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _takes(function: Statistic) -> list[str]:
    return list(inspect.signature(function).parameters)


def _array(value: Any) -> Any:
    return value if value is None or np.isscalar(value) else np.array(value, dtype=np.float64)
