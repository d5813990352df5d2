"""What is compared, and how strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from analysis.reading.checks import RunsError

OURS = "cola_zero"
DEFAULT_BASELINE = "gptq_default"
MARGIN = 1.0
"""The margin of every suite, % of the second method: any other is chosen after the fact."""


@dataclass(frozen=True)
class Options:
    """What is compared and how strictly.

    baseline: the method that stands second where it is compared; None: what the suite says, or
    gptq_default where the runs have it. primary: the method whose comparisons with each other one
    are the primary family; None: what the suite says, or cola_zero where the runs have it.
    metric: `perplexity`, `kl_divergence`, `perplexity.CORPUS`, or a downstream metric such as
    `arc_easy.acc`. direction: 'lower' or 'higher' is better, for a metric that does not say so.
    margin: largest difference that does not matter, % of the second method's value.
    alpha: level of the tests, two-sided, over a family of comparisons.
    """

    baseline: str | None = None
    primary: str | None = None
    metric: str = "perplexity"
    direction: str | None = None
    margin: float = MARGIN
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 100:
            raise RunsError(f"margin={self.margin:g}: must be a percentage above 0 and under 100.")
        if not 0 < self.alpha < 0.5:
            raise RunsError(f"alpha={self.alpha:g}: must lie between 0 and 0.5.")
        if self.direction not in (None, "lower", "higher"):
            raise RunsError(f"direction={self.direction!r}: must be lower or higher.")

    def or_else(self, named: Mapping[str, str]) -> Options:
        """Return the options with a primary method and a baseline of `named` where none is set."""
        return replace(
            self,
            primary=self.primary or named.get("primary"),
            baseline=self.baseline or named.get("baseline"),
        )

    @property
    def post_hoc(self) -> bool:
        """Whether the margin is another than the suites' own."""
        return self.margin != MARGIN


def chosen(name: str, wanted: str | None, usual: str, methods: list[str]) -> str | None:
    """Return the method that an option names, or the usual one where the runs have it."""
    if wanted is None:
        return usual if usual in methods else None
    if wanted not in methods:
        raise RunsError(
            f"{name}={wanted!r} is no method of these runs. Allowed: {', '.join(methods)}."
        )
    return wanted
