"""The report's numbers: as JSON, as metrics of a run, and as what a look at a suite says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading.looks import read_course
from analysis.reading.runs import load_suite, named_by, seeds_of
from analysis.reading.table import UNQUANTIZED, VERSIONS, finished, keys, observations
from analysis.report.tables import (
    difference,
    own_numbers,
    p_decided,
    p_equation,
    versus,
)
from analysis.stats.samples import Description, describe
from analysis.stats.sequential import LookJudgement, expected_share
from analysis.stats.verdicts import stars
from analysis.summary import Options, Summary, summarize
from analysis.summary.items import ItemPair
from analysis.summary.looks import Tracked
from analysis.summary.methods import Method
from analysis.summary.pairs import Pair
from colazero.settings import CELL, SETTINGS

FACTS = (*SETTINGS, "model_revision", "stored_as", "git_commit", "git_dirty", "date", *VERSIONS)
"""The columns that describe a suite as a whole."""


def summary_stats(summary: Summary) -> dict[str, Any]:
    """Return {model: {method: {ppl, times}, ttest_A_vs_B: {t_stat, p_value, cohens_d}}}.

    Further fields stand with them, and null stands for what is undefined. `ppl` describes
    perplexity for every metric; `metric` and the tests are of the chosen one. The t-tests are
    over seeds, on exactly these windows; `verdict` and `headline` are what decides.
    """
    stats: dict[str, Any] = {}
    cells = summary.cells[summary.cells["error"] == ""]
    for model in summary.models:
        own = stats[model] = {}
        rows = cells[cells["model"] == model]
        for m in (m for m in summary.methods if m.model == model):
            own[m.name] = _method(summary, m, rows[rows["method"] == m.name])
        for name in (UNQUANTIZED, *summary.controls(model)):
            values = rows.loc[rows["method"] == name, "perplexity"]
            own[name] = {"ppl": _numbers(describe(values.to_list()))}
        for pair in (p for p in summary.pairs if p.model == model):
            own[f"ttest_{pair.a}_vs_{pair.b}"] = _test(summary, pair)
    return stats


def _numbers(description: Description) -> dict[str, Any]:
    values = asdict(description)
    first = ("mean", "std", "cv_percent", "min", "max")
    return {name: values.pop(name) for name in first} | values


def _method(summary: Summary, method: Method, rows: pd.DataFrame) -> dict[str, Any]:
    def described(metric: str) -> dict[str, Any]:
        return _numbers(describe(observations(rows)[metric].dropna().to_list()))

    downstream = [
        str(name)
        for name in rows.columns
        if str(name).startswith("downstream.") and rows[name].notna().any()
    ]
    return {
        "ppl": described("perplexity"),
        "times": {
            "selection_time_sec_mean": method.selection.mean,
            "quant_time_sec_mean": method.quantization.mean,
        },
        "metric": summary.metric,
        "values": list(method.values),
        "n_seeds": method.n_seeds,
        "n_draws": method.n_draws,
        "one_set": method.one_set,
        "overlap_of_sets": method.overlap,
        "change_from_unquantized_percent": method.change_percent,
        "downstream": {name.removeprefix("downstream."): described(name) for name in downstream},
    }


def _test(summary: Summary, pair: Pair) -> dict[str, Any]:
    values = asdict(pair.seeds)
    on_windows = values.pop("verdict")
    first = {name: values.pop(name) for name in ("t_stat", "p_value", "cohens_d")}
    limits, level = pair.decided or (None, None)
    headline = {
        "decided_by": pair.decided_by,
        "percent": pair.percent,
        "percent_ci": limits,
        "percent_ci_level": level,
        **asdict(pair.judgement),
        "on_text": None if pair.text is None else asdict(pair.text),
        "plan": None if pair.plan is None else asdict(pair.plan),
        "about_one_set": list(pair.one_sets),
    }
    return {
        **first,
        **values,
        "metric": summary.metric,
        "family": pair.family,
        "family_size": pair.tests,
        "stars": stars(pair.seeds.p_adjusted),
        "verdict_on_these_windows": on_windows,
        "margin_percent": pair.margin,
        "post_hoc": list(summary.options.post_hoc),
        "diff_percent": pair.seeds_percent,
        "diff_percent_ci95": pair.seeds_percent_ci95,
        "percent_of": pair.b,
        "verdict": pair.verdict,
        "headline": headline,
        "spread": asdict(pair.spread),
    }


def suite_facts(summary: Summary, items: Sequence[ItemPair]) -> dict[str, Any]:
    """Return what holds for the suite as a whole: options, settings, failures, pooled models."""

    def word(value: object) -> str:
        return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)

    good = finished(summary.cells)
    settings = {
        str(name): sorted({word(v) for v in good[name]} - {"", "<NA>", "nan"})
        for name in good.columns
        if name in FACTS
    }
    failed = summary.failed
    reasons = zip(keys(failed), failed["status"], failed["error"], strict=True)
    return {
        "options": asdict(summary.options)
        | {
            "metric": summary.metric,
            "baseline": summary.baseline,
            "primary": summary.primary,
            "direction": "lower" if summary.lower_is_better else "higher",
            "post_hoc": list(summary.options.post_hoc),
        },
        "variance_budget": {
            model: {m: asdict(b) for (m, name), b in summary.budgets.items() if name == model}
            for model in summary.models
        },
        "metrics": [asdict(one) for one in summary.metrics],
        "settings": {name: values for name, values in settings.items() if values},
        "failed": [
            dict(zip((*CELL, "status", "error"), (*key, status, error), strict=True))
            for key, status, error in reasons
        ],
        "ranking": {m: [asdict(rank) for rank in ranks] for m, ranks in summary.ranks.items()},
        "sizes": [asdict(one) for one in summary.sizes],
        "pooled_over_models": {name: asdict(p) for name, p in summary.pooled.items()},
        "further_statistics": own_numbers(summary),
        "downstream_items": [asdict(pair) for pair in items],
    }


def plain(value: Any) -> Any:
    """Replace what JSON cannot write: NaN and infinity by None, tuples by lists."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Headline:
    """The numbers of one method of a model, or of two; `verdict` is '' for one.

    numbers: for a method its mean, std, n, change_percent (from the unquantized model) and low95
    and high95, the limits of its mean; for two the difference that decides, its interval (each in %
    of the second method's value), the confidence of that and the p-value after Holm. A look logs
    other numbers, and says what it found in `text`.
    """

    model: str
    methods: tuple[str, ...]
    numbers: dict[str, float]
    verdict: str = ""
    text: str = ""


