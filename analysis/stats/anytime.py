"""An answer that holds whenever one looks, planned or not: the right-Haar t e-process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.stats.samples import Interval, Values, check_alpha, clean


@dataclass(frozen=True)
class Anytime:
    """Group a against group b, valid at any time of looking; see `anytime`. None is undefined.

    e_value: evidence against no difference; the chance that it ever reaches 1 / alpha without one
    is at most alpha. p_value: min(1, 1 / e_value). ci: at confidence 1 - alpha, for all times at
    once; None while it is the whole line.
    """

    n_a: int
    n_b: int
    alpha: float
    reason: str | None
    diff: float | None = None
    e_value: float | None = None
    p_value: float | None = None
    ci: Interval | None = None


def anytime(a: Values, b: Values, *, alpha: float = 0.05, effect: float = 1.0) -> Anytime:
    """Test and interval of a difference of means for whoever adds seeds until it looks good.

    a, b: shapes [n_a], [n_b], in the order in which they came; NaN or None is dropped. effect:
    standard deviation of the prior of d, the difference over the common standard deviation; chosen
    before looking.

    The e-value is the Bayes factor of Student's pooled t with d ~ N(0, effect**2) and the
    right-Haar prior 1 / sigma (Gönen, Johnson, Lu & Westfall 2005). Under that prior it keeps its
    level under optional stopping, for every mean and sigma, provided that when to stop is decided
    on the tests alone (Hendriksen, de Heide & Grünwald 2021). It assumes normal results of one
    variance in both groups, and sizes that do not answer to the results otherwise.

    Undefined, with a reason: under 3 runs in all or none in a group, and no spread.
    Raises ValueError for alpha or effect out of range.
    """
    check_alpha(alpha)
    if not 0 < effect < math.inf:
        raise ValueError(f"effect must be a positive number of standard deviations; got {effect}")
    x, y = clean(a, "a"), clean(b, "b")
    known = (x.n, y.n, float(alpha))
    df = x.n + y.n - 2
    if min(x.n, y.n) < 1 or df < 1:
        return Anytime(*known, "needs a run of each group, and three in all")
    squares = sum((s.n - 1) * s.variance for s in (x, y) if s.n > 1)
    if squares == 0:
        return Anytime(*known, "neither group has any spread", x.mean - y.mean)
    diff, size = x.mean - y.mean, x.n * y.n / (x.n + y.n)
    t_squared = diff**2 * size / (squares / df)
    wider = 1 + size * effect**2
    log_e = (df + 1) / 2 * (
        math.log1p(t_squared / df) - math.log1p(t_squared / df / wider)
    ) - math.log(wider) / 2
    # The differences that are not refuted: solved for t at e = 1 / alpha.
    most = math.exp((math.log(wider) / 2 - math.log(alpha)) * 2 / (df + 1))
    ci = None
    if most < wider:
        half = math.sqrt(df * (most - 1) / (1 - most / wider) * squares / df / size)
        ci = (diff - half, diff + half)
    e_value = math.exp(min(log_e, 700.0))
    return Anytime(*known, None, diff, e_value, min(1.0, 1 / e_value), ci)
