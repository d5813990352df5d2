"""Tables, sentences and the page: a null is reported as a null, and everything is one file."""

import csv
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.reading.checks import RunsError
from analysis.reading.runs import load_suite
from analysis.report.latex import escape, latex_table
from analysis.report.numbers import p_text
from analysis.report.sentences import key_lines, results_markdown, sections
from analysis.report.style import label
from analysis.report.tables import Table, comparison_table, markdown, methods_csv, result_table
from analysis.report.write import analyze, contents
from analysis.summary import Options, summarize

MODEL = "smollm2-135m"
DOCS = Path(__file__).parents[4] / "docs/analysis.md"
FILES = {
    *("summary_stats.json", "suite.json", "cells.csv", "table.md", "table.csv", "table.tex"),
    *("results.md", "report.html"),
    *(f"figures/{name}.svg" for name in ("seeds", "differences", "time", "windows", "cv")),
    *(f"figures/{name}.png" for name in ("seeds", "differences", "time", "windows", "cv")),
}


@pytest.fixture(scope="module")
def files(demo):
    """Every file of the demo suite's analysis."""
    return contents(*demo, "A <title>")


def words(summary, windows=None):
    return results_markdown(sections(summary, windows or {}))


def summary_of(suites, methods, **options):
    cells = load_suite(suites.suite(methods=methods, windows=False))
    return summarize(cells, Options(**options))


def test_every_file_is_there(files):
    assert set(files) == FILES


def test_the_result_table_has_a_row_a_method(demo):
    table = result_table(demo[0])
    assert [row[0] for row in table.rows] == ["unquantized", "gptq_default", "random", "cola_zero"]
    assert [row[1] for row in table.rows] == ["1", "1", "5", "5"]
    assert table.rows[1][2:5] == ["24.000", "–", "+20.00"]  # one observation has no spread
    assert re.fullmatch(r"\d\d\.\d{3} ± 0\.\d{3}", table.rows[2][2])
    text = markdown(table).splitlines()
    assert len({len(line) for line in text}) == 1
    assert text[1].startswith("| ---")


def test_the_table_of_several_models_names_them(three):
    table = result_table(three[0])
    assert table.header[:2] == ["model", "method"]
    assert len(table.rows) == 12
    assert {row[0] for row in comparison_table(three[0]).rows} == {"a", "b", "org/c"}


def test_a_bar_in_a_name_does_not_break_the_table():
    assert "a\\|b" in markdown(Table(["x"], [["a|b"]]))


def test_the_csv_table_holds_unrounded_numbers(demo):
    summary, _ = demo
    rows = list(csv.DictReader(io.StringIO(methods_csv(summary))))
    for row, method in zip(rows, summary.methods, strict=True):
        assert float(row["mean"]) == method.description.mean
        assert row["ci95_low"] == ("" if method.deterministic else str(method.description.ci95[0]))
    assert float(rows[1]["p_holm_vs_cola_zero"]) == summary.pairs[0].result.p_adjusted


