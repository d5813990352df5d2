"""What each look at a suite showed, and the verdict that all of them allow."""

import re

import numpy as np
import pytest

from analysis.reading.looks import Course, course_of, read_course
from analysis.reading.runs import load_experiment, load_suite
from analysis.report.answer import key_lines, look_lines
from analysis.report.facts import CODES, judge
from analysis.report.plots import figures
from analysis.report.sections import paragraphs
from analysis.report.tables import looks_table
from analysis.report.write import contents
from analysis.stats.sequential import Look, anytime, judge_looks
from analysis.stats.verdicts import holm
from analysis.summary import Options, summarize

MODEL = "smollm2-135m"
APART = {"random": (24.0, 0.35), "cola_zero": (22.0, 0.30)}
ALIKE = {"random": (23.1, 0.35), "cola_zero": (23.0, 0.30)}


def settling(suites, methods, seeds, looks, windows=False, **change):
    """A suite with until=settled that was looked at as often as `looks` says."""
    parent = suites.suite(methods=methods, seeds=seeds, windows=windows, **change)
    for name, value in (("until", "settled"), ("looks", looks)):
        suites.client.log_param(parent, name, value)
    suites.client.set_tag(parent, "colazero.looks", looks)
    return parent


def keyed(methods, seeds, before=None):
    """Keys for cells as `Suites.suite` takes changes; `before` is the suite they were done in."""
    done = {}
    if before is not None:
        rows = load_suite(before, allow_failed=True)
        rows = rows[(rows["kind"] == "cell") & (rows["error"] == "")]
        done = dict(
            zip(zip(rows["method"], rows["seed"], strict=True), rows["run_id"], strict=True)
        )
    found = {}
    for method in methods:
        for seed in range(42, 42 + seeds):
            tags = {"colazero.key": f"{method}-{seed}"}
            if (method, seed) in done:
                tags["colazero.source_run"] = done[method, seed]
            found[f"{MODEL}/{method}/{seed}"] = {"tags": tags}
    return found


def values(cells, method, first):
    rows = cells[(cells["method"] == method) & (cells["seed"] < 42 + first)]
    return rows.sort_values("seed")["perplexity"].to_list()


def test_looks_under_a_declared_maximum_are_judged_by_all_of_them(suites):
    cells = load_suite(settling(suites, ALIKE, 9, "3,6,9"))
    keys = [(MODEL, m, s) for m in ALIKE for s in range(42, 51)]
    course = Course([frozenset(k for k in keys if k[2] < 42 + n) for n in (3, 6, 9)], {MODEL: 9})
    (one,) = summarize(cells, Options(), course).looks
    assert one.ns == (3, 6, 9)
    looks = [Look(n, p.seeds.estimate) for n, p in zip(one.ns, one.pairs, strict=True)]
    for n, pair in zip(one.ns, one.pairs, strict=True):
        assert (pair.seeds.n_a, pair.seeds.n_b) == (n, n)
    (right,) = judge_looks([looks], [one.pairs[-1].margin_of_estimate], 9)
    assert one.judgement == right
    assert one.spent[-1] == pytest.approx(0.05)
    assert list(one.spent) == sorted(one.spent)


def test_a_suite_is_judged_from_its_first_seeds_alone(suites):
    suite = settling(suites, APART, 10, "5")
    (early,) = judge(suite, 5)
    cells = load_suite(suite)
    assert early.verdict == "different"
    assert early.numbers["seeds"] == 5
    assert early.numbers["verdict"] == CODES["different"]
    change = 100 * (sum(values(cells, "cola_zero", 5)) / sum(values(cells, "random", 5)) - 1)
    assert early.numbers["difference_percent"] == pytest.approx(change)
    assert early.numbers["low_percent"] < change < early.numbers["high_percent"] < 0
    assert early.numbers["p_value"] < early.numbers["level"] < 0.05
    for words in ("COLA-Zero vs Random: different", "at a level of 0.0"):
        assert words in early.text


