"""The numbers of the report: what is one observation, what is compared, what becomes of nothing."""

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.reading.checks import RunsError
from analysis.reading.runs import load_suite
from analysis.report.summary_json import plain, suite_facts, summary_stats
from analysis.stats import paired_windows
from analysis.summary import Options, pairs_of, summarize
from analysis.summary.windows import results

MODEL = "smollm2-135m"
PPL = ["mean", "std", "cv_percent", "min", "max"]
TIMES = ["selection_time_sec_mean", "quant_time_sec_mean"]


def as_json(value):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = json.dumps(plain(value), allow_nan=False)
    return json.loads(text, parse_constant=refuse)


def values_of(summary, method, model=MODEL):
    return next(m.values for m in summary.methods if (m.model, m.name) == (model, method))


def test_summary_stats_has_the_shape_of_the_mission(demo):
    summary, windows = demo
    found = as_json(summary_stats(summary, results(windows)))
    assert list(found) == [MODEL]
    model = found[MODEL]
    for method in ("cola_zero", "random", "gptq_default"):
        assert list(model[method])[:2] == ["ppl", "times"]
        assert list(model[method]["ppl"])[:5] == PPL
        assert list(model[method]["times"]) == TIMES
    for other in ("random", "gptq_default"):
        test = model[f"ttest_cola_zero_vs_{other}"]
        assert list(test)[:3] == ["t_stat", "p_value", "cohens_d"]
        assert test["paired_windows"]["n_windows"] == 16
    assert model["random"]["ppl"]["mean"] == pytest.approx(np.mean(values_of(summary, "random")))


def test_two_methods_with_spread_are_compared_by_welch(demo):
    summary, _ = demo
    test = summary_stats(summary)[MODEL]["ttest_cola_zero_vs_random"]
    a, b = values_of(summary, "cola_zero"), values_of(summary, "random")
    oracle = scipy_stats.ttest_ind(a, b, equal_var=False)
    assert test["test"] == "welch"
    assert (test["t_stat"], test["p_value"]) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert test["margin"] == pytest.approx(0.2)  # 1 % of the unquantized model's 20


def test_a_deterministic_method_is_one_observation(demo):
    summary, _ = demo
    found = summary_stats(summary)[MODEL]
    test = found["ttest_cola_zero_vs_gptq_default"]
    assert (test["verdict"], test["n_b"], test["p_value"]) == ("undefined", 1, None)
    assert test["reason"] == "b has n = 1: one draw of unknown noise"
    default = found["gptq_default"]
    assert (default["n_seeds"], default["ppl"]["n"], default["deterministic"]) == (5, 1, True)
    assert default["ppl"]["ci95"] is None


def test_five_runs_of_one_calibration_set_are_not_five(suites):
    """Equal digests with perplexities that differ by round-off, as on another device."""
    methods = {"gptq_default": (24.0, 1e-4), "random": (23.0, 0.3)}
    change = {
        f"{MODEL}/gptq_default/{seed}": {"tags": {"colazero.calibration_digest": "same"}}
        for seed in range(42, 47)
    }
    suite = suites.suite(methods=methods, windows=False, **change)
    summary = summarize(load_suite(suite), Options())
    assert len(values_of(summary, "gptq_default")) == 1
    assert [p.result.verdict for p in summary.pairs] == ["undefined"]


def test_a_single_seed_is_not_taken_for_deterministic(suites):
    summary = summarize(load_suite(suites.suite(seeds=1, windows=False)), Options())
    assert {p.result.verdict for p in summary.pairs} == {"undefined"}
    assert not any(m.deterministic for m in summary.methods)
    found = as_json(summary_stats(summary))[MODEL]
    assert found["ttest_cola_zero_vs_random"]["p_value"] is None
    assert found["ttest_cola_zero_vs_random"]["reason"]
    assert found["random"]["ppl"]["std"] is None


def test_holm_is_taken_over_all_models(three):
    summary, _ = three
    raw = [p.result.p_value for p in summary.pairs if p.result.p_value is not None]
    assert len(summary.pairs) == 9
    assert summary.family == len(raw) == 3  # gptq_default is one draw of unknown noise
    adjusted = [p.result.p_adjusted for p in summary.pairs if p.result.p_adjusted is not None]
    assert min(adjusted) == pytest.approx(3 * min(raw))
    assert set(summary.pooled) == {"cola_zero vs random"}
    facts = as_json(suite_facts(summary))
    assert [f["seed"] for f in facts["failed"]] == [44]
    assert facts["pooled_over_models"]["cola_zero vs random"]["n_models"] == 3