def test_the_latex_table_has_the_columns_asked_for(demo):
    lines = latex_table(demo[0]).splitlines()
    head = next(line for line in lines if line.startswith("Model"))
    assert head.split(" & ") == [
        "Model",
        "COLA-Zero",
        "Random",
        "GPTQ default",
        r"$p$ vs.\ Random",
        r"$p$ vs.\ GPTQ default \\",
    ]
    row = next(line for line in lines if line.startswith(MODEL))
    assert row.count(r"\pm") == 2
    assert "$24.000$" in row
    assert re.findall(r"\^\{(\*+)\}\$", row) == []  # gptq_default is one draw: no test of it


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("suite", ["demo", "three"])
def test_the_latex_table_compiles_with_a_plain_latex(suite, request, tmp_path):
    summary, _ = request.getfixturevalue(suite)
    body = latex_table(summary) + "\n" + escape("50% of_a & b# {c} ~ ^ \\ $ ü ± 模")
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}%s\\end{document}"
    (tmp_path / "page.tex").write_text(page % f"\n{body}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 0


def test_a_null_is_reported_as_a_null(demo):
    summary, windows = demo
    text = words(summary, windows).split("## ")[2]
    assert text.startswith("COLA-Zero vs Random\n")
    for part in (
        r"23\.031 ± 0\.368 with COLA-Zero \(n = 5\) and 23\.354 ± 0\.370 with Random \(n = 5\)",
        r"Welch's t\(8\.0\) = −1\.385, p = 0\.203 \(p = 0\.203 after Holm\)",
        r"Cohen's d = −0\.88, 95 % CI \[−2\.16, 0\.46\]",
        r"\*\*Inconclusive:\*\* these runs show no difference, and they do not show either",
        r"With 5 seeds you could have found d ≥ 2\.0 \(here 3\.74 %\) with 80 % power",
        r"Coefficients of variation: 1\.60 % \(COLA-Zero\), 1\.59 % \(Random\)",
        r"24 seeds a method to find",
        r"On the same 16 evaluation windows",
    ):
        assert re.search(part, text), part
    for word in ("better", "equivalent", "significant", "outperform"):
        assert word not in text


def test_a_difference_names_the_better_method_whatever_its_place(suites):
    methods = {"random": (22.0, 0.05), "cola_zero": (24.0, 0.05)}
    text = words(summary_of(suites, methods))
    assert "**Different:** Random did better than COLA-Zero." in text


def test_what_only_an_unadjusted_test_would_show_is_not_called_a_difference(suites):
    methods = {"gptq_default": (23.0, 0.3), "random": (23.3, 0.3), "cola_zero": (23.6, 0.3)}
    summary = summary_of(suites, methods)
    alone = [p for p in summary.pairs if p.result.p_value < 0.05 < p.result.p_adjusted]
    assert alone
    for pair in alone:
        text = words(summary).split(f"## {label(pair.a)} vs {label(pair.b)}\n")[1].split("##")[0]
        assert "**Inconclusive:**" in text
        assert "On its own this test would count as a difference" in text
        assert "as one of 3" in text


@pytest.mark.parametrize(
    ("p", "text"),
    [(None, "–"), (0.0004, "< 0.001"), (0.0503, "0.0503"), (0.0498, "0.0498"), (0.314, "0.314")],
)
def test_a_p_value_never_hides_its_side_of_the_level(p, text):
    assert p_text(p) == text


def test_equality_within_the_margin_is_called_equivalent(suites):
    methods = {"random": (23.0, 0.02), "cola_zero": (23.0, 0.03)}
    text = words(summary_of(suites, methods, margin=2))
    assert re.search(r"\*\*Equivalent:\*\* the 90 % CI \[−.*\] % lies within ±2 % \(p", text)
    assert "no difference is shown" in text


def test_a_small_difference_is_said_to_be_small(suites):
    methods = {"random": (23.0, 0.01), "cola_zero": (22.9, 0.01)}
    text = words(summary_of(suites, methods, margin=5))
    assert "COLA-Zero did better than Random. The difference is also shown to lie within" in text


def test_without_a_test_the_sentences_say_why(suites):
    cells = load_suite(suites.suite(seeds=1, windows=False))
    text = words(summarize(cells, Options()))
    assert text.count("**No test applies.**") == 3
    assert "p =" not in text
    assert "you could have found" not in text


def test_what_failed_is_listed_with_its_reason(three):
    summary, _ = three
    text = words(summary)
    assert "## Runs without a result" in text
    assert "b/random/seed 44: ValueError: no luck" in text
    assert "1 of 48 runs have no result" in key_lines(summary)
    assert "## Over all models (exploratory)" in text


def test_nothing_undefined_is_written_as_a_number(three, suites):
    cells = load_suite(suites.suite(seeds=1, windows=False))
    for summary in (three[0], summarize(cells, Options())):
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
    assert page.tags.count("table") == 4
    assert "script" not in page.tags
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert "http" not in text
    assert "A &lt;title&gt;" in text
    assert "<b>Inconclusive:</b>" in text
    assert "n = 5 seeds" in text


def test_the_page_of_a_suite_without_a_result_says_so(suites):
    change = {
        f"{MODEL}/{method}/{seed}": {"status": "FAILED"}
        for method in ("gptq_default", "random", "cola_zero")
        for seed in (42, 43)
    }
    change[f"{MODEL}/unquantized"] = {"status": "FAILED"}
    suite = suites.suite(seeds=2, windows=False, **change)
    assert "7 of 7 runs have no result" in analyze(suite)
    files = contents(summarize(load_suite(suite, allow_failed=True), Options()), {}, "t")
    assert "No run has a result to show." in files["report.html"]
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
