"""`summary_stats.json`: the mission's keys, with further fields beside them; null, never NaN."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis.reading.checks import CELL, UNQUANTIZED, VERSIONS, keys, observations
from analysis.stats import Description, describe, stars
from analysis.summary import Method, Pair, Summary, controls_of
from colazero.settings import SETTINGS


def summary_stats(summary: Summary) -> dict[str, Any]:
    """Return {model: {method: {ppl, times}, ttest_A_vs_B: {t_stat, p_value, cohens_d}}}.

    `ppl` describes perplexity whatever the metric; `metric` and the tests are of the chosen one.
    The t-tests are over seeds, on exactly these windows; `verdict` and `headline` are what decides.
    """
    return {model: _model(summary, model) for model in summary.models}


def _model(summary: Summary, model: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        method.name: _method(summary, method) for method in summary.methods if method.model == model
    }
    rows = summary.cells[(summary.cells["model"] == model) & (summary.cells["error"] == "")]
    for name in (UNQUANTIZED, *controls_of(summary, model)):
        values = rows.loc[rows["method"] == name, "perplexity"]
        found[name] = {"ppl": _numbers(describe(values.to_list()))}
    for pair in summary.pairs:
        if pair.model == model:
            found[f"ttest_{pair.a}_vs_{pair.b}"] = _test(summary, pair)
    return found


def _numbers(description: Description) -> dict[str, Any]:
    """The mission's five first."""
    values = asdict(description)
    first = ("mean", "std", "cv_percent", "min", "max")
    return {name: values.pop(name) for name in first} | values


def _method(summary: Summary, method: Method) -> dict[str, Any]:
    cells = summary.cells
    rows = cells[
        (cells["model"] == method.model) & (cells["method"] == method.name) & (cells["error"] == "")
    ]
    downstream = {
        str(name).removeprefix("downstream."): _described(rows, str(name))
        for name in cells.columns
        if str(name).startswith("downstream.") and rows[name].notna().any()
    }
    return {
        "ppl": _described(rows, "perplexity"),
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
        "downstream": downstream,
    }


def _described(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Describe a metric with one value an observation."""
    return _numbers(describe(observations(rows)[metric].dropna().to_list()))


def _test(summary: Summary, pair: Pair) -> dict[str, Any]:
    values = asdict(pair.seeds)
    first = ("t_stat", "p_value", "cohens_d")
    on_windows = values.pop("verdict")
    return (
        {name: values.pop(name) for name in first}
        | values
        | {
            "metric": summary.metric,
            "family": pair.family,
            "family_size": pair.tests,
            "stars": stars(pair.seeds.p_adjusted),
            "verdict_on_these_windows": on_windows,
            "margin_percent": pair.margin,
            "post_hoc": summary.options.post_hoc,
            "diff_percent": pair.seeds_percent,
            "diff_percent_ci95": pair.seeds_percent_ci95,
            "percent_of": pair.b,
            "verdict": pair.verdict,
            "headline": _headline(pair),
            "spread": asdict(pair.spread),
        }
    )


def _headline(pair: Pair) -> dict[str, Any]:
    """What decides: over seeds and text, or where windows are missing over seeds."""
    found = pair.decided
    return {
        "decided_by": pair.decided_by,
        "percent": pair.percent,
        "percent_ci": None if found is None else found[0],
        "percent_ci_level": None if found is None else found[1],
        **asdict(pair.judgement),
        "on_text": None if pair.text is None else asdict(pair.text),
        "plan": None if pair.plan is None else asdict(pair.plan),
        "about_one_set": [n for n, o in ((pair.a, pair.one_set_a), (pair.b, pair.one_set_b)) if o],
    }


def suite_facts(summary: Summary) -> dict[str, Any]:
    """Return what holds for the suite as a whole: options, settings, failures, pooled models."""
    good = summary.cells[(summary.cells["kind"] == "cell") & (summary.cells["error"] == "")]
    settings = {
        str(name): sorted({_word(v) for v in good[name]} - {"", "<NA>", "nan"})
        for name in good.columns
        if name in FACTS
    }
    failed = summary.failed
    return {
        "options": asdict(summary.options)
        | {
            "metric": summary.metric,
            "baseline": summary.baseline,
            "primary": summary.primary,
            "direction": "lower" if summary.lower_is_better else "higher",
            "post_hoc": summary.options.post_hoc,
        },
        "variance_budget": {
            model: {m: asdict(b) for (m, name), b in summary.budgets.items() if name == model}
            for model in summary.models
        },
        "metrics": [asdict(one) for one in summary.metrics],
        "settings": {name: values for name, values in settings.items() if values},
        "failed": [
            dict(zip((*CELL, "status", "error"), (*key, status, error), strict=True))
            for key, status, error in zip(
                keys(failed), failed["status"], failed["error"], strict=True
            )
        ],
        "ranking": {m: [asdict(rank) for rank in ranks] for m, ranks in summary.ranks.items()},
        "pooled_over_models": {name: asdict(p) for name, p in summary.pooled.items()},
    }


def _word(value: object) -> str:
    """Write a value as MLflow's parameters have it."""
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


FACTS = (*SETTINGS, "model_revision", "git_commit", "git_dirty", "date", *VERSIONS)
"""The columns that describe a suite as a whole."""


def plain(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinity by None, tuples by lists."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
