"""Tables, sentences and the page: a null is reported as a null, and everything is one file."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.reading.runs import load_suite
from analysis.reading.table import RunsError
from analysis.report.answer import answer, key_lines
from analysis.report.latex import latex_table
from analysis.report.sections import results_markdown, sections
from analysis.report.tables import (
    Table,
    comparison_table,
    markdown,
    methods_csv,
    p_text,
    result_table,
    seeds_table,
    windows_table,
)
from analysis.report.write import analyze, console, contents, report
from analysis.summary import Options, summarize
from colazero.figures import label

MODEL = "smollm2-135m"
DOCS = Path(__file__).parents[4] / "docs/guide/analysis.md"
FIGURES = ("seeds", "differences", "windows", "budget", "time")
FILES = {
    *("summary_stats.json", "suite.json", "cells.csv", "table.md", "table.csv", "table.tex"),
    *("results.md", "report.html"),
    *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("svg", "png")),
}


@pytest.fixture(scope="module")
def files(demo):
    """Every file of the demo suite's analysis."""
    return contents(demo, "A <suite>")


def words(summary):
    return results_markdown(summary, sections(summary))


def summary_of(suites, methods, **options):
    cells = load_suite(suites.suite(methods=methods, windows=False))
    return summarize(cells, Options(**options))


def test_every_file_is_there(files):
    assert set(files) == FILES


def test_the_umask_decides_who_may_read_the_files_in_out(suites, tmp_path):
    cells = load_suite(suites.suite(windows=False))
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.chmod(0o2771)
    before = os.umask(0o027)
    try:
        for out in (tmp_path / "new", mine):
            report(cells, Options(), "a suite", out=out)
    finally:
        os.umask(before)
    for out, mode in ((tmp_path / "new", 0o750), (mine, 0o2771)):
        assert out.stat().st_mode & 0o7777 == mode
        assert (out / "figures").stat().st_mode & 0o777 == 0o750
        assert {file.stat().st_mode & 0o777 for file in out.rglob("*.*")} == {0o640}


@pytest.mark.parametrize("types", ["Q4_1, dequantized", "F16", None])
def test_a_base_model_from_a_gguf_file_is_named_with_its_types(suites, types):
    tags = {} if types is None else {"tags": {"colazero.base_model": types}}
    cells = [f"{MODEL}/{method}/{seed}" for method in ("random", "cola_zero") for seed in (42, 43)]
    methods = {"random": (23.4, 0.35), "cola_zero": (23.1, 0.30)}
    suite = suites.suite(methods=methods, seeds=2, windows=False, **dict.fromkeys(cells, tags))
    files = contents(summarize(load_suite(suite), Options()), "A suite")
    settings = json.loads(files["suite.json"])["settings"]
    for name in ("results.md", "report.html"):
        assert (f"Base model: {types}" in files[name]) == (types is not None)
        assert ("re-quantized" in files[name]) == ("dequantized" in str(types))
    assert settings.get("stored_as", []) == ([types] if types else [])


def test_the_result_table_has_a_row_a_method(demo):
    table = result_table(demo)
    assert [row[0] for row in table.rows] == ["unquantized", "cola_zero", "random", "gptq_default"]
    assert [row[1] for row in table.rows] == ["1 run", "5 seeds", "5 seeds", "1 draw of 1 set"]
    assert table.header[-1] == "tokens shared by two sets %"
    assert [row[-1] for row in table.rows] == ["–", "80.0", "80.0", "–"]
    assert table.rows[3][2:6] == ["24.000", "–", "–", "+20.00"]  # one observation has no spread
    assert re.fullmatch(r"\d\d\.\d{3} ± 0\.\d{3}", table.rows[2][2])
    text = markdown(table).splitlines()
    assert len({len(line) for line in text}) == 1
    assert text[1].startswith("| ---")


