"""The study's tables, from synthetic suites in a real store."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_suites import ARITHMETIC

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "study.py"


@pytest.fixture(scope="module")
def study():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_a_section_has_both_metrics_of_methods_verdicts_and_budget(study, suites):
    text = "\n".join(study.section(*study.read(suites.suite(replicates=3, windows="kl"))))
    assert re.search(r"\| COLA-Zero +\| 5 seeds.* ± .*\| +0\.\d{4} ± ", text)
    for metric in ("perplexity", "kl_divergence"):
        for pair, family in (("COLA-Zero vs Random", "primary"), ("Random vs ", "exploratory")):
            row = re.search(rf"\| {metric} +\| {pair}.*", text)
            cells = [cell.strip() for cell in row[0].strip("| ").split("|")]
            assert cells[2] == family
            assert re.fullmatch(r"5, \d+", cells[3])
            number, low, high = (
                float(x.replace("−", "-")) for x in (cells[7], *cells[8].strip("[]").split(", "))
            )
            assert low < number < high
        assert re.search(rf"\| {metric} +\| arithmetic", text)


def test_a_method_alone_has_the_part_of_its_arithmetic_and_no_comparison(study, suites):
    one = suites.suite(methods={"random": (23.4, 0.35)}, replicates=2, windows="kl")
    methods, budget = study.section(*study.read(one))
    assert "5 seeds × 2" in methods
    (row,) = re.findall(r"\| perplexity +\| arithmetic.*", budget)
    assert float(row.split("|")[4]) == pytest.approx(100 * ARITHMETIC / 23.4, rel=0.6)


def test_a_larger_difference_and_more_text_need_fewer_seeds(study, suites):
    table = study.claims_table(study.read(suites.suite(replicates=3, windows="kl"))[0])
    needs = {
        (row[0], int(row[1].replace(",", ""))): [
            np.inf if x == "no number" else int(x.replace(",", "")) for x in row[2:]
        ]
        for row in table.rows
    }
    pairs = {pair for pair, _ in needs}
    assert len(needs) == 3 * len(pairs) == 6
    for pair in pairs:
        by_text = np.array([needs[key] for key in sorted(needs) if key[0] == pair])
        assert by_text.shape == (3, len(study.CLAIMS) + 1)
        assert (by_text[:-1] >= by_text[1:]).all()
        assert (by_text[:, :3] >= by_text[:, 1:4]).all()
        assert by_text[-1, 3] < by_text[0, 0]


def test_a_sweep_of_two_suites_is_one_table_that_parts_sets_from_orders(study, suites):
    small, large = (
        suites.suite(
            methods={"random": (23.4, 0.35)},
            seeds=6,
            replicates=3,
            windows="kl",
            sweep={"n_calibration_samples": numbers},
        )
        for numbers in ([8, 32], [128])
    )
    found, plain = study.sizes([large, small])
    assert [one.windows for one in found] == [8, 32, 128]
    assert plain == pytest.approx(20.0)
    for one in found:
        assert one.observations == "6 seeds × 3"
        assert one.arithmetic == pytest.approx(100 * ARITHMETIC / 23.4, rel=0.5)
        assert one.sets == pytest.approx(np.sqrt(one.spread**2 - one.arithmetic**2 / 3), rel=1e-9)
    assert study.size_table(found).count("\n") == 4
    figure = study.sweep_figure(found, plain)
    left, right = figure.axes
    assert [len(line.get_xdata()) for line in right.lines] == [3, 3]
    assert left.get_xscale() == "log"
