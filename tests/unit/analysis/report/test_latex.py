"""`table.tex`: its columns, and that LaTeX takes it as it is."""

import shutil
import subprocess

import pytest

from analysis.report.latex import escape, latex_table

MODEL = "smollm2-135m"


def test_the_latex_table_has_the_columns_asked_for(demo):
    lines = latex_table(demo).splitlines()
    head = next(line for line in lines if line.startswith("Model"))
    assert head == r"Model & COLA-Zero & Random & GPTQ default \\"
    row = next(line for line in lines if line.startswith(MODEL))
    assert row.count(r"\pm") == 2
    assert row.endswith(r" & $24.00$ \\")
    below = lines[lines.index(row) + 1]
    p = demo.pairs[0].judgement.p_adjusted
    assert below == rf"$p$ &  & ${p:.3f}$ & -- \\"  # one draw: no test of it


def test_the_latex_table_of_many_methods_has_a_row_a_method(crowded):
    lines = latex_table(crowded).splitlines()
    head = next(line for line in lines if line.startswith("Method"))
    assert head == r"Method & Llama-2-7b-hf & $p$ & Llama-2-13b-hf & $p$ & opt-6.7b & $p$ \\"
    rows = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(rows) == 7
    assert {row.count(" & ") for row in rows} == {6}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(
    ("suite", "columns"),
    [("demo", "two"), ("repeated", "two"), ("three", "two"), ("crowded", "one")],
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