def test_the_table_of_several_models_names_them(three):
    table = result_table(three)
    assert table.header[:2] == ["model", "method"]
    assert len(table.rows) == 12
    assert {row[0] for row in comparison_table(three, "primary").rows} == {"a", "b", "c"}


def test_a_bar_in_a_name_does_not_break_the_table():
    assert "a\\|b" in markdown(Table(["x"], [["a|b"]]))


def test_the_csv_table_holds_unrounded_numbers(demo):
    summary = demo
    rows = list(csv.DictReader(io.StringIO(methods_csv(summary))))
    for row, method in zip(rows, summary.methods, strict=True):
        assert float(row["mean"]) == method.description.mean
        one = method.n == 1
        assert row["ci95_low"] == ("" if one else str(method.description.ci95[0]))
        assert (row["std"] == "", row["cv_percent"] == "") == (one, one)
    assert float(rows[1]["p_holm_vs_primary"]) == summary.pairs[0].judgement.p_adjusted


def test_a_null_is_reported_as_a_null(demo):
    text = words(demo).split("## COLA-Zero vs Random\n")[1].split("##")[0]
    for part in (
        r"23\.031 ± 0\.368 with COLA-Zero \(5 seeds\) and 23\.354 ± 0\.370 with Random \(5 seeds\)",
        r"\*\*Inconclusive:\*\* −1\.39 %, 95 % CI \[.*\], p = 0\.2\d\d after Holm over 1",
        r"over seeds and text together: 16 windows \(8,176 tokens\)",
        r"On exactly these windows: −1\.38 %.*Welch's t\(8\.0\) = −1\.385, p = 0\.203",
        r"Cohen's d = −0\.88, 95 % CI \[−2\.16, 0\.46\]",
        r"to resolve 1 %: \d+ to show a difference, \d+ to show equivalence",
        r"over seeds: 1\.60 % \(COLA-Zero\), 1\.59 % \(Random\)",
        r"takes 24 seeds",
    ):
        assert re.search(part, text), part
    for word in ("better", "is equivalent", "significant", "outperform"):
        assert word not in text


def test_the_verdicts_are_counted_before_they_are_listed(demo):
    lines = key_lines(demo)
    assert lines[0] == (
        "2 comparisons (COLA-Zero against each other method): 1 inconclusive, 1 undefined."
    )
    assert lines[1].startswith("COLA-Zero vs Random: inconclusive (−1.39 %, 95 % CI")
    assert lines[-1] == "1 comparison (exploratory, all other pairs): 1 undefined."


def test_one_set_is_spoken_of_as_one_set(repeated):
    text = words(repeated).split("## COLA-Zero vs GPTQ default\n")[1].split("##")[0]
    assert "24.067 ± 0.163 with GPTQ default (15 replicates of 1 set)" in text
    assert "GPTQ default has one calibration set" in text
    assert "holds for this one set only" in text
    assert "Coefficients of variation" not in text


def test_a_difference_names_the_better_method_whatever_its_place(suites):
    methods = {"random": (22.0, 0.05), "cola_zero": (24.0, 0.05)}
    text = words(summary_of(suites, methods))
    assert "**Different:** Random did better than COLA-Zero (+9." in text


def test_what_only_an_unadjusted_test_would_show_is_not_called_a_difference(suites):
    methods = {"other": (23.0, 0.3), "random": (23.1, 0.3), "cola_zero": (23.6, 0.3)}
    summary = summary_of(suites, methods)
    alone = [p for p in summary.pairs if p.judgement.p_value < 0.05 < p.judgement.p_adjusted]
    assert alone
    for pair in alone:
        text = words(summary).split(f"## {label(pair.a)} vs {label(pair.b)}\n")[1].split("##")[0]
        assert "**Inconclusive:**" in text
        assert re.search(r"Alone .* \(p = 0\.0\d+\); as one of 2 it does not", text)


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, "–"), (0.0004, "< 0.001"), (0.0503, "0.0503"), (0.0498, "0.0498"), (0.314, "0.314")],
)
def test_a_p_value_never_hides_its_side_of_the_level(p, text):
    assert p_text(p) == text


