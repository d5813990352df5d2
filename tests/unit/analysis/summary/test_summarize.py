"""The numbers of the report: what is one observation, what is compared, what becomes of nothing."""

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.reading.runs import load_suite
from analysis.reading.table import RunsError
from analysis.report.facts import plain, suite_facts, summary_stats
from analysis.stats.text import compare_on_text
from analysis.summary import Options, summarize
from analysis.summary.pairs import pairs_of

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
    summary = demo
    found = as_json(summary_stats(summary))
    assert list(found) == [MODEL]
    model = found[MODEL]
    for method in ("cola_zero", "random", "gptq_default"):
        assert list(model[method])[:2] == ["ppl", "times"]
        assert list(model[method]["ppl"])[:5] == PPL
        assert list(model[method]["times"]) == TIMES
    for other in ("random", "gptq_default"):
        test = model[f"ttest_cola_zero_vs_{other}"]
        assert list(test)[:3] == ["t_stat", "p_value", "cohens_d"]
        assert test["headline"]["on_text"]["n_windows"] == 16
    assert model["random"]["ppl"]["mean"] == pytest.approx(np.mean(values_of(summary, "random")))


def test_two_methods_with_spread_are_compared_by_welch(demo):
    summary = demo
    test = summary_stats(summary)[MODEL]["ttest_cola_zero_vs_random"]
    a, b = values_of(summary, "cola_zero"), values_of(summary, "random")
    oracle = scipy_stats.ttest_ind(a, b, equal_var=False)
    assert test["test"] == "welch"
    assert (test["t_stat"], test["p_value"]) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert test["margin"] == pytest.approx(0.01 * np.mean(b))  # 1 % of the second method's
    assert test["diff_percent"] == pytest.approx(100 * (np.mean(a) / np.mean(b) - 1))


def test_one_draw_of_one_set_is_of_unknown_noise(demo):
    found = summary_stats(demo)[MODEL]
    test = found["ttest_cola_zero_vs_gptq_default"]
    assert (test["verdict"], test["n_b"], test["p_value"]) == ("undefined", 1, None)
    assert test["reason"] == "b has n = 1: one draw of unknown noise"
    assert test["headline"]["decided_by"] is None
    default = found["gptq_default"]
    assert (default["n_seeds"], default["ppl"]["n"], default["one_set"]) == (5, 1, True)
    assert (default["ppl"]["std"], default["ppl"]["cv_percent"], default["ppl"]["ci95"]) == (
        None,
        None,
        None,
    )


def test_one_set_is_compared_by_its_replicates(repeated):
    found = summary_stats(repeated)[MODEL]
    test = found["ttest_cola_zero_vs_gptq_default"]
    a, b = values_of(repeated, "cola_zero"), values_of(repeated, "gptq_default")
    assert (len(a), len(b)) == (5, 15)
    oracle = scipy_stats.ttest_ind(a, b, equal_var=False)
    assert (test["t_stat"], test["p_value"]) == pytest.approx((oracle.statistic, oracle.pvalue))
    assert test["headline"]["about_one_set"] == ["gptq_default"]
    assert test["spread"]["test"] is None  # the arithmetic's spread is not that of sets


def test_a_set_that_was_drawn_once_is_lent_the_arithmetic_of_the_others(suites):
    change = {f"{MODEL}/gptq_default/{seed}/2": None for seed in range(42, 47)}
    change |= {f"{MODEL}/gptq_default/{seed}": None for seed in range(43, 47)}
    cells = load_suite(suites.suite(replicates=2, **change), allow_failed=True)
    summary = summarize(cells, Options())
    pair = next(p for p in summary.pairs if (p.a, p.b) == ("cola_zero", "gptq_default"))
    assert (pair.seeds.test, pair.seeds.lent, pair.text.lent) == ("lent-variance", "b", "b")
    assert pair.decided_by == "seeds and text"
    noise = [
        np.var(rows["perplexity"], ddof=1)
        for _, rows in cells[cells["kind"] == "cell"].groupby(["method", "seed"])
        if rows["perplexity"].notna().sum() == 2
    ]
    own = np.var(values_of(summary, "cola_zero"), ddof=1) / 5
    assert pair.seeds.std_error == pytest.approx(math.sqrt(own + np.mean(noise)))


def test_equal_values_of_different_sets_do_not_collapse(suites):
    change = {f"{MODEL}/random/{s}": {"metrics": {"perplexity": 23.0}} for s in range(42, 47)}
    summary = summarize(load_suite(suites.suite(windows=False, **change)), Options())
    assert values_of(summary, "random") == (23.0,) * 5
    assert not next(m for m in summary.methods if m.name == "random").one_set


