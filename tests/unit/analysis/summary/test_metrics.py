"""Metrics and their direction, windows, budgets, plans: what the verdicts are made of."""

import json
import math
import re

import numpy as np
import pytest

from analysis.reading.artifacts import read
from analysis.reading.runs import load_suite
from analysis.reading.table import RunsError, observations
from analysis.report.facts import plain, summary_stats
from analysis.report.write import contents
from analysis.stats.power import Design, seeds_for_difference, seeds_for_equivalence
from analysis.summary import Options, summarize

MODEL = "smollm2-135m"


def as_json(value):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = json.dumps(plain(value), allow_nan=False)
    return json.loads(text, parse_constant=refuse)


def values_of(summary, method, model=MODEL):
    return next(m.values for m in summary.methods if (m.model, m.name) == (model, method))


@pytest.mark.parametrize("metric", ["nll_per_token", "kl_divergence", "top1_agreement"])
def test_every_metric_of_the_evaluation_says_which_method_is_better(repeated, metric):
    """The synthetic methods differ in one quantity alone: all metrics favour the same one."""
    summary = summarize(repeated.cells, Options(metric=metric))
    pair = next(p for p in summary.pairs if (p.a, p.b) == ("cola_zero", "gptq_default"))
    assert (pair.verdict, pair.decided_by) == ("different", "seeds and text")
    assert summary.lower_is_better == (metric != "top1_agreement")
    assert (pair.percent < 0) == summary.lower_is_better
    values = [np.mean(values_of(summary, name)) for name in ("cola_zero", "gptq_default")]
    change = values[0] / values[1] - 1
    if metric == "nll_per_token":
        change = np.expm1(values[0] - values[1])  # % of perplexity
    assert pair.seeds_percent == pytest.approx(100 * change)


@pytest.mark.parametrize("name", ["kl_q95", "kl_q99", "kl_reverse"])
def test_what_means_of_the_divergence_hide_is_compared_over_seeds_alone(repeated, name):
    """Each is a multiple of the mean divergence here, but no sum over windows: text has no part."""
    summary = summarize(repeated.cells, Options(metric=f"divergence.{name}"))
    means = summarize(repeated.cells, Options(metric="kl_divergence"))
    assert summary.lower_is_better
    for found, of_means in zip(summary.pairs, means.pairs, strict=True):
        assert found.text is None
        assert found.seeds_percent == pytest.approx(of_means.seeds_percent)


def test_a_log_perplexity_is_judged_by_the_margin_of_perplexity(repeated):
    """1 % of 3.6 nats is 3.65 % of perplexity: the same runs would come out equivalent."""
    for margin in (0.5, 1.0, 2.0, 5.0):
        plain, logs = (
            summarize(repeated.cells, Options(metric=metric, margin=margin))
            for metric in ("perplexity", "nll_per_token")
        )
        for a, b in zip(plain.pairs, logs.pairs, strict=True):
            assert a.verdict == b.verdict
            assert a.percent == pytest.approx(b.percent)
            assert a.decided[0] == pytest.approx(b.decided[0])


def test_a_divergence_is_compared_as_a_ratio_with_the_error_of_both(repeated):
    """The level of a window is common to both methods: as a ratio it cancels."""
    summary = summarize(repeated.cells, Options(metric="kl_divergence"))
    text = summary.texts[MODEL]
    for pair in summary.pairs:
        means = [text.draws[n].rows.sum(axis=1).mean() for n in (pair.a, pair.b)]
        assert pair.percent == pytest.approx(100 * (means[0] / means[1] - 1))
        a, b = (text.draws[n].rows / m for n, m in zip((pair.a, pair.b), means, strict=True))
        by_hand = sum(np.var(x.sum(axis=1), ddof=1) / len(x) for x in (a, b))
        assert pair.text.seed_variance == pytest.approx(by_hand)
        assert pair.ratio.std_error**2 == pytest.approx(by_hand, rel=1e-6)
        assert pair.seeds_percent_ci95[0] < pair.percent < pair.seeds_percent_ci95[1]


