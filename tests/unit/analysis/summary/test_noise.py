"""The noise of finished suites, and what a plan says with it."""

import re

import numpy as np
import pytest

from analysis.stats.power import DOCUMENTED, prospect
from analysis.summary.methods import Draws, Text
from analysis.summary.noise import noise_in_store, noise_of
from colazero.suite_settings import SuiteConfig, parse
from entrypoints import suite as entry

MODEL = "smollm2-135m"


def text(rng, seeds, windows, documents, noise, methods=4):
    """Runs of equal methods with a known noise, in % of perplexity."""
    label = np.arange(windows) * documents // windows
    draws = {}
    for k in range(methods):
        row = noise[1] * rng.normal(size=windows) + noise[2] * rng.normal(size=documents)[label]
        rows = 360 + row + noise[0] * rng.normal(size=(seeds, 1))
        draws[str(k)] = Draws(tuple((5.12 * r)[None] for r in rows), one_set=False)
    tokens, start = np.full(windows, 512.0), np.arange(windows) * 512.0
    return Text("sotu", start, tokens, draws, documents=label)


@pytest.mark.parametrize(("windows", "documents"), [(64, 16), (160, 40), (24, 24)])
def test_the_noise_of_runs_comes_back(windows, documents):
    rng, truth = np.random.default_rng(1), (0.7, 1.2, 0.8)
    found = [noise_of(text(rng, 6, windows, documents, truth), "") for _ in range(60)]
    squares = [np.mean([getattr(n, k) ** 2 for n in found]) for k in ("seed", "window", "document")]
    assert squares[0] == pytest.approx(truth[0] ** 2, rel=0.1)
    both = squares[1] / windows + squares[2] / documents
    assert both == pytest.approx(truth[1] ** 2 / windows + truth[2] ** 2 / documents, rel=0.15)
    if windows > documents:
        assert squares[1] == pytest.approx(truth[1] ** 2, rel=0.15)


@pytest.mark.parametrize(("seeds", "methods", "windows"), [(2, 4, 16), (5, 1, 16), (5, 4, 7)])
def test_too_few_runs_have_no_noise(seeds, methods, windows):
    rng = np.random.default_rng(2)
    assert noise_of(text(rng, seeds, windows, windows, (1, 1, 1), methods), "") is None


def test_more_windows_of_the_same_documents_find_less_than_as_many_in_others():
    same, other = prospect(3, 5, 64, 16), prospect(3, 5, 64)
    assert other.difference < same.difference < prospect(3, 5, 16).difference
    assert other.bound < same.bound


@pytest.fixture
def plan_line(suites, monkeypatch):
    """What a plan says in the experiment of `suites`; the text has 23 documents."""
    monkeypatch.setattr("colazero.models.fetch", lambda name: name)
    monkeypatch.setattr("colazero.store.client.experiment_of", lambda _: suites.experiment)
    monkeypatch.setattr("colazero.store.client.homes", lambda experiment: [experiment])
    monkeypatch.setattr("colazero.store.record.active_run_id", lambda: "")

    def extent(config, _):
        windows = 466 if config.eval_windows == "all" else config.eval_windows
        return windows, min(windows, 23)

    monkeypatch.setattr("colazero.evaluation.perplexity.extent", extent)
    return lambda **given: entry._can_find(parse(SuiteConfig, {"preset": "demo", **given}))


@pytest.mark.parametrize("windows", ["16", "all"])
def test_a_plan_takes_the_noise_of_finished_runs_of_these_settings(suites, plan_line, windows):
    settings = {"group_size": "auto", "act_group_aware": "auto"}
    suite = suites.suite(
        methods={"random": (23.4, 0.35), "cola_zero": (23.1, 0.3)}, settings=settings
    )
    assert "noise of docs/evidence/study.md" in plan_line(eval_windows=windows)
    suites.client.set_terminated(suite, "FINISHED")
    (line,) = plan_line(eval_windows=windows).splitlines()
    assert f"noise of suite {suite}," in line
    known = {"quant_bits": "4", "n_calibration_samples": "8"}
    noise = noise_in_store([suites.experiment], MODEL, known)
    count = 466 if windows == "all" else 16
    found = prospect(3, 5, count, min(count, 23), noise=noise)
    numbers = [float(x) for x in re.findall(r"(\d+\.\d) %", line)]
    assert numbers == [round(found.difference, 1), round(found.bound, 1)]
    assert noise.seed == pytest.approx(100 * 0.33 / 23.2, rel=0.5)
    assert "docs/evidence/study.md" in plan_line(eval_windows=windows, quant_bits="3")
    assert DOCUMENTED.source in plan_line(eval_windows=windows, models="other")


def test_a_plan_says_where_nothing_can_be_found(plan_line):
    assert "on 6 windows no verdict" in plan_line(eval_windows="6")
    assert plan_line(seeds="42") == ""
    assert len(plan_line(quant_bits="3,4").splitlines()) == 2