def test_a_single_seed_shows_nothing(suites):
    summary = summarize(load_suite(suites.suite(seeds=1, windows=False)), Options())
    assert {p.verdict for p in summary.pairs} == {"undefined"}
    found = as_json(summary_stats(summary))[MODEL]
    assert found["ttest_cola_zero_vs_random"]["p_value"] is None
    assert found["ttest_cola_zero_vs_random"]["reason"]
    assert found["random"]["ppl"]["std"] is None


def test_the_verdict_is_that_of_seeds_and_text(demo):
    pair = demo.pairs[0]
    text = demo.texts[MODEL]
    rows = [text.draws[name].rows for name in ("cola_zero", "random")]
    assert [r.shape for r in rows] == [(5, 16), (5, 16)]
    expected = compare_on_text(*rows, text.tokens)
    assert pair.text == expected
    assert pair.decided_by == "seeds and text"
    assert pair.percent == expected.percent
    limits, level = pair.decided
    assert level == 0.95  # one defined test in this family
    assert limits == pytest.approx(expected.percent_ci)


def test_without_windows_the_seeds_decide(suites):
    summary = summarize(load_suite(suites.suite(windows=False)), Options())
    pair = summary.pairs[0]
    assert (pair.decided_by, pair.text, summary.budgets) == ("seeds", None, {})
    assert pair.verdict == pair.seeds.verdict
    assert pair.decided[0] == pytest.approx(pair.seeds_percent_ci95)


def test_holm_is_taken_over_a_family_of_a_model(crowded):
    for model in crowded.models:
        for family, size in (("primary", 6), ("exploratory", 15)):
            pairs = [p for p in crowded.pairs if (p.model, p.family) == (model, family)]
            raw = [p.judgement.p_value for p in pairs if p.judgement.p_value is not None]
            assert len(pairs) == size
            # gptq_default is one draw of unknown noise
            assert {p.tests for p in pairs} == {len(raw)} == {5 if family == "primary" else 10}
            assert min(p.judgement.p_adjusted for p in pairs if p.decided) == pytest.approx(
                min(1.0, len(raw) * min(raw))
            )


def test_models_are_pooled_and_failures_named(three):
    assert set(three.pooled) == {"cola_zero vs random"}
    facts = as_json(suite_facts(three, ()))
    assert [f["seed"] for f in facts["failed"]] == [44]
    assert facts["pooled_over_models"]["cola_zero vs random"]["n_models"] == 3


@pytest.mark.parametrize(
    ("methods", "primary", "baseline", "pairs"),
    [
        (
            ["gptq_default", "random", "cola_zero"],
            "cola_zero",
            "gptq_default",
            [
                ("cola_zero", "random", "primary"),
                ("cola_zero", "gptq_default", "primary"),
                ("random", "gptq_default", "exploratory"),
            ],
        ),
        (["random", "cola_zero"], "random", None, [("random", "cola_zero", "primary")]),
        (
            ["x", "y", "random"],
            None,
            "random",
            [
                ("x", "y", "exploratory"),
                ("x", "random", "exploratory"),
                ("y", "random", "exploratory"),
            ],
        ),
        (["cola_zero"], "cola_zero", None, []),
    ],
)
def test_what_is_compared(methods, primary, baseline, pairs):
    assert pairs_of(methods, primary, baseline) == pairs


def test_the_primary_method_can_be_named(demo):
    summary = summarize(demo.cells, Options(primary="random"))
    assert {(p.a, p.b) for p in summary.pairs if p.family == "primary"} == {
        ("random", "cola_zero"),
        ("random", "gptq_default"),
    }
    with pytest.raises(RunsError, match="primary='mine'"):
        summarize(demo.cells, Options(primary="mine"))


def test_options_out_of_range_are_refused(demo):
    summary = demo
    with pytest.raises(RunsError, match="margin=0"):
        Options(margin=0)
    with pytest.raises(RunsError, match=r"alpha=0\.9"):
        Options(alpha=0.9)
    with pytest.raises(RunsError, match=r"baseline='mine'.*random"):
        summarize(summary.cells, Options(baseline="mine"))


def test_the_margin_is_of_the_second_method(suites):
    suite = suites.suite(windows=False, **{f"{MODEL}/unquantized": {"status": "FAILED"}})
    summary = summarize(load_suite(suite, allow_failed=True), Options(margin=2))
    assert summary.unquantized == {}
    pair = summary.pairs[0]
    assert pair.seeds.margin == pytest.approx(0.02 * np.mean(values_of(summary, "random")))
    assert summary.options.post_hoc
    assert not Options().post_hoc
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
