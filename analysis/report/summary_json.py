"""`summary_stats.json`: the mission's keys, with further fields beside them; null, never NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from analysis.reading.checks import CELL, UNQUANTIZED, keys
from analysis.stats import Description, PairedWindows, describe, stars
from analysis.summary import Method, Pair, Summary, controls_of

Windows = Mapping[tuple[str, str, str], PairedWindows]
"""(model, method a, method b) → the comparison on the same evaluation windows."""


def summary_stats(summary: Summary, windows: Windows | None = None) -> dict[str, Any]:
    """Return {model: {method: {ppl, times}, ttest_A_vs_B: {t_stat, p_value, cohens_d}}}.

    `ppl` describes perplexity whatever the metric; `metric` and the tests are of the chosen one.
    """
    return {model: _model(summary, model, windows or {}) for model in summary.models}


def _model(summary: Summary, model: str, windows: Windows) -> dict[str, Any]:
    found: dict[str, Any] = {
        method.name: _method(summary, method) for method in summary.methods if method.model == model
    }
    rows = summary.cells[(summary.cells["model"] == model) & (summary.cells["error"] == "")]
    for name in (UNQUANTIZED, *controls_of(summary, model)):
        values = rows.loc[rows["method"] == name, "perplexity"]
        found[name] = {"ppl": _numbers(describe(values.to_list()))}
    for pair in summary.pairs:
        if pair.model == model:
            found[f"ttest_{pair.a}_vs_{pair.b}"] = _test(summary, pair, windows)
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
            "selection_time_sec_mean": method.selection_time_sec,
            "quant_time_sec_mean": method.quant_time_sec,
        },
        "metric": summary.metric,
        "values": list(method.values),
        "n_seeds": method.n_seeds,
        "deterministic": method.deterministic,
        "change_from_unquantized_percent": method.change_percent,
        "downstream": downstream,
    }


def _described(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Describe a metric with one value an observation."""
    values = rows.groupby("observation", sort=False)[metric].mean().dropna().to_list()
    return _numbers(describe(values))


def _test(summary: Summary, pair: Pair, windows: Windows) -> dict[str, Any]:
    values = asdict(pair.result)
    first = ("t_stat", "p_value", "cohens_d")
    paired = windows.get((pair.model, pair.a, pair.b))
    return (
        {name: values.pop(name) for name in first}
        | values
        | {
            "metric": summary.metric,
            "family_size": summary.family,
            "stars": stars(pair.result.p_adjusted),
            "margin_percent": summary.options.margin,
            "diff_percent": pair.percent(pair.result.diff),
            "diff_percent_ci95": pair.percent_interval(pair.result.diff_ci95),
            "percent_of": "unquantized" if pair.model in summary.unquantized else pair.b,
            "spread": asdict(pair.spread),
            "paired_windows": None if paired is None else asdict(paired),
        }
    )


def suite_facts(summary: Summary) -> dict[str, Any]:
    """Return what holds for the suite as a whole: options, settings, failures, pooled models."""
    good = summary.cells[(summary.cells["kind"] == "cell") & (summary.cells["error"] == "")]
    settings = {
        str(name): sorted({str(v) for v in good[name]} - {"", "<NA>", "nan"})
        for name in good.columns
        if name in SETTINGS
    }
    failed = summary.failed
    return {
        "options": asdict(summary.options)
        | {"metric": summary.metric, "baseline": summary.baseline},
        "family_size": summary.family,
        "settings": {name: values for name, values in settings.items() if values},
        "failed": [
            dict(zip((*CELL, "status", "error"), (*key, status, error), strict=True))
            for key, status, error in zip(
                keys(failed), failed["status"], failed["error"], strict=True
            )
        ],
        "pooled_over_models": {name: asdict(p) for name, p in summary.pooled.items()},
    }


SETTINGS = (
    *(
        "corpus",
        "corpus_share",
        "n_calibration_samples",
        "seq_len",
        "quant_bits",
        "group_size",
        "desc_act",
        "sym",
    ),
    *("quantizer", "damp_percent", "act_group_aware", "eval_corpora", "eval_windows", "device"),
    *("model_revision", "git_commit", "git_dirty"),
    *("version.torch", "version.transformers", "version.gptqmodel"),
)


def plain(value: Any) -> Any:
    """Replace what JSON has no word for: NaN and infinity by None, tuples by lists."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