def test_the_verdict_of_a_settled_comparison_stays_with_the_look_that_settled_it(suites):
    """`random` is done after 5 seeds; the primary method goes on for the other."""
    methods = APART | {"stratified": (22.05, 0.3)}
    left_out = {f"{MODEL}/random/{seed}": None for seed in range(47, 52)}
    suite = settling(suites, methods, 10, "5", **left_out)
    suites.client.set_tag(suite, "colazero.stopped", f'{{"{MODEL}": {{"random": 5}}}}')
    cells = load_suite(suite)
    assert len(cells[cells["method"] == "random"]) == 5, "the others are not missing"
    summary = summarize(cells, Options(), read_course(suite, cells))
    assert len(summary.failed) == 0
    first, second = (p for p in summary.pairs if p.family == "primary")
    assert (first.b, first.verdict) == ("random", "different")
    assert (first.seeds.n_a, first.seeds.n_b) == (5, 5)
    assert (second.seeds.n_a, second.seeds.n_b) == (10, 10)
    assert second.verdict in ("equivalent", "inconclusive")
    adjusted = holm([first.seeds.p_value, second.seeds.p_value])
    assert [first.seeds.p_adjusted, second.seeds.p_adjusted] == pytest.approx(adjusted)
    said = "It was settled at an earlier look, on 5 and 5 observations"
    for text in (key_lines(summary)[1], paragraphs(summary, first)[0]):
        assert said in text, "the means beside it are of 10 and 5"
    assert "earlier look" not in key_lines(summary)[2]
    assert "earlier look" not in paragraphs(summary, second)[0]
    assert "ratio of spreads at that look" in paragraphs(summary, first)[-1]
    assert "ratio of spreads at that look" not in paragraphs(summary, second)[-1]


def test_a_suite_that_was_looked_at_once_is_judged_as_ever(suites):
    suite = suites.suite(methods=ALIKE, windows=False)
    cells = load_suite(suite)
    course = read_course(suite, cells)
    assert (len(course.looks), course.maxima) == (1, {MODEL: None})
    looked, plain = summarize(cells, Options(), course), summarize(cells, Options())
    assert looked.looks == []
    assert looked.pairs == plain.pairs
    assert look_lines(looked) == []
    assert "<h2>Looks</h2>" not in contents(looked, "suite")["report.html"]


def test_a_fixed_suite_that_is_extended_says_which_look_it_is(suites):
    first = suites.suite(methods=ALIKE, windows=False, **keyed(ALIKE, 5))
    suites.client.set_terminated(first, "FINISHED")
    second = suites.suite(methods=ALIKE, seeds=10, windows=False, **keyed(ALIKE, 10, first))
    cells = load_suite(second)
    course = read_course(second, cells)
    assert course.maxima == {MODEL: None}
    assert [len(seen) for seen in course.looks] == [10, 20]
    summary = summarize(cells, Options(), course)
    (one,) = summary.looks
    assert one.ns == (5, 10)
    logs = [np.log(values(cells, name, 10)) for name in ("cola_zero", "random")]
    right = anytime(*logs)
    assert one.judgement.p_value == right.p_value
    assert one.judgement.ci == right.ci
    (pair,) = summary.pairs
    assert pair.judgement == one.judgement
    assert (pair.decided_by, pair.plan) == ("seeds at any time", None)
    low, high = one.nominal
    assert (low, high) == pytest.approx(pair.seeds_percent_ci95)
    assert pair.decided[0][0] < low < high < pair.decided[0][1], "wider than of a single look"
    (line,) = look_lines(summary)
    assert re.match(r"This is look 2, at 10 seeds .*earlier: 5\)\. No maximum", line)
    assert re.search(r"single planned look, not valid here: COLA-Zero vs Random \[", line)
    assert line in contents(summary, "suite")["results.md"]


def test_a_settling_suite_that_is_run_again_spends_nothing_twice(suites):
    first = settling(suites, ALIKE, 10, "5,10", **keyed(ALIKE, 10))
    suites.client.set_terminated(first, "FINISHED")
    again = settling(suites, ALIKE, 10, "5,10", **keyed(ALIKE, 10, first))
    cells = load_suite(again)
    course = read_course(again, cells)
    assert course.maxima == {MODEL: 10}
    assert [len(seen) for seen in course.looks] == [10, 20]


def test_a_suite_beyond_the_declared_maximum_has_none(suites):
    first = settling(suites, ALIKE, 6, "3,6", **keyed(ALIKE, 6))
    suites.client.set_terminated(first, "FINISHED")
    more = settling(suites, ALIKE, 9, "3,6,9", **keyed(ALIKE, 9, first))
    cells = load_suite(more)
    course = read_course(more, cells)
    assert course.maxima == {MODEL: None}
    assert [len(seen) for seen in course.looks] == [6, 12, 18]


def broken_off(suites, seeds, held, **change):
    """A suite of so many declared seeds that was killed when `held` of them were done."""
    left_out = {f"{MODEL}/{m}/{42 + k}": None for m in ALIKE for k in range(held, seeds)}
    change = keyed(ALIKE, seeds) | left_out | change
    suite = suites.suite(methods=ALIKE, seeds=seeds, windows=False, **change)
    suites.client.set_terminated(suite, "KILLED")
    return suite


