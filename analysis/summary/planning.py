"""What more seeds would show: planned for the margin, by the rule that decides."""

from __future__ import annotations

import math

import numpy as np

from analysis.stats import Design, TextComparison, seeds_for_difference, seeds_for_equivalence
from analysis.stats.samples import FloatArray
from analysis.summary.pairs import Pair, Plan
from analysis.summary.windows import Text


def plan(pair: Pair, text: Text | None) -> Plan | None:
    """Plan a comparison anew; None where it is undefined."""
    found = design(pair, text)
    if found is None:
        return None
    margin = pair.margin_of_estimate
    error = found.text_error / (1.0 if _log(pair) else pair.scale)
    return Plan(
        difference=seeds_for_difference(margin, found),
        equivalence=seeds_for_equivalence(margin, found),
        tests=found.family,
        text_error_percent=100 * (math.expm1(error) if _log(pair) else error),
    )


def _log(pair: Pair) -> bool:
    return pair.log and pair.decided_by == "seeds and text"


def design(pair: Pair, text: Text | None) -> Design | None:
    """Return the design by which `pair` was decided; None where it is undefined.

    In nats a token where seeds and text decided, else in the metric's own unit.
    """
    family, alpha = max(1, pair.tests), pair.seeds.alpha
    if pair.decided_by is None:
        return None
    if pair.decided_by == "seeds":
        sd = pair.seeds.sd
        return Design(sd, sd, family, alpha) if sd else None
    assert pair.text is not None
    assert text is not None
    sds = [_sd(text.draws[name].rows, text.tokens) for name in (pair.a, pair.b)]
    other = next((sd for sd in sds if sd is not None), None)
    if other is None:
        return None
    sd_a, sd_b = (other if sd is None else sd for sd in sds)
    left = _left(pair.text)
    if sd_a + sd_b + left == 0:
        return None
    df = pair.text.n_stretches - 1
    return Design(sd_a, sd_b, family, alpha, text_error=left, text_df=df)


def _left(found: TextComparison) -> float:
    """Standard error of the text alone: seed x window noise goes with the number of seeds."""
    assert found.text_variance is not None
    assert found.overlap_variance is not None
    return math.sqrt(max(0.0, found.text_variance - found.overlap_variance))


def _sd(rows: FloatArray, tokens: FloatArray) -> float | None:
    """Standard deviation of a draw's mean a token; None for one draw."""
    if len(rows) < 2:
        return None
    return float(np.std(rows.sum(axis=1) / tokens.sum(), ddof=1))
