"""How numbers are written, the same in every table, caption and sentence."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.stats.samples import Interval
from analysis.summary import Method, Summary

NONE = "–"


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Write a number with `digits` decimals and a real minus sign; – for None."""
    if value is None:
        return NONE
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−")


def percent(value: float | None) -> str:
    """Write a change in per cent with its sign, without the per cent sign."""
    return number(value, 2, sign=True)


def interval(limits: Interval | None, digits: int, sign: bool = False) -> str:
    """Write an interval as [low, high]; – for None."""
    if limits is None:
        return NONE
    return f"[{number(limits[0], digits, sign)}, {number(limits[1], digits, sign)}]"


def p_text(p: float | None) -> str:
    """Write a p-value with three decimals, `< 0.001` under that; – for None.

    One more decimal where three would leave open on which side of 0.05 it lies.
    """
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if f"{p:.3f}" == "0.050" else f"{p:.3f}"


def p_equation(p: float | None) -> str:
    """Write `p = 0.314`, or `p < 0.001`."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def mean_std(method: Method, digits: int) -> str:
    """Write mean ± standard deviation; without one for a single or deterministic observation."""
    values = method.description
    if values.mean is None:
        return NONE
    if method.deterministic or values.std is None:
        return number(values.mean, digits)
    return f"{number(values.mean, digits)} ± {number(values.std, digits)}"


def counts(methods: Iterable[Method]) -> str:
    """Write how many observations a method has: one number where all with spread have the same."""
    known = [m for m in methods if m.values]
    several = sorted({m.n for m in known if not m.deterministic})
    if not several:
        return "n = 1"
    text = str(several[0]) if len(several) == 1 else f"{several[0]} to {several[-1]}"
    alone = any(m.deterministic for m in known)
    return f"n = {text} seeds a method" + (" (1 where deterministic)" if alone else "")


def better(summary: Summary) -> str:
    """Say in which direction the metric is good."""
    return "Lower is better." if summary.lower_is_better else "Higher is better."