def headlines(summary: Summary) -> list[Headline]:
    """Return the numbers that are logged with a run; undefined numbers are left out."""
    rows = []
    for one in summary.methods:
        d = one.description
        low, high = d.ci95 or (None, None)
        numbers = {"n": one.n, "mean": d.mean, "std": d.std, "low95": low, "high95": high}
        numbers["change_percent"] = one.change_percent
        rows.append(Headline(one.model, (one.name,), _defined(numbers)))
    for pair in summary.pairs:
        limits, level = pair.decided or ((None, None), None)
        numbers = {"percent": pair.percent, "p_holm": p_decided(pair), "confidence": level}
        numbers |= {"low_percent": limits[0], "high_percent": limits[1]}
        rows.append(Headline(pair.model, (pair.a, pair.b), _defined(numbers), pair.verdict))
    return rows


def _defined(numbers: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None}


CODES = {"open": 0, "different": 1, "equivalent": 2, "inconclusive": 3, "undefined": 4}
"""A verdict as a metric of MLflow's, which are numbers."""
ASSUMED = {"where nothing differs": 0.0, "where one method differs by 1 sd of a seed": 1.0}
"""What a plan assumes: words → true difference, in standard deviations of a seed."""


def expect(methods: int, looks: Sequence[int]) -> dict[str, float]:
    """Return the expected shares of its cells that a suite runs until all is settled."""
    return {what: expected_share(methods, looks, effect) for what, effect in ASSUMED.items()}


def judge(suite_run_id: str, seeds: int) -> list[Headline]:
    """Look at the first `seeds` seeds of a suite: the primary comparisons of each model.

    It reads the store only. RunsError where nothing can be read yet.
    """
    first, options = seeds_of(suite_run_id)[:seeds], Options().or_else(named_by(suite_run_id))
    cells = load_suite(suite_run_id, allow_failed=True)
    cells = cells[cells["seed"].isna() | cells["seed"].isin(first)]
    several = cells["model"].nunique() > 1
    rows = []
    for one in summarize(cells, options, read_course(suite_run_id, cells)).looks:
        pair = one.pair
        where = f"{pair.model}: " if several else ""
        text = f"{where}{versus(pair)}: {_look(one)}"
        methods = pair.a, pair.b
        rows.append(Headline(pair.model, methods, _of_look(one), pair.verdict, text))
    return rows


def _look(one: Tracked) -> str:
    """Say what a look shows: the verdict, the interval, p and its level."""
    pair, j = one.pair, one.judgement
    text: str = pair.verdict
    if isinstance(j, LookJudgement) and j.decided_at and j.decided_at < one.ns[-1]:
        text += f" since {j.decided_at} seeds"
    text += f"; {difference(pair)}"
    if one.levels and pair.estimate is not None:
        p, level, tests = pair.estimate.p_value, one.levels[one.decided], ""
        if pair.verdict == "equivalent" and j.equivalence_ci_level is not None:
            p = pair.estimate.tost_p_value(pair.margin_of_estimate)
            level, tests = (1 - j.equivalence_ci_level) / 2, ", two one-sided tests"
        text += f", {p_equation(p)} at a level of {level:.4f}{tests}"
    return text


def _of_look(one: Tracked) -> dict[str, float]:
    """Return the last look's numbers; percentages are of the second method's value."""
    k = len(one.ns) - 1
    last = one.pairs[k]
    numbers: dict[str, float | None] = {
        "verdict": CODES[one.judgement.verdict],
        "seeds": one.ns[k],
        "difference_percent": last.percent,
        "p_value": one.judgement.p_value,
        "p_over_looks": one.judgement.p_adjusted,
    }
    limits = one.pair.decided[0] if one.pair.decided else None
    if one.levels:
        p = None if last.estimate is None else last.estimate.p_value
        numbers |= {"p_value": p, "level": one.levels[k], "alpha_spent": one.spent[k]}
        limits = one.repeated(k)
    if limits is not None:
        numbers |= {"low_percent": limits[0], "high_percent": limits[1]}
    return _defined(numbers)
