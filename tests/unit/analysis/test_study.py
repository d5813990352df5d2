"""The study's tables, from synthetic suites in a real store."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_suites import ARITHMETIC

SCRIPT = Path(__file__).resolve().parents[3] / "studies" / "study.py"


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


def test_where_in_the_text_methods_differ_averages_to_the_difference(study, suites):
    ppl, _ = study.read(suites.suite(replicates=3, windows="kl"))
    table = study.stretches_table(ppl)
    primary = {f"{study.label(p.a)} vs {study.label(p.b)}": p for p in ppl.pairs[:2]}
    assert [row[0] for row in table.rows] == list(primary)
    for name, *cells in table.rows:
        assert len(cells) == len(table.header) - 1 >= 2
        values = [float(cell.replace("−", "-")) for cell in cells]
        assert np.mean(values) == pytest.approx(primary[name].percent, abs=0.1)


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
    found, ppl = study.sizes([large, small])
    assert [one.windows for one in found] == [8, 32, 128]
    for one in found:
        parts = one.parts["perplexity"]
        assert parts.replicates == pytest.approx(ARITHMETIC / 23.4, rel=0.5)
        spread = np.log(one.methods["perplexity"].values).std(ddof=1)
        between = spread**2 - parts.replicates**2 / 3
        assert parts.sets == pytest.approx(np.sqrt(between), rel=0.02)
        assert one.parts["kl_divergence"].sets > 0
    table = study.size_table(found)
    assert table.count("\n") == 1 + 2 * 3
    for row in table.splitlines()[2:]:
        cells = [cell.strip() for cell in row.strip("| ").split("|")]
        assert cells[4] == "6 seeds × 3"
        for sigma, limits in (cells[6:8], cells[8:10]):
            low, high = map(float, limits.strip("[]").split(", "))
            assert low <= float(sigma) <= high
    neighbours = study.neighbours_table(found, ppl).rows
    assert [row[0] for row in neighbours] == ["32 × 512 vs 8 × 512", "128 × 512 vs 32 × 512"]
    for row in neighbours:
        low, high = (float(x.replace("−", "-")) for x in row[3].strip("[]").split(", "))
        assert low < float(row[2].replace("−", "-")) < high
        assert row[1] == "6, 6"
    figure = study.sweep_figure(found, 20.0)
    for axis in figure.axes:
        assert axis.get_xscale() == "log"
    for left, right in (figure.axes[:2], figure.axes[2:]):
        assert len(left.containers) == 1
        sets, orders = (bar.lines[0] for bar in right.containers)
        assert len(sets.get_xdata()) == len(orders.get_xdata()) == 3
        assert orders.get_markerfacecolor() == "none" != sets.get_markerfacecolor()


def test_longer_windows_are_compared_with_shorter_ones_of_as_many_tokens(study, suites):
    """The longer ones are worse by 10 %, in every window."""
    of = [
        suites.suite(
            methods={"random": (mean, 0.1)},
            windows="kl",
            settings={"n_calibration_samples": number, "seq_len": length},
        )
        for number, length, mean in ((32, 512, 23.0), (8, 2048, 25.3))
    ]
    found, ppl = study.sizes(of)
    ((name, n, change, limits, worse),) = study.neighbours_table(found, ppl).rows
    assert (name, n) == ("8 × 2,048 vs 32 × 512", "5, 5")
    assert float(change) == pytest.approx(10, abs=1)
    low, high = map(float, limits.strip("[]").split(", "))
    assert 5 < low < 10 < high < 15
    assert len(set(worse.split(" of "))) == 1


def test_a_set_alone_that_was_quantized_twice_has_no_components(study, suites):
    one = suites.suite(methods={"random": (23.4, 0.35)}, seeds=1, replicates=2, windows="kl")
    (size,), _ = study.sizes([one])
    assert size.parts["perplexity"] is None


def test_a_sweep_without_replicates_has_sizes_and_no_components(study, suites):
    one = suites.suite(
        methods={"random": (23.4, 0.35)},
        windows="kl",
        sweep={"n_calibration_samples": [8, 32]},
    )
    found, _ = study.sizes([one])
    assert {s.parts["perplexity"] for s in found} == {None}
    assert study.size_table(found).count("–") >= 16
    assert [len(a.containers) for a in study.sweep_figure(found, 20.0).axes] == [1, 0, 1, 0]


@pytest.mark.parametrize("script", ["study.py", "settings.py"])
def test_a_suite_that_the_store_lacks_is_named_without_a_stack_trace(script, store, monkeypatch):
    monkeypatch.setattr("sys.argv", [script, "--suites=C27202"])
    with pytest.raises(SystemExit, match=r"suite='C27202'.*not found"):
        runpy.run_path(str(SCRIPT.with_name(script)), run_name="__main__")
