"""`table.tex`: its columns, and that LaTeX takes it as it is."""

import re
import shutil
import subprocess

import pytest

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
    body = latex_table(summary) + "\n\n" + escape("50% of_a & b# {c} ~ ^ \\ $ ü ± 模")
    page = (
        "\\documentclass[%scolumn]{article}\\usepackage{booktabs}\\begin{document}%s\\end{document}"
    )
    (tmp_path / "page.tex").write_text(page % (columns, f"\n{body}\n"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "page.pdf").stat().st_size > 0
