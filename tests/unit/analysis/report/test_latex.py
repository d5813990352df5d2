"""`table.tex`: its columns, and that LaTeX takes it as it is."""

import re
import shutil
import subprocess

import pytest

from analysis.reading.runs import load_suite
from analysis.reading.table import RunsError
from analysis.report.latex import digits_of, escape, latex_table
from analysis.summary import Options, summarize
from analysis.summary.pairs import BASES


def body(summary):
    lines = latex_table(summary).splitlines()
    return lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]


def test_the_table_has_the_unquantized_model_each_interval_and_each_verdict(demo):
    plain, first, second, third = body(demo)
    assert plain == r"unquantized & $20.00$ &  &  \\"
    low, high = demo.pairs[0].decided[0]
    assert re.match(r"COLA-Zero & \$23\.03 \{\\pm\} 0\.37\$ &  &  ", first)
    assert re.match(r"GPTQ default & \$24\.00\$ & .* & no test ", second)
    assert f"[{low:.1f}, {high:.1f}]$ & inconclusive" in third


def test_decimals_follow_the_spread(repeated):
    """The agreement of 0.93 with a spread of 0.003 shows more than its first two decimals."""
    summary = summarize(repeated.cells, Options(metric="top1_agreement"))
    rows = body(summary)
    assert len(rows) == 3
    for row in rows:
        assert not re.search(r"\\pm\} 0\.0+\$", row)
    assert [digits_of([w]) for w in (0.192, 0.0031, 14.0, None)] == [2, 4, 0, 2]


def test_the_caption_says_what_decided_and_how_many_seeds(repeated, three):
    assert BASES["seeds and text"] in latex_table(repeated)
    assert r"$n = 4\mbox{--}5$" in latex_table(three)


def test_a_method_of_ones_own_has_the_name_that_is_given(suites):
    cells = load_suite(suites.suite(methods={"mine:a_b": (23.0, 0.3), "random": (23.4, 0.3)}))
    names = {"mine:a_b": "Ours_1", "random": "Uniform"}
    summary = summarize(cells, Options(primary="mine:a_b", names=names))
    assert [row.partition(" &")[0] for row in body(summary)[1:]] == [r"Ours\_1", "Uniform"]
    assert r"Difference: Ours\_1 minus" in latex_table(summary)
    with pytest.raises(RunsError, match=r"names='other'.*mine:a_b, random"):
        summarize(cells, Options(names={"other": "Other"}))


def test_without_a_primary_method_differences_are_of_the_first_that_is_no_baseline(suites):
    methods = {"random": (23.0, 0.3), "zipcal": (24.4, 0.3), "stratified": (23.2, 0.3)}
    summary = summarize(load_suite(suites.suite(methods=methods)), Options(baseline="random"))
    rows = {row.partition(" &")[0]: row for row in body(summary)}
    for pair in (p for p in summary.pairs if p.a == "zipcal"):
        (row,) = (row for name, row in rows.items() if name.lower() == pair.b)
        assert f"${pair.percent:+.1f}$" in row
        assert row.endswith(f"{pair.verdict} \\\\")
    assert [row.count("[") for row in rows.values()] == [0, 0, 1, 1]


def test_what_was_chosen_after_the_runs_is_in_the_caption(demo):
    summary = summarize(demo.cells, Options(alpha=0.1, margin=2))
    assert r"Chosen after the runs: margin 2 \%, $\alpha$ = 0.1." in latex_table(summary)


def test_many_models_stand_side_by_side_over_the_page(crowded):
    text = latex_table(crowded)
    assert text.count(r"\begin{tabular}") == 2
    assert text.count(r"\begin{table*}") == 1
    assert text.count("Llama-2-7b-hf") == text.count("opt-6.7b") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(
    ("suite", "columns"),
    [
        ("demo", "two"),
        ("repeated", "two"),
        ("three", "two"),
        ("crowded", "two"),
        ("crowded", "one"),
    ],
)
def test_the_latex_table_compiles_and_fits_its_column(suite, columns, request, tmp_path):
    summary = request.getfixturevalue(suite)
    body = latex_table(summary) + "\n\n" + escape("50% of_a & b# {c} ~ ^ \\ $ ü ± α 模")
    page = (
        "\\documentclass[%scolumn]{article}\\usepackage{booktabs}\\begin{document}%s\\end{document}"
    )
    (tmp_path / "page.tex").write_text(page % (columns, f"\n{body}\n"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "page.pdf").stat().st_size > 0