def test_equality_within_the_margin_is_called_equivalent(suites):
    methods = {"random": (23.0, 0.02), "cola_zero": (23.0, 0.03)}
    text = words(summary_of(suites, methods, margin=2))
    assert re.search(r"\*\*Equivalent within ±2 %:\*\* .*, 90 % CI \[.*\] \(p", text)
    assert "No difference is shown" in text
    assert "Post hoc: margin 2 %" in text
    assert "ost hoc" not in words(summary_of(suites, methods))


def test_a_small_difference_is_said_to_be_small(suites):
    methods = {"random": (23.0, 0.01), "cola_zero": (22.9, 0.01)}
    text = words(summary_of(suites, methods, margin=5))
    assert "COLA-Zero did better than Random" in text
    assert "The difference is also shown to lie within ±5 %" in text


def test_without_a_test_the_sentences_say_why(suites):
    cells = load_suite(suites.suite(seeds=1, windows=False))
    text = words(summarize(cells, Options()))
    assert len(re.findall(r"\*\*No test applies:\*\* .* one draw each of unknown noise", text)) == 2
    assert "p =" not in text
    assert "would find" not in text


def test_what_failed_is_listed_with_its_reason(three):
    summary = three
    text = words(summary)
    assert "## Runs without a result" in text
    assert "b/random/seed 44: ValueError: no luck" in text
    assert "1 of 48 runs has no result" in "\n".join(key_lines(summary))
    assert "## Over all models (exploratory)" in text
    assert "rest on fewer runs than planned" in text


def test_comparisons_do_not_rest_on_the_unquantized_run(suites):
    change = {f"{MODEL}/unquantized": {"status": "FAILED"}}
    cells = load_suite(suites.suite(**change), allow_failed=True)
    text = words(summarize(cells, Options()))
    assert "1 of 16 runs has no result" in text
    assert "fewer runs than planned" not in text


def test_a_verdict_stands_beside_one_p_value_and_no_stars(repeated):
    table = comparison_table(repeated, "primary")
    assert sum(name.startswith("p ") for name in table.header) == 1
    tables = [table, windows_table(repeated)]
    assert not any("*" in cell for one in tables for row in one.rows for cell in row)
    assert all(len(row) == len(table.header) for row in table.rows)


def test_nothing_undefined_is_written_as_a_number(three, suites):
    cells = load_suite(suites.suite(seeds=1, windows=False))
    for summary in (three, summarize(cells, Options())):
        for text in (words(summary), markdown(result_table(summary)), latex_table(summary)):
            assert not re.search(r"\b(nan|inf|None)\b", text)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_everything_in_it(files):
    text = files["report.html"]
    page = Page(text)
    assert page.open == []
    assert page.tags.count("img") == 5
    assert page.tags.count("table") == 9
    assert "script" not in page.tags
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "http" not in text
    assert "A &lt;suite&gt;: 15 of 15 cells" in text
    assert "<b>Inconclusive:</b>" in text
    assert "n = 5 seeds" in text
    assert re.search(
        r"<h1>Calibration sets for GPTQ: GPTQ default, Random, COLA-Zero on smollm2-135m; "
        r"seeds 42–46, 20\d\d-\d\d-\d\d</h1>",
        text,
    )
    assert "perplexity on 16 windows of sotu, 8,176 predicted tokens" in text


def test_every_seed_is_in_a_table(three, repeated):
    table = seeds_table(three)
    assert table.header == ["model", "seed", "GPTQ default", "Random", "COLA-Zero"]
    assert len(table.rows) == 15
    cells = three.cells.set_index(["model", "seed", "method"])["perplexity"]
    assert table.rows[0][3] == f"{cells['a', 42, 'random']:.3f}"
    failed = next(row for row in table.rows if row[:2] == ["b", "44"])
    assert failed[3] == "–"
    assert seeds_table(repeated).header[:2] == ["seed", "replicate"]


