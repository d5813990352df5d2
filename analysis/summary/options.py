"""What is compared and how strictly, and what is known of a metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import pandas as pd

from analysis.reading.table import RunsError

OURS = "cola_zero"
DEFAULT_BASELINE = "gptq_default"
MARGIN = 1.0
ALPHA = 0.05
METRIC = "perplexity"
"""What every suite's own analysis uses: anything else is chosen when the results are known."""


@dataclass(frozen=True)
class Options:
    """What is compared and how strictly.

    baseline: the method named second in its comparisons; None: the suite's, or gptq_default where
    the runs have it. primary: the method of the primary family, which is its comparison with each
    other method; None: the suite's, or cola_zero where the runs have it.
    metric: `perplexity`, `kl_divergence`, `perplexity.CORPUS`, `divergence.kl_q99`, or a downstream
    metric such as `arc_easy.acc`. direction: 'lower' or 'higher' is better, for a metric that does
    not say so.
    margin: largest difference that does not matter, in % of the second method's value; in
    percentage points for an accuracy; in % of perplexity for a log perplexity.
    alpha: level of the tests, two-sided, over a family of comparisons.
    declared: the primary method that the suite named; None where it named none. names: method ->
    the name that table.tex prints.
    """

    baseline: str | None = None
    primary: str | None = None
    metric: str = METRIC
    direction: str | None = None
    margin: float = MARGIN
    alpha: float = ALPHA
    declared: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

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
            declared=named.get("primary"),
        )

    @property
    def post_hoc(self) -> tuple[str, ...]:
        """Name the options that are not the suite's own, as in `margin 2 %`."""
        own = self.declared or OURS
        changed = {
            f"margin {self.margin:g} %": self.margin != MARGIN,
            f"α = {self.alpha:g}": self.alpha != ALPHA,
            f"metric {self.metric}": self.metric != METRIC,
            f"primary method {self.primary}": self.primary not in (None, own),
        }
        return tuple(words for words, differs in changed.items() if differs)


def chosen(name: str, wanted: str | None, usual: str, methods: list[str]) -> str | None:
    """Return the method that an option names, or the usual one where the runs have it."""
    if wanted is None:
        return usual if usual in methods else None
    if wanted not in methods:
        raise RunsError(
            f"{name}={wanted!r} is not a method of these runs. Allowed: {', '.join(methods)}."
        )
    return wanted


Kind = Literal["exponential", "logarithm", "ratio", "share", "plain"]


class Known(NamedTuple):
    """What is known of a metric.

    lower: a small value is the good one. windows: the column of the per-window sums that the metric
    is made of. kind: how two values are compared. "exponential" of a mean per token: by the
    difference of the means, as % of perplexity; "logarithm": the same of the mean itself; "ratio":
    by the ratio of two means, both with error; "share": in percentage points; "plain": % of the
    second value.
    """

    lower: bool
    windows: str | None = None
    kind: Kind = "plain"

    @property
    def log(self) -> bool:
        """Return True if a variance budget is in % of perplexity."""
        return self.kind in ("exponential", "logarithm")


EVALUATED = {
    "perplexity": Known(True, "nll", "exponential"),
    "nll_per_token": Known(True, "nll", "logarithm"),
    "kl_divergence": Known(True, "kl", "ratio"),
    "top1_agreement": Known(False, "agreed", "ratio"),
}
TAILS = ("kl_q95", "kl_q99", "kl_reverse", *(f"top1_changed_q{n}" for n in range(1, 5)))
"""The metrics `divergence.NAME`: what the means of KL divergence and agreement hide."""
LISTED = (*EVALUATED, "divergence.kl_reverse", "divergence.kl_q95", "divergence.kl_q99")
"""The metrics that a report compares with each other."""
SHARES = ("acc", "acc_norm", "acc_mutual_info", "exact_match", "f1")
# For runs that did not log lm-eval's own `higher_is_better`.
DOWNSTREAM = {
    **dict.fromkeys(SHARES, Known(False, kind="share")),
    **dict.fromkeys(("bleu", "chrf", "mcc", "rouge1", "rouge2", "rougeL"), Known(False)),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), Known(True)),
    **dict.fromkeys(("bits_per_byte", "brier_score", "ter"), Known(True)),
}


def column_of(metric: str, cells: pd.DataFrame) -> str:
    """Return the column that `metric` names; `arc_easy` is short for downstream.arc_easy.acc."""
    numbers = {str(name) for name in cells.select_dtypes("float64").columns}
    for name in (metric, f"downstream.{metric}", f"downstream.{metric}.acc"):
        if name in numbers and (name == "perplexity" or cells[name].notna().any()):
            return name
    allowed = [str(c) for c in cells.columns if _known(str(c), {}) and cells[c].notna().any()]
    raise RunsError(f"metric={metric!r} is in none of the runs. Allowed: {', '.join(allowed)}.")


def about(column: str, cells: pd.DataFrame, direction: str | None = None) -> Known:
    """Return what is known of a column; RunsError if nothing says which direction is good.

    `direction` (lower, higher) says so for an unknown column. A known one keeps its own.
    """
    known = _known(column, _logged(cells))
    if known is None and direction is None:
        raise RunsError(
            f"metric={column!r}: nothing says whether a small or a large value is the good one. "
            "Add direction=lower or direction=higher."
        )
    if known is None:
        return Known(lower=direction == "lower")
    if direction is not None and known.lower != (direction == "lower"):
        right = "lower" if known.lower else "higher"
        raise RunsError(f"direction={direction!r}: of {column} a {right} value is the good one.")
    return known


def present(cells: pd.DataFrame) -> list[str]:
    """Return the metrics of the evaluation itself that the runs have, each of its first corpus."""
    return [name for name in LISTED if name in cells.columns and cells[name].notna().any()]


def corpora_of(column: str, cells: pd.DataFrame) -> pd.Series[str]:
    """Return for each row the corpus of a column's windows; '' if none is known.

    A metric without a corpus in its name is that of the run's first corpus, which is the one with
    the same perplexity. Runs name their corpora themselves: two settings may have two.
    """
    metric, _, corpus = column.partition(".")
    known = cells["perplexity"].notna() & (metric in EVALUATED)
    if corpus or not known.any():
        return known.map({True: corpus, False: ""})
    named = [str(c) for c in cells.columns if str(c).startswith("perplexity.")]
    same = cells[named].eq(cells["perplexity"], axis=0)
    first = [str(c).removeprefix("perplexity.") for c in same.columns]
    found = [next((c for c, y in zip(first, row, strict=True) if y), "") for row in same.to_numpy()]
    return pd.Series(found, index=cells.index).where(known, "")


def _known(column: str, logged: dict[str, bool]) -> Known | None:
    metric, _, rest = column.partition(".")
    if metric in EVALUATED:
        return EVALUATED[metric]
    if metric == "divergence" and rest.partition(".")[0] in TAILS:
        return Known(True, kind="share" if rest.startswith("top1") else "plain")
    if metric != "downstream":
        return None
    if rest in logged:
        share = any(part in SHARES for part in rest.split(".")[1:])
        return Known(not logged[rest], kind="share" if share else "plain")
    parts = rest.split(".")[1:]
    return next((DOWNSTREAM[part] for part in reversed(parts) if part in DOWNSTREAM), None)


def _logged(cells: pd.DataFrame) -> dict[str, bool]:
    """Return lm-eval's `higher_is_better` by TASK.METRIC, as the runs logged it."""
    found: dict[str, bool] = {}
    for text in set(cells.get("higher_is_better", pd.Series(dtype="str"))) - {""}:
        found |= json.loads(text)
    return found