@pytest.mark.parametrize("seeds", [5, 6, 9])
def test_a_suite_with_other_seeds_than_a_killed_one_rests_on_a_test_for_any_look(suites, seeds):
    """Who watches the values can interrupt at a good moment, and report these seeds alone."""
    first = broken_off(suites, 9, 5)
    second = suites.suite(methods=ALIKE, seeds=seeds, windows=False, **keyed(ALIKE, seeds, first))
    suites.client.set_terminated(second, "FINISHED")
    cells = load_suite(second)
    course = read_course(second, cells)
    kept = seeds == 9
    assert course.interrupted == (frozenset() if kept else {MODEL})
    summary = summarize(cells, Options(), course)
    (pair,) = summary.pairs
    assert pair.decided_by == ("seeds" if kept else "seeds at any time")
    assert bool(look_lines(summary)) != kept
    assert all("interrupted" in line for line in look_lines(summary))


@pytest.mark.parametrize(
    ("status", "tags", "basis"),
    [
        ("KILLED", {}, "seeds at any time"),
        ("RUNNING", {}, "seeds at any time"),
        ("RUNNING", {"colazero.ended": "true"}, "seeds"),  # by its own analysis, out of hours
        ("FINISHED", {}, "seeds"),
    ],
)
def test_a_suite_that_broke_off_itself_has_no_ordinary_p_value(suites, status, tags, basis):
    suite = broken_off(suites, 9, 5)
    for name, value in tags.items():
        suites.client.set_tag(suite, name, value)
    suites.client.update_run(suite, status)
    cells = load_suite(suite, allow_failed=True)
    summary = summarize(cells, Options(), read_course(suite, cells))
    assert summary.pairs[0].decided_by == basis


def test_a_killed_suite_that_declared_a_maximum_spends_its_alpha(suites):
    first = broken_off(suites, 9, 5)
    suites.client.log_param(first, "until", "settled")
    second = suites.suite(methods=ALIKE, seeds=5, windows=False, **keyed(ALIKE, 5, first))
    cells = load_suite(second)
    (one,) = summarize(cells, Options(), read_course(second, cells)).looks
    assert (one.ns, one.maximum) == ((5,), 9)
    assert one.spent[0] < 0.05


def test_one_seed_of_a_killed_suite_compares_nothing(suites):
    first = broken_off(suites, 9, 1)
    second = suites.suite(methods=ALIKE, seeds=5, windows=False, **keyed(ALIKE, 5, first))
    course = read_course(second, load_suite(second))
    assert (len(course.looks), course.interrupted) == (1, frozenset())


def test_only_methods_that_were_there_were_looked_at(suites):
    first = suites.suite(methods=ALIKE, windows=False, **keyed(ALIKE, 5))
    suites.client.set_terminated(first, "FINISHED")
    methods = ALIKE | {"stratified": (23.0, 0.3)}
    second = suites.suite(methods=methods, seeds=8, windows=False, **keyed(methods, 8, first))
    cells = load_suite(second)
    found = summarize(cells, Options(), read_course(second, cells)).looks
    assert {t.pair.b: t.ns for t in found} == {"random": (5, 8), "stratified": (8,)}


def test_the_looks_are_in_the_report_and_drawn(suites):
    suite = settling(suites, ALIKE, 9, "3,6,9", windows=True)
    cells = load_suite(suite)
    summary = summarize(cells, Options(), read_course(suite, cells))
    assert summary.pairs[0].decided_by == "seeds and text"
    table = looks_table(summary)
    assert [row[1] for row in table.rows] == ["3", "6", "9"]
    assert all(len(row) == len(table.header) for row in table.rows)
    figure = figures(summary)["looks"]
    drawn = {child.get_gid() for axis in figure.axes for child in axis.get_children()}
    assert {"repeated", "difference", "boundary", "z"} <= drawn
    for axis in figure.axes:
        marks = [line.get_ydata()[0] for line in axis.lines if line.get_gid() == "z"]
        assert max(marks, default=0.0) < 0.95 * axis.get_ylim()[1], "none is cut in half"
    files = contents(summary, "suite")
    assert "<h2>Looks</h2>" in files["report.html"]
    assert "figures/looks.svg" in files
    (line,) = look_lines(summary)
    assert re.match(r"This is look 3, at 9 seeds .*\(earlier: 3, 6\), of at most 9\.", line)