def test_accuracies_are_compared_in_points(suites):
    change = {
        f"{MODEL}/{method}/{seed}": {"metrics": {"downstream.arc_easy.acc": acc + i / 1000}}
        for method, acc in (("random", 0.50), ("cola_zero", 0.53))
        for i, seed in enumerate(range(42, 47))
    }
    cells = load_suite(suites.suite(windows=False, **change))
    pair = summarize(cells, Options(metric="arc_easy")).pairs[0]
    assert (pair.unit, pair.verdict) == ("points", "different")
    assert pair.percent == pytest.approx(3.0)  # not 6 % of 0.50
    low, high = pair.decided[0]
    assert low < 3 < high
    assert pair.margin_of_estimate == pytest.approx(0.01)
    close = summarize(cells, Options(metric="arc_easy", margin=4.0)).pairs[0]
    assert close.seeds.tost_p_value < 0.05


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ()),
        ({"margin": 2.0}, ("margin 2 %",)),
        ({"alpha": 0.2}, ("α = 0.2",)),
        ({"metric": "kl_divergence"}, ("metric kl_divergence",)),
        ({"primary": "random"}, ("primary method random",)),
        ({"primary": "cola_zero"}, ()),
    ],
)
def test_what_is_not_the_suites_own_is_post_hoc(options, said):
    assert Options(**options).or_else({}).post_hoc == said


def test_the_primary_method_that_the_suite_named_is_its_own():
    named = Options(primary="random").or_else({"primary": "random"})
    assert named.post_hoc == ()
    assert Options().or_else({"primary": "random"}).post_hoc == ()
    changed = Options(primary="cola_zero").or_else({"primary": "random"})
    assert changed.post_hoc == ("primary method cola_zero",)


def test_methods_are_ranked_with_the_most_that_each_can_be_worse_than_the_best(repeated):
    ranks = repeated.ranks[MODEL]
    assert [r.name for r in ranks] == ["cola_zero", "random", "gptq_default"]
    assert [r.mean for r in ranks] == sorted(r.mean for r in ranks)
    best, second, last = ranks
    assert best.at_least == second.at_least == 0
    assert 0 <= best.at_most < second.at_most < last.at_most
    pair = next(p for p in repeated.pairs if (p.a, p.b) == ("cola_zero", "gptq_default"))
    each = 1 - 0.95**0.5
    limits = pair.estimate.interval(2 * each)
    assert last.at_most == pytest.approx(100 * math.expm1(-limits[0]))
    assert last.at_least > 0
    worse = summarize(repeated.cells, Options(metric="top1_agreement")).ranks[MODEL]
    assert [r.name for r in worse] == ["cola_zero", "random", "gptq_default"]
    assert worse[-1].at_most > worse[0].at_most


def test_a_metric_without_a_known_direction_needs_one(demo):
    with pytest.raises(RunsError, match=r"'selection_time_sec'.*direction="):
        summarize(demo.cells, Options(metric="selection_time_sec"))
    options = Options(metric="selection_time_sec", direction="lower")
    assert summarize(demo.cells, options).lower_is_better
    with pytest.raises(RunsError, match="of perplexity a lower value is the good one"):
        summarize(demo.cells, Options(direction="higher"))
    with pytest.raises(RunsError, match="direction='up'"):
        Options(direction="up")


def test_the_direction_that_lm_eval_logged_counts(demo):
    cells = demo.cells.assign(**{"downstream.mine.score": demo.cells["perplexity"]})
    for higher in (True, False):
        known = cells.assign(higher_is_better=json.dumps({"mine.score": higher}))
        assert summarize(known, Options(metric="mine.score")).lower_is_better != higher
    with pytest.raises(RunsError, match="direction="):
        summarize(cells, Options(metric="mine.score"))


def test_plans_are_for_the_margin_and_the_rule_that_decides(demo):
    pair = demo.pairs[0]
    text = demo.texts[MODEL]
    sds = [
        np.std(text.draws[n].rows.sum(axis=1) / text.tokens.sum(), ddof=1) for n in (pair.a, pair.b)
    ]
    left = math.sqrt(max(0, pair.text.text_variance - pair.text.overlap_variance))
    design = Design(*sds, family=1, text_error=left, text_df=pair.text.text_df)
    assert pair.plan.difference == seeds_for_difference(math.log1p(0.01), design)
    assert pair.plan.equivalence == seeds_for_equivalence(math.log1p(0.01), design)