@pytest.mark.parametrize(
    ("methods", "baseline", "pairs"),
    [
        (
            ["gptq_default", "random", "cola_zero"],
            "gptq_default",
            [
                ("cola_zero", "random"),
                ("cola_zero", "gptq_default"),
                ("random", "gptq_default"),
            ],
        ),
        (["random", "cola_zero"], None, [("cola_zero", "random")]),
        (["x", "y", "random"], "random", [("x", "random"), ("y", "random")]),
        (["x", "cola_zero"], "cola_zero", [("cola_zero", "x")]),
        (["cola_zero"], None, []),
    ],
)
def test_what_is_compared(methods, baseline, pairs):
    assert pairs_of(methods, baseline) == pairs


def test_another_metric_and_its_direction(suites):
    change = {
        f"{MODEL}/{method}/{seed}": {"metrics": {"downstream.arc_easy.acc": 0.5 + i / 100}}
        for method in ("random", "cola_zero")
        for i, seed in enumerate(range(42, 47))
    }
    change[f"{MODEL}/unquantized"] = {"metrics": {"downstream.arc_easy.acc": 0.6}}
    cells = load_suite(suites.suite(windows=False, **change))
    summary = summarize(cells, Options(metric="arc_easy"))
    assert (summary.metric, summary.lower_is_better) == ("downstream.arc_easy.acc", False)
    assert values_of(summary, "random") == pytest.approx((0.50, 0.51, 0.52, 0.53, 0.54))
    found = as_json(summary_stats(summary))[MODEL]
    assert found["random"]["downstream"]["arc_easy.acc"]["mean"] == pytest.approx(0.52)
    assert found["random"]["ppl"]["mean"] > 20  # what `ppl` says does not depend on the metric
    with pytest.raises(RunsError, match="metric='speed' is in none of the runs"):
        summarize(cells, Options(metric="speed"))


def test_options_out_of_range_are_refused(demo):
    summary, _ = demo
    with pytest.raises(RunsError, match="margin=0"):
        Options(margin=0)
    with pytest.raises(RunsError, match=r"alpha=0\.9"):
        Options(alpha=0.9)
    with pytest.raises(RunsError, match=r"baseline='mine' is no method.*random"):
        summarize(summary.cells, Options(baseline="mine"))


def test_without_the_unquantized_model_the_margin_is_of_the_second_method(suites):
    suite = suites.suite(windows=False, **{f"{MODEL}/unquantized": {"status": "FAILED"}})
    summary = summarize(load_suite(suite, allow_failed=True), Options(margin=2))
    assert summary.unquantized == {}
    pair = summary.pairs[0]
    assert pair.result.margin == pytest.approx(0.02 * np.mean(values_of(summary, "random")))
    assert all(m.change_percent is None for m in summary.methods)
    as_json(summary_stats(summary))


def test_a_suite_without_any_result_gives_nulls(suites):
    change = {
        f"{MODEL}/{method}/{seed}": {"status": "FAILED"}
        for method in ("gptq_default", "random", "cola_zero")
        for seed in range(42, 47)
    }
    change[f"{MODEL}/unquantized"] = {"status": "FAILED"}
    suite = suites.suite(windows=False, **change)
    summary = summarize(load_suite(suite, allow_failed=True), Options())
    found = as_json(summary_stats(summary))[MODEL]
    assert found["random"]["ppl"]["mean"] is None
    assert found["ttest_cola_zero_vs_random"]["t_stat"] is None


def test_the_interval_of_the_cv(demo):
    summary, _ = demo
    method = next(m for m in summary.methods if m.name == "random")
    cv, (low, high) = method.description.cv_percent, method.cv_ci95
    assert (cv / high) ** 2 * 4 == pytest.approx(scipy_stats.chi2.ppf(0.025, 4))
    assert (cv / low) ** 2 * 4 == pytest.approx(scipy_stats.chi2.ppf(0.975, 4))


def test_windows_are_paired_over_the_mean_of_the_checkpoints(demo):
    summary, windows = demo
    found = windows[MODEL, "cola_zero", "gptq_default"]
    assert (found.checkpoints_a, found.checkpoints_b) == (5, 1)
    assert found.delta.shape == (16,)
    assert found.result.n_clusters == 16
    assert found.result.n_tokens == 16 * 511
    assert found.result.diff_nll == pytest.approx(found.delta.mean())
    # The synthetic windows were shifted by the log of each perplexity's ratio.
    logs = [math.log(v) for v in values_of(summary, "cola_zero")]
    assert found.result.diff_nll == pytest.approx(np.mean(logs) - math.log(24), abs=0.005)
    again = paired_windows(found.delta + 1, np.ones(16), np.ones(16), np.arange(16))
    assert again.diff_nll == pytest.approx(found.result.diff_nll)


def test_runs_without_window_sums_are_left_out(suites):
    summary = summarize(load_suite(suites.suite(windows=False, seeds=2)), Options())
    from analysis.summary.windows import window_pairs

    assert window_pairs(summary) == {}
