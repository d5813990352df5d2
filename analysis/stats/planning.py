"""How many seeds to run, planned for the margin and for the rule that decides.

Planned for is a difference that matters, never the one that was seen: the power "for the d seen" is
a function of its p-value and says nothing new (Hoenig & Heisey 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from analysis.stats.estimate import satterthwaite
from analysis.stats.power import POWER, equivalence_power, t_power
from analysis.stats.samples import check_alpha

# Above this the answer is not an experiment.
MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Design:
    """A comparison to be planned; all in one unit, such as % of perplexity.

    sd_a, sd_b: standard deviations of a seed. family: comparisons that Holm adjusts for; power is
    that of its first step, alpha / family, and so at least that. text_error, text_df: standard
    error of the difference that more seeds leave as it is (`compare_on_text`); 0 for a statement
    about exactly these windows.
    """

    sd_a: float
    sd_b: float
    family: int = 1
    alpha: float = 0.05
    text_error: float = 0.0
    text_df: float = math.inf

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        known = (self.sd_a, self.sd_b, self.text_error)
        if not all(0 <= x < math.inf for x in known) or sum(known) == 0:
            raise ValueError(f"standard deviations must be finite, not all 0; got {known}")
        if self.family < 1:
            raise ValueError(f"family must be at least 1; got {self.family}")

    @property
    def level(self) -> float:
        return self.alpha / self.family

    def error(self, n: int) -> tuple[float, float]:
        """Standard error of the difference with n seeds a method, and its degrees of freedom."""
        terms = [
            (self.sd_a**2 / n, n - 1),
            (self.sd_b**2 / n, n - 1),
            (self.text_error**2, self.text_df),
        ]
        return math.sqrt(sum(term for term, _ in terms)), min(satterthwaite(terms), 1e9)


def seeds_for_difference(difference: float, design: Design) -> int | None:
    """Seeds a method that find a true `difference` with 80 % power, by Welch's test.

    difference: > 0, in the unit of the design. At least 2. None when 100,000 would not do, as when
    the text alone hides it. Raises ValueError.
    """
    _check(difference, "difference")

    def enough(n: int) -> bool:
        error, df = design.error(n)
        return t_power(difference, df, error, design.level) >= POWER

    return _fewest(enough)


def seeds_for_equivalence(margin: float, design: Design) -> int | None:
    """Seeds a method that show |difference| < margin with 80 % power, if there is none.

    Two one-sided tests (Schuirmann 1987). margin: > 0, in the unit of the design. At least 2. None
    when 100,000 would not do. Raises ValueError.
    """
    _check(margin, "margin")

    def enough(n: int) -> bool:
        error, df = design.error(n)
        return equivalence_power(margin / error, df, design.level) >= POWER

    return _fewest(enough)


def _check(size: float, name: str) -> None:
    if not 0 < size < math.inf:
        raise ValueError(f"{name} must be a positive number in the unit of the design; got {size}")


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n >= 2 for which `enough` holds, as it does for all above it."""
    high = 2
    while not enough(high):
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
