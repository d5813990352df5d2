"""How numbers are written, the same in every table, caption and sentence."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.stats.samples import Interval
from analysis.summary import Method, Pair, Summary

NONE = "–"
ONE = {False: "seed a method", True: "draw where a method is one set"}


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
    """Write mean ± standard deviation; without one for a single observation."""
    values = method.description
    if values.mean is None:
        return NONE
    if values.std is None:
        return number(values.mean, digits)
    return f"{number(values.mean, digits)} ± {number(values.std, digits)}"


def observed(method: Method) -> str:
    """Write what a method's observations are: `5 seeds`, or `5 replicates of 1 set`."""
    if not method.one_set:
        text = f"{method.n} seed{'s' * (method.n != 1)}"
        return text + (f" × {method.n_draws / method.n:.3g}" if method.n_draws > method.n else "")
    if method.n == 1:
        return "1 draw of 1 set"
    return f"{method.n} replicates of 1 set"


def counts(methods: Iterable[Method]) -> str:
    """Write what the observations of several methods are, methods of a kind together."""
    known = [m for m in methods if m.values]
    found = []
    for one_set, unit in (
        (False, "seeds a method"),
        (True, "replicates where a method is one set"),
    ):
        several = sorted({m.n for m in known if m.one_set == one_set})
        if several:
            text = f"{several[0]} to {several[-1]}" if len(several) > 1 else str(several[0])
            found.append(f"{text} {unit}" if several != [1] else f"1 {ONE[one_set]}")
    return "n = " + " and ".join(found) if found else "n = 0"


def decided(pair: Pair) -> str:
    """Write the interval that decided: `97.5 % CI [−0.3, +2.1]`; – for none."""
    found = pair.decided
    if found is None:
        return NONE
    limits, level = found
    return f"{confidence(level)} CI {interval(limits, 2, sign=True)}"


def confidence(level: float) -> str:
    """Write a confidence: `95 %`, `98.33 %`."""
    return f"{100 * level:.4g} %"


def draws(value: int | None) -> str:
    """Write a number of seeds; `no number` for None."""
    return "no number" if value is None else f"{value:,}"


def better(summary: Summary) -> str:
    """Say in which direction the metric is good."""
    return "Lower is better." if summary.lower_is_better else "Higher is better."
