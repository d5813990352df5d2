"""The numbers of a report that belong on the run itself: a few a method, a few a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.summary import Method, Pair, Summary


@dataclass(frozen=True)
class Headline:
    """What is said of one method of a model, or of two; `verdict` is '' of one.

    numbers: of a method its mean, std, n, change_percent (from the unquantized model) and low95 and
    high95, the limits of its mean; of two the difference that decides, its interval (each in % of
    the second method's value), the confidence of that and the p-value after Holm.
    """

    model: str
    methods: tuple[str, ...]
    numbers: dict[str, float]
    verdict: str = ""


Tell = Callable[[Sequence[Headline]], object]


def headlines(summary: Summary) -> list[Headline]:
    """Return what is said of every method and every comparison; what is undefined is left out."""
    methods = [_of_method(one) for one in summary.methods]
    return [*methods, *map(_of_pair, summary.pairs)]


def _of_method(one: Method) -> Headline:
    d = one.description
    low, high = d.ci95 or (None, None)
    numbers = {"n": one.n, "mean": d.mean, "std": d.std, "low95": low, "high95": high}
    numbers["change_percent"] = one.change_percent
    return Headline(one.model, (one.name,), _defined(numbers))


def _of_pair(pair: Pair) -> Headline:
    limits, level = pair.decided or ((None, None), None)
    p = pair.judgement.p_adjusted
    if pair.verdict == "equivalent":
        p = pair.judgement.tost_p_adjusted
    numbers = {"percent": pair.percent, "p_holm": p, "confidence": level}
    numbers |= {"low_percent": limits[0], "high_percent": limits[1]}
    return Headline(pair.model, (pair.a, pair.b), _defined(numbers), pair.verdict)


def _defined(numbers: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None}
