"""What a t-test with a given number of seeds can find, and how many seeds to plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from analysis.stats.samples import FloatArray, Interval, check_alpha, satterthwaite, t_quantile
from analysis.stats.text import FEWEST_DOCUMENTS

POWER = 0.8

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def noncentral_t_cdf(t: float, df: float, nc: float) -> float:
    """Return P(T <= t) for T = (Z + nc) / S, Z standard normal, df * S**2 chi-squared.

    Gauss–Legendre quadrature for df >= 1, absolute error under 1e-13 against 25-digit integration.
    scipy 1.17 will not do for near-deterministic methods, whose t is large: `nctdtr(8, 40, 2.3)`
    is NaN, and `nctdtrinc` errs by 0.4 % at (df 1, t 1e4) and hangs at (df 1, t 1e6).
    """
    if t < 0:
        return 1 - noncentral_t_cdf(-t, df, -nc)
    if t * t <= 2 * df:  # over S: the normal factor is the wider one
        s, weight = _chi_rule(df)
        return float(np.dot(weight, special.ndtr(t * s - nc)))
    if nc < -9:
        return 1.0
    low = max(-nc, -9.0)  # over Z: the chi factor is the wider one
    half = (9.0 - low) / 2
    z = low + half * (_NODES + 1)
    density = half * _WEIGHTS * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    survival = special.gammaincc(df / 2, df * ((z + nc) / t) ** 2 / 2)
    return float(special.ndtr(-nc) + np.dot(density, survival))


@lru_cache(maxsize=256)
def _chi_rule(df: float) -> tuple[FloatArray, FloatArray]:
    """Return nodes s and weights, summing to 1, for the distribution of S = sqrt(chi2(df) / df)."""
    low = math.sqrt(2 * special.gammaincinv(df / 2, 1e-18) / df)
    high = math.sqrt(2 * special.gammainccinv(df / 2, 1e-18) / df)
    s = low + (high - low) / 2 * (_NODES + 1)
    # The log density up to a constant, written around its peak so that a large df cancels nothing.
    log_density = df * (np.log(s) - (s - 1) * (s + 1) / 2) - np.log(s)
    weight = _WEIGHTS * np.exp(log_density - log_density.max())
    return s, weight / weight.sum()


def noncentrality_interval(t: float, df: float, level: float = 0.95) -> Interval:
    """Return exact limits of the noncentrality for an observed t (Steiger & Fouladi 1997)."""
    if t < 0:
        low, high = noncentrality_interval(-t, df, level)
        return -high, -low
    # T is at most a few standard deviations of Z away from nc / S.
    top = t * math.sqrt(2 * special.gammainccinv(df / 2, 1e-6) / df) + 10

    def limit(probability: float) -> float:
        return float(
            optimize.brentq(lambda nc: noncentral_t_cdf(t, df, nc) - probability, -10, top)
        )

    return limit((1 + level) / 2), limit((1 - level) / 2)


def t_power(d: float, df: float, scale: float, alpha: float = 0.05) -> float:
    """Return the chance that a two-sided t-test at `alpha` finds a true effect of d."""
    check_alpha(alpha)
    critical = t_quantile(1 - alpha / 2, df)
    nc = d / scale
    return 1 - noncentral_t_cdf(critical, df, nc) + noncentral_t_cdf(-critical, df, nc)


def equivalence_power(margin: float, df: float, alpha: float = 0.05) -> float:
    """Return the chance that two one-sided t-tests show |difference| < margin, if it is 0.

    margin: in standard errors of the difference. Exact for an error of df degrees of freedom.
    """
    s, weight = _chi_rule(df)
    room = margin - t_quantile(1 - alpha, df) * s
    return float(np.dot(weight, np.where(room > 0, 2 * special.ndtr(room) - 1, 0.0)))


@lru_cache(maxsize=1024)
def detectable(df: float, alpha: float = 0.05) -> float:
    """Return the difference, in standard errors, that a two-sided t-test finds with 80 % power."""
    top = 3 * t_quantile(1 - alpha / 2, df) + 5
    return float(optimize.brentq(lambda nc: t_power(nc, df, 1.0, alpha) - POWER, 0, top))


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
        """Return the standard error of the difference with n seeds per method, and its df."""
        terms = [
            (self.sd_a**2 / n, n - 1),
            (self.sd_b**2 / n, n - 1),
            (self.text_error**2, self.text_df),
        ]
        return math.sqrt(sum(term for term, _ in terms)), min(satterthwaite(terms), 1e9)


def seeds_for_difference(difference: float, design: Design) -> int | None:
    """Return the seeds per method that find a true `difference` with 80 % power, by Welch's test.

    difference: > 0, in the unit of the design. At least 2. None when 100,000 are not
    enough, as where the text alone hides it. Raises ValueError.
    """

    def power(error: float, df: float) -> float:
        return t_power(difference, df, error, design.level)

    return _fewest(power, design, "difference", difference)


def seeds_for_equivalence(margin: float, design: Design) -> int | None:
    """Return the seeds per method that show |difference| < margin with 80 % power, if it is 0.

    Two one-sided tests (Schuirmann 1987). margin: > 0, in the unit of the design. At least 2. None
    when 100,000 are not enough. Raises ValueError.
    """

    def power(error: float, df: float) -> float:
        return equivalence_power(margin / error, df, design.level)

    return _fewest(power, design, "margin", margin)


def _fewest(
    power: Callable[[float, float], float], design: Design, name: str, size: float
) -> int | None:
    """Return the fewest seeds whose standard error and df give 80 % power; more give more."""
    if not 0 < size < math.inf:
        raise ValueError(f"{name} must be a positive number in the unit of the design; got {size}")
    high = 2
    while power(*design.error(high)) < POWER:
        if high >= MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(*design.error(middle)) >= POWER else (middle, high)
    return high


@dataclass(frozen=True)
class Noise:
    """Noise of a model's results, % of the metric.

    seed: standard deviation of one draw (calibration set and arithmetic). window, document: of one
    method against the mean of all methods, between windows of a document and between documents.
    source: where the numbers come from.
    """

    seed: float
    window: float
    document: float
    source: str


# Measured: 1.33 % between windows. Assumed: half of this variance is between documents.
DOCUMENTED = Noise(0.72, 0.94, 0.94, "docs/evidence/study.md: SmolLM2-135M, sotu, 4 bits")


@dataclass(frozen=True)
class Prospect:
    """What a suite can find, % of the metric; see `prospect`.

    difference: the smallest one that it shows with 80 % probability, at Holm's first step. bound:
    the median, where all methods are equal, of the most that a method can be worse than the best.
    equivalence: probability that a comparison shows equivalence within the margin, if there is no
    difference. noise: what this rests on.
    """

    difference: float
    bound: float
    equivalence: float
    noise: Noise


def prospect(
    methods: int,
    seeds: int,
    windows: int,
    documents: int | None = None,
    *,
    noise: Noise = DOCUMENTED,
    margin: float = 1.0,
    alpha: float = 0.05,
) -> Prospect:
    """Estimate what a suite can find over seeds and text, for its plan.

    One method is compared with each other one by the rule of `compare_on_text`; the windows are
    spread over `documents` documents (None: each lies in another one). By simulation with a fixed
    seed: the variances that a suite estimates are drawn. Raises ValueError for fewer than 2 methods
    or seeds, or fewer than 8 windows.
    """
    given = ("methods", methods, 2), ("seeds", seeds, 2), ("windows", windows, 8)
    for name, value, least in given:
        if value < least:
            raise ValueError(f"{name} is {value}; a comparison needs at least {least}")
    check_alpha(alpha)
    rng, draws = np.random.default_rng(0), 4000
    parts = min(windows, documents or windows)
    of_text = 2 * (noise.window**2 / windows + noise.document**2 / parts)
    # With fewer documents each window is a part.
    text_df = 2 * ((parts if parts >= FEWEST_DOCUMENTS else windows) - 1) / 3
    seed = noise.seed**2 / seeds * rng.chisquare(seeds - 1, (2, draws)) / (seeds - 1)
    text = of_text * rng.chisquare(text_df, draws) / text_df
    total, both = seed.sum(axis=0) + text, seed.sum(axis=0)
    squares = (seed**2).sum(axis=0) / (seeds - 1)
    df = total**2 / (squares + text**2 / text_df)
    df = np.where(both >= text, np.minimum(df, both**2 / squares), df)
    error = math.sqrt(2 * noise.seed**2 / seeds + of_text)
    level, each = alpha / (methods - 1), 1 - (1 - alpha) ** (1 / (methods - 1))

    def half(tail: float) -> FloatArray:
        """Return half widths of the draws' one-sided limits."""
        return np.asarray(special.stdtrit(df, 1 - tail) * np.sqrt(total))

    needed, room = half(level / 2), margin - half(level)

    def power(difference: float) -> float:
        found = special.ndtr((difference - needed) / error)
        return float(np.mean(found + special.ndtr((-difference - needed) / error)))

    values = error / math.sqrt(2) * rng.normal(size=(draws, methods))
    gaps = values - values.min(axis=1, keepdims=True)
    most = 50 * error + float(needed.max())
    return Prospect(
        difference=float(optimize.brentq(lambda d: power(d) - POWER, 0, most)),
        bound=float(np.median(gaps + half(each)[:, None])),
        equivalence=float(np.mean(np.where(room > 0, 2 * special.ndtr(room / error) - 1, 0.0))),
        noise=noise,
    )
