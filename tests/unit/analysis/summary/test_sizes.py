"""How much calibration text is enough: sizes of set against the largest, and what is said of it."""

import json

import numpy as np
import pytest

from analysis.reading.runs import load_suite, load_suites
from analysis.report.answer import answer
from analysis.report.plots import figures
from analysis.report.write import analyze, contents
from analysis.summary import Options, summarize

MEANS = {8: 25.0, 32: 23.05, 128: 23.0}
"""Windows per set → mean perplexity: 32 are within 1 % of 128, and 8 are 8.7 % worse."""


def suite(store, node, means=MEANS, seeds=6, std=0.02, lengths=(512,), **more):
    """Log a suite of one method over sizes; return its cells. `means`: by windows, or (n, L)."""
    from synthetic_suites import Suites

    suites = Suites(store, node.nodeid + str(more))
    suites_of = []
    for length in lengths:
        for n in dict.fromkeys(key[0] if isinstance(key, tuple) else key for key in means):
            mean = means.get((n, length), means.get(n))
            settings = {"n_calibration_samples": str(n), "seq_len": str(length)}
            suites_of.append(
                suites.suite(
                    methods={"random": (mean, std)}, seeds=seeds, settings=settings, **more
                )
            )
    return load_suites(suites_of)


def test_the_least_size_within_the_margin_is_named_with_its_bound(store, request):
    summary = summarize(suite(store, request.node), Options())
    (group,) = summary.sizes
    assert (group.method, group.largest.samples, group.level) == ("random", 128, 0.95)
    assert [(size.samples, size.enough) for size in group.sizes] == [(8, False), (32, True)]
    least = group.least
    assert least.samples == 32
    assert 0 < least.worse_percent < least.at_most_percent < 1
    first = answer(summary)[0]
    for words in ("32 × 512 tokens are enough", f"at most {least.at_most_percent:.1f} %", "95 %"):
        assert words in first
    assert "128 × 512" in first
    assert "not the best" not in first


def test_no_size_is_enough_above_one_that_is_not(store, request):
    """8 windows would pass alone; 32, which are more text, do not: then neither is shown."""
    summary = summarize(suite(store, request.node, {8: 23.0, 32: 25.0, 128: 23.0}), Options())
    (group,) = summary.sizes
    assert group.least is None
    assert group.sizes[0].at_most_percent < 1
    first = answer(summary)[0]
    assert "no smaller size is shown to be within 1 %" in first
    assert "32 × 512 tokens come closest" in first
    assert f"at most {group.sizes[1].at_most_percent:.1f} % above" in first
    assert "Fewer windows are tested only once" in first


def test_each_length_is_a_sequence_of_its_own_at_its_share_of_the_level(store, request):
    means = {(8, 512): 23.0, (32, 512): 23.0, (8, 2048): 25.0, (32, 2048): 23.0}
    cells = suite(store, request.node, means, lengths=(512, 2048))
    (group,) = summarize(cells, Options()).sizes
    assert (group.largest.samples, group.largest.seq_len) == (32, 2048)
    assert group.level == pytest.approx(0.975)
    assert {(s.samples, s.seq_len): s.enough for s in group.sizes} == {
        (8, 512): True,
        (32, 512): True,
        (8, 2048): False,
    }
    assert group.least.tokens == 8 * 512


def test_the_bound_is_that_of_the_comparison_over_seeds_and_text(store, request):
    summary = summarize(suite(store, request.node), Options(alpha=0.1))
    (group,) = summary.sizes
    size, largest = group.sizes[0], group.largest
    compared = summary.between((size.model, "random"), (largest.model, "random"))
    # The upper limit of a two-sided interval at twice the level.
    upper = compared.estimate.interval(0.2)[1]
    assert size.at_most_percent == pytest.approx(100 * np.expm1(upper))


def test_a_largest_size_that_is_not_the_best_is_said_first(store, request):
    summary = summarize(suite(store, request.node, {8: 23.0, 32: 21.0, 128: 23.0}), Options())
    (group,) = summary.sizes
    first, second = answer(summary)[0].split(". ")[:2]
    assert "128 × 512 tokens, is not the best" in first
    assert f"32 × 512 tokens, mean perplexity is {-group.best.worse_percent:.1f} % lower" in second
    assert f"at least {-group.best.at_most_percent:.2f} %" in second


@pytest.mark.parametrize(("seeds", "windows"), [(1, True), (6, False)])
def test_without_an_error_nothing_is_said_to_be_enough(store, request, seeds, windows):
    cells = suite(store, request.node, seeds=seeds, windows=windows)
    summary = summarize(cells, Options())
    (group,) = summary.sizes
    assert group.least is None
    assert {size.at_most_percent for size in group.sizes} == {None}
    assert "do not show how much text is enough" in answer(summary)[0]
    contents(summary, "")


def test_methods_and_other_settings_are_groups_of_their_own(store, request):
    from synthetic_suites import Suites

    sweep = {"quant_bits": [3, 4], "n_calibration_samples": [8, 16]}
    suites = Suites(store, request.node.nodeid)
    cells = load_suite(suites.suite(sweep=sweep, seeds=3))
    groups = summarize(cells, Options()).sizes
    assert {(g.model, g.method) for g in groups} == {
        (f"smollm2-135m [quant_bits={bits}]", method)
        for bits in (3, 4)
        for method in ("gptq_default", "random", "cola_zero")
    }
    assert {g.largest.samples for g in groups} == {16}


def test_runs_of_one_size_and_metrics_that_should_be_high_have_no_sizes(store, request):
    from synthetic_suites import Suites

    suites = Suites(store, request.node.nodeid)
    one = load_suite(suites.suite(sweep={"quant_bits": [3, 4]}, seeds=3))
    assert summarize(one, Options()).sizes == []
    several = suites.suite(sweep={"n_calibration_samples": [8, 16]}, seeds=3, windows="kl")
    cells = load_suite(several)
    assert summarize(cells, Options(metric="top1_agreement")).sizes == []
    assert summarize(cells, Options(metric="divergence.kl_q99")).sizes == []
    assert summarize(cells, Options(metric="kl_divergence")).sizes


def test_analyze_writes_the_sizes_into_every_form_of_the_report(store, request, tmp_path):
    from synthetic_suites import Suites

    suites = Suites(store, request.node.nodeid)
    suite_id = suites.suite(
        methods={"random": (23.0, 0.02)}, seeds=4, sweep={"n_calibration_samples": [8, 16, 32]}
    )
    said = analyze(suite_id, out=tmp_path)
    assert "× 512 tokens" in said.splitlines()[0]
    assert "8 × 512" in (tmp_path / "results.md").read_text()
    assert "How much calibration text" in (tmp_path / "report.html").read_text()
    (group,) = json.loads((tmp_path / "suite.json").read_text())["sizes"]
    assert [size["samples"] for size in group["sizes"]] == [8, 16]
    assert (tmp_path / "figures" / "sizes.svg").exists()
    drawn = figures(summarize(load_suite(suite_id), Options()))["sizes"]
    marks = [line for line in drawn.axes[0].lines if line.get_gid() == "length"]
    assert [list(line.get_xdata()) for line in marks] == [[8 * 512, 16 * 512, 32 * 512]]