def test_the_settings_are_complete(files):
    settings = json.loads(files["suite.json"])["settings"]
    for name in ("seed", "corpus", "seq_len", "eval_windows", "damp_percent", "git_commit", "date"):
        assert settings[name], name


def test_the_page_of_a_suite_without_a_result_says_so(suites):
    change = {
        f"{MODEL}/{method}/{seed}": {"status": "FAILED"}
        for method in ("gptq_default", "random", "cola_zero")
        for seed in (42, 43)
    }
    change[f"{MODEL}/unquantized"] = {"status": "FAILED"}
    suite = suites.suite(seeds=2, windows=False, **change)
    assert "7 of 7 runs have no result" in analyze(suite)
    files = contents(summarize(load_suite(suite, allow_failed=True), Options()), "t")
    assert "None of the runs has a result." in files["report.html"]
    assert "figures/seeds.svg" not in files


def test_statistics_are_found_and_shown(files):
    text = files["report.html"]
    assert "Largest value of any seed, % above the unquantized model" in text


def test_the_documented_example_is_what_the_snippet_prints(capsys):
    example = DOCS.read_text(encoding="utf-8").split("## An example")[1]
    code, output = re.findall(r"```(?:python)?\n(.*?)```", example, re.DOTALL)[:2]
    exec(code, {})
    assert capsys.readouterr().out == output
    assert "t(6.97) = -1.085, p = 0.314" in output


def test_the_analysis_never_imports_torch():
    code = "import analysis.report.write, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS.parents[1])


def test_options_that_do_not_fit_are_refused(suites):
    suite = suites.suite(seeds=2, windows=False)
    with pytest.raises(RunsError, match="metric='x'"):
        analyze(suite, Options(metric="x"))


def answers(suites, methods, **options):
    (text,) = answer(summary_of(suites, methods, **options))
    return text


def test_a_method_is_the_best_only_if_its_comparisons_say_so(suites):
    """A one-sided bound of 0 does not contradict the two-sided verdict below it."""
    one_sided = 0
    for better in (22.7, 22.75, 22.8, 22.85, 22.9):
        methods = {"random": (23.0, 0.15), "cola_zero": (better, 0.15)}
        summary = summary_of(suites, methods)
        (text,) = answer(summary)
        (pair,) = summary.pairs
        assert ("the best of these" in text) == (
            pair.verdict == "different" and summary.ranks[MODEL][0].at_most == 0
        )
        one_sided += summary.ranks[MODEL][0].at_most == 0 and pair.verdict != "different"
    assert one_sided


def test_the_first_line_says_which_method_to_use_and_how_sure_that_is(suites, files, demo):
    far = {"random": (23.0, 0.05), "zipcal": (25.0, 0.05), "cola_zero": (22.0, 0.05)}
    text = answers(suites, far)
    assert re.match(r"Use COLA-Zero: .* best of these methods\. Random is at least 4\.\d and", text)
    assert "ZipCal is at least 11." in text
    near = {"random": (23.0, 0.02), "cola_zero": (23.0, 0.02)}
    assert re.match(r"Use (COLA-Zero or Random|Random or COLA-Zero): each", answers(suites, near))
    noisy = {"random": (23.0, 2.0), "cola_zero": (23.0, 2.0)}
    assert answers(suites, noisy).startswith("These runs do not show which method is best")
    (text,) = answer(demo)
    (best, *_) = demo.ranks[MODEL]
    assert f"at most {best.at_most:.1f} %" in text
    assert "95 % confidence" in text
    assert files["results.md"].split("\n\n")[1] == text
    assert files["report.html"].index(text) < files["report.html"].index("<table")
    assert console(demo).startswith(text)