def test_equivalence_is_told_with_the_tests_that_showed_it(suites):
    """The p beside the level is below it, as it is for a difference."""
    close = {"random": (23.0, 0.02), "cola_zero": (23.0, 0.02)}
    (found,) = judge(settling(suites, close, 9, "6"), 6)
    assert found.verdict == "equivalent"
    assert ", p < 0.001 at a level of 0.0" in found.text
    assert found.text.endswith(", two one-sided tests")


def extended(suites, methods, more, seeds=10, **options):
    """A suite of 5 seeds, then one that holds `seeds` seeds of the methods in `more`."""
    first = suites.suite(methods=methods, **options, **keyed(methods, 5))
    suites.client.set_terminated(first, "FINISHED")
    change = keyed(methods, seeds, first)
    for method in set(methods) - set(more):
        change |= {f"{MODEL}/{method}/{seed}": None for seed in range(47, 42 + seeds)}
    second = suites.suite(methods=methods, seeds=seeds, **options, **change)
    cells = load_suite(second, allow_failed=True)
    cells = cells[cells["error"] == ""]
    return cells, summarize(cells, Options(), read_course(second, cells))


def test_seeds_added_to_one_method_are_a_look(suites):
    """Adding seeds to one method until it looks good is looking: no ordinary test decides."""
    _, summary = extended(suites, ALIKE, ["cola_zero"], windows=False)
    (one,) = summary.looks
    assert one.ns == (5, 10)
    (pair,) = summary.pairs
    assert (pair.seeds.n_a, pair.seeds.n_b) == (10, 5)
    assert pair.decided_by == "seeds at any time"
    assert pair.at_any_time.n == 5
    assert "the first 5 observations of each method" in " ".join(paragraphs(summary, pair))


def test_after_undeclared_looks_one_basis_is_named_everywhere(suites):
    """With windows too: the e-process decides, and nothing says that the text does."""
    cells, summary = extended(suites, ALIKE, list(ALIKE))
    (pair,) = summary.pairs
    assert pair.text.estimate is not None, "a test over seeds and text is there, and not used"
    assert pair.decided_by == "seeds at any time"
    logs = [np.log(values(cells, name, 10)) for name in ("cola_zero", "random")]
    right = anytime(*logs)
    assert pair.percent == pytest.approx(100 * np.expm1(right.diff))
    assert pair.decided[0] == pytest.approx(tuple(100 * np.expm1(right.ci)))
    for text in (*paragraphs(summary, pair), *key_lines(summary)):
        assert "seeds and text together" not in text
    assert all(rank.basis == "seeds at any time" for rank in summary.ranks[MODEL])


@pytest.mark.parametrize("means", [(22.0, 24.5, 22.56), (22.8, 23.0, 23.2), (22.5, 23.2, 22.6)])
def test_the_interval_beside_a_verdict_leaves_0_out_exactly_where_it_is_different(suites, means):
    """Over undeclared looks as well: the interval at Holm's step, not at Bonferroni's."""
    names = ("cola_zero", "random", "stratified")
    methods = {name: (mean, 0.35) for name, mean in zip(names, means, strict=True)}
    _, summary = extended(suites, methods, names, windows=False)
    primary = [p for p in summary.pairs if p.family == "primary"]
    assert len(primary) == 2
    for pair in primary:
        (low, high), _ = pair.decided
        holds_zero = low <= 0 <= high
        assert holds_zero == (pair.judgement.p_adjusted >= 0.05)


def test_an_estimate_that_ended_the_looks_early_has_an_unbiased_one_beside_it(suites):
    suite = settling(suites, {"random": (23.5, 0.35), "cola_zero": (22.9, 0.30)}, 20, "5,10")
    cells = load_suite(suite)
    first = cells[cells["seed"].isna() | (cells["seed"] < 52)]
    (one,) = summarize(first, Options(), read_course(suite, first)).looks
    assert one.judgement.decided_at == 10 < one.maximum
    assert 0 < one.unbiased / one.pair.percent < 1
    course = Course(read_course(suite, cells).looks, {MODEL: 20})
    (plain,) = summarize(cells, Options(), course).looks
    assert (plain.unbiased is None) == (plain.ns[plain.decided] == 20)


def test_an_experiment_and_a_filter_keep_the_looks(suites):
    """The same cells, found another way: no ordinary p-value for the second look."""
    _, summary = extended(suites, ALIKE, list(ALIKE), windows=False)
    for condition in ("", "params.method != 'gptq_default'"):
        cells = load_experiment(suites.name, condition, allow_failed=True)
        again = summarize(cells, Options(), course_of(cells))
        assert [one.ns for one in again.looks] == [(5, 10)]
        assert again.pairs[0].decided_by == "seeds at any time"
        assert again.pairs[0].judgement == summary.pairs[0].judgement