def test_the_budget_is_in_percent_of_its_metric(repeated):
    budget = repeated.budgets["perplexity", MODEL]
    assert budget.arithmetic.percent == pytest.approx(100 * 0.15 / 23.4, rel=0.5)
    assert sum(s.share for s in (budget.seed, budget.arithmetic, budget.method_window)) == (
        pytest.approx(1)
    )
    kl = repeated.budgets["kl_divergence", MODEL]
    draws = repeated.cells[repeated.cells["kind"] == "cell"]
    means = draws.groupby(["method", "calibration_set"])["kl_divergence"]
    df = means.size() - 1
    pooled = math.sqrt((means.var() * df).sum() / df.sum())
    level = np.mean([np.mean(v) for _, v in observations(draws).groupby("method")["kl_divergence"]])
    assert kl.arithmetic.percent == pytest.approx(100 * pooled / level, rel=1e-6)


def test_each_metric_says_how_far_it_tells_methods_apart_in_one_unit_for_all(repeated):
    found = {(s.metric, s.b): s for s in repeated.metrics}
    assert {m for m, _ in found} == {
        *("perplexity", "nll_per_token", "kl_divergence", "top1_agreement"),
        *("divergence.kl_reverse", "divergence.kl_q95", "divergence.kl_q99"),
    }
    for one in found.values():
        assert one.d_ci95[0] < one.d < one.d_ci95[1]
    values = [np.array(values_of(repeated, name)) for name in ("cola_zero", "random")]
    pooled = np.sqrt(np.mean([x.var(ddof=1) for x in values]))
    by_hand = (values[0].mean() - values[1].mean()) / pooled
    assert found["perplexity", "random"].d == pytest.approx(by_hand)
    logs = found["nll_per_token", "random"].percent  # as everywhere, % of perplexity
    assert logs == pytest.approx(found["perplexity", "random"].percent, rel=0.05)


def test_one_number_of_seeds_stands_in_a_report(repeated, demo):
    """Seeds to plan come from one rule alone: no table counts seeds for another question."""
    for summary in (repeated, demo):
        files = contents(summary, "suite")
        planned = files["results.md"].count("needed to resolve")
        primary = [p for p in summary.pairs if p.family == "primary" and p.plan]
        assert planned == sum(p.verdict == "inconclusive" for p in primary)
        assert not re.search(r"seeds per method|no number", files["table.md"])


def test_sets_of_a_method_overlap(demo):
    """Sets of 100 tokens, each 10 further on: 90, 80, 70, 60 of 100 are shared."""
    shared = (4 * 90 + 3 * 80 + 2 * 70 + 60) / 10 / 100
    found = {m.name: m.overlap for m in demo.methods}
    assert found == {
        "gptq_default": None,
        "random": pytest.approx(shared),
        "cola_zero": pytest.approx(shared),
    }


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
    with pytest.raises(RunsError, match=r"metric='speed' is in none of the runs.*nll_per_token"):
        summarize(cells, Options(metric="speed"))


def test_the_profile_of_a_pair_is_the_difference_of_means(demo):
    profile = demo.texts[MODEL].profile("cola_zero", "gptq_default")
    # The synthetic windows were shifted by the log of each perplexity's ratio.
    logs = [math.log(v) for v in values_of(demo, "cola_zero")]
    assert profile.shape == (16,)
    assert profile.mean() == pytest.approx(np.mean(logs) - math.log(24), abs=0.005)


def test_windows_that_a_run_lacks_leave_its_method_to_the_seeds(suites):
    suite = suites.suite()
    cells = load_suite(suite)
    first = cells[cells["method"] == "random"].iloc[0]
    file = read(first["run_id"], "evaluation/windows_sotu.parquet")
    file.unlink()
    summary = summarize(cells, Options())
    assert set(summary.texts[MODEL].draws) == {"gptq_default", "cola_zero"}
    assert summary.pairs[0].decided_by == "seeds"
