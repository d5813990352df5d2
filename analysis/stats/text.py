"""Two methods over seeds and text together: what holds for other seeds and for other text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from analysis.stats.estimate import Estimate, PooledVariance, satterthwaite
from analysis.stats.samples import Interval, check_alpha, percent_change, percent_interval
from analysis.stats.stretches import (
    FEWEST_WINDOWS,
    Profiles,
    check_nll,
    check_tokens,
    edge_factor,
    profiles,
    ratio_variance,
    stretch_labels,
    stretch_sizes,
    upper_factor,
)

# Under this share of the NLL a difference is float64 round-off.
ROUND_OFF = 1e-12

Term = tuple[float, float]
"""A variance and its degrees of freedom."""


@dataclass(frozen=True)
class TextComparison:
    """Method a against method b over seeds x windows; every undefined number is None.

    n_a, n_b: rows. n_windows, n_stretches, n_tokens: the text. lent: 'a', 'b' or 'ab', the arms of
    one draw whose variance other sets lent.
    log_ratio: log perplexity of a minus that of b; std_error, df, ci: of it, at 1 - alpha.
    percent, percent_ci: 100 * (perplexity of a / perplexity of b - 1).
    seed_variance, text_variance, overlap_variance: the components of std_error**2, the first two
    added, the third (seed x window noise, which both of them hold) taken off.
    edge_factor: by which text_variance was raised for likeness across the edges of stretches.
    """

    n_a: int
    n_b: int
    n_windows: int
    n_stretches: int
    n_tokens: float
    alpha: float
    lent: str | None
    log_ratio: float
    percent: float | None
    reason: str | None
    std_error: float | None = None
    df: float | None = None
    p_value: float | None = None
    ci: Interval | None = None
    percent_ci: Interval | None = None
    seed_variance: float | None = None
    text_variance: float | None = None
    overlap_variance: float | None = None
    edge_factor: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        if self.std_error is None or self.df is None:
            return None
        return Estimate(self.log_ratio, self.std_error, self.df)


def compare_on_text(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    tokens: ArrayLike,
    *,
    stretches: int | ArrayLike | None = None,
    alpha: float = 0.05,
    noise: PooledVariance | None = None,
) -> TextComparison:
    """Log ratio of two methods' perplexities, with the noise of seeds and of the text in its error.

    nll_a, nll_b: shapes [n_a, W] and [n_b, W], nats summed over a window. A row is an independent
    observation: a seed, its replicates averaged, or a replicate of a method's one set; the result
    then speaks about that set. tokens: shape [W], scored in each window.
    stretches: how many contiguous ones, or labels [W] (documents), taken as independent. None: 8
    contiguous ones from 64 windows on, else 4, since neighbouring windows are alike. Such few and
    short ones show too little of the text's noise: what their edges share is made up for
    (`edge_factor`), and in the degrees of freedom the text counts with its upper 95 % limit, since
    a variance that came out too small is taken for a well known one. Without the two, intervals on
    16 windows cover 91 %, and a family of two is wrong in 9 %.
    noise: variance of one draw's log perplexity, for a method with a single row.

    V = sum_m S2_m / n_m + var(D_g) / G - sum_m E_m / (n_m G), at least each of the first two. D_g
    is the difference of mean NLL a token in stretch g, var(D_g) / G for stretches of unequal tokens
    the linearised variance of the ratio (Liang & Zeger 1986); E_m is the mean square of row x
    stretch. Two-way clustering after Cameron, Gelbach & Miller (2011) and Owen (2007); degrees of
    freedom by Satterthwaite over the terms, G - 1 for the text.

    Undefined, with a reason: one row without `noise` (one draw of unknown noise), under 4 windows,
    one stretch, and rows without variation. Raises ValueError for shapes and values out of range.
    """
    check_alpha(alpha)
    weight = check_tokens(tokens)
    a, b = check_nll(nll_a, weight.size, "nll_a"), check_nll(nll_b, weight.size, "nll_b")
    label = stretch_labels(stretches, weight.size)
    size = stretch_sizes(label, weight)
    arms = profiles(a, label, size), profiles(b, label, size)
    delta = arms[0].mean - arms[1].mean
    ratio = float(delta.sum() / size.sum())
    seeds = _seed_term(arms[0], noise), _seed_term(arms[1], noise)
    known = TextComparison(
        n_a=arms[0].rows,
        n_b=arms[1].rows,
        n_windows=weight.size,
        n_stretches=size.size,
        n_tokens=float(size.sum()),
        alpha=float(alpha),
        lent="".join(name for name, x in zip("ab", arms, strict=True) if x.rows == 1 and noise)
        or None,
        log_ratio=ratio,
        percent=percent_change(ratio),
        reason=_why_undefined(arms, weight.size, size.size),
    )
    if known.reason is not None:
        return known
    if seeds[0] is None or seeds[1] is None:
        few = " and ".join(n for n, x in zip("ab", seeds, strict=True) if x is None)
        return replace(known, reason=f"{few} has one row: one draw of unknown noise")
    edges = upper = 1.0
    if stretches is None:
        upper = upper_factor(size.size)
        edges = edge_factor((a.mean(axis=0) - b.mean(axis=0)) / weight, size.size)
    text = edges * ratio_variance(delta, size)
    shared = [(x.overlap, (x.rows - 1) * (size.size - 1)) for x in arms]
    level = float(arms[0].mean.sum() + arms[1].mean.sum()) / size.sum()
    if math.sqrt(max(seeds[0][0] + seeds[1][0], text)) <= ROUND_OFF * level:
        return replace(known, reason="neither rows nor stretches vary: no error can be estimated")
    known = replace(known, edge_factor=edges)
    return _with_error(known, [seeds[0], seeds[1]], (text, size.size - 1), shared, upper)


def _seed_term(arm: Profiles, noise: PooledVariance | None) -> Term | None:
    if arm.variance is not None:
        return arm.variance / arm.rows, arm.rows - 1
    return None if noise is None else (noise.variance, noise.df)


def _why_undefined(arms: Sequence[Profiles], windows: int, stretches: int) -> str | None:
    if windows < FEWEST_WINDOWS:
        return f"{windows} windows: the noise of the text needs at least {FEWEST_WINDOWS}"
    if stretches < 2:
        return "the text is one stretch: its noise needs at least 2"
    return None


def _with_error(
    known: TextComparison,
    seeds: Sequence[Term],
    text: Term,
    shared: Sequence[Term],
    upper: float,
) -> TextComparison:
    seed, overlap = sum(term for term, _ in seeds), sum(term for term, _ in shared)
    variance = max(seed + text[0] - overlap, seed, text[0])
    terms = [*seeds, (upper * text[0], text[1]), *((-term, df) for term, df in shared)]
    if variance == text[0]:
        terms = [text]
    elif variance == seed:
        terms = [*seeds]
    estimate = Estimate(known.log_ratio, math.sqrt(variance), satterthwaite(terms))
    limits = estimate.interval(known.alpha)
    return replace(
        known,
        std_error=estimate.std_error,
        df=estimate.df,
        p_value=estimate.p_value,
        ci=limits,
        percent_ci=percent_interval(*limits),
        seed_variance=seed,
        text_variance=text[0],
        overlap_variance=overlap,
    )
