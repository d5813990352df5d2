"""Sets against their replicates: the estimate against REML, the intervals by simulation."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

SCRIPT = Path(__file__).resolve().parents[2] / "studies" / "study.py"
spec = importlib.util.spec_from_file_location("components_of_variance", SCRIPT)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
components = module.components


def draws(rng, n, r, sets):
    return sets * rng.normal(size=(n, 1)) + rng.normal(size=(n, r))


def test_of_a_balanced_design_it_is_restricted_maximum_likelihood():
    x = draws(np.random.default_rng(1), 12, 3, 2.0)
    table = pd.DataFrame([(i, v) for i, row in enumerate(x) for v in row], columns=["set", "y"])
    fitted = smf.mixedlm("y ~ 1", table, groups="set").fit(reml=True)
    found = components(x)
    assert found.sets**2 == pytest.approx(float(fitted.cov_re.iloc[0, 0]), rel=1e-4)
    assert found.replicates**2 == pytest.approx(fitted.scale, rel=1e-4)


@pytest.mark.parametrize(("n", "r", "sets"), [(6, 2, 1.0), (4, 2, 3.0), (10, 3, 0.4), (4, 2, 0.0)])
def test_the_intervals_cover(n, r, sets):
    """Of 1,500 each: for replicates exactly, for sets at least; both far from always."""
    rng = np.random.default_rng(2)
    found = [components(draws(rng, n, r, sets)) for _ in range(1500)]
    covered = np.mean([one.sets_ci95[0] <= sets <= one.sets_ci95[1] for one in found])
    assert 0.935 <= covered <= 0.985
    covered = np.mean([one.replicates_ci95[0] <= 1 <= one.replicates_ci95[1] for one in found])
    assert 0.935 <= covered <= 0.965
    assert all(one.sets_ci95[0] <= one.sets <= one.sets_ci95[1] for one in found)


def test_sets_that_differ_less_than_their_replicates_are_nothing():
    found = components([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    assert found.sets == 0
    assert found.sets_ci95 == (0, 0)
    assert found.replicates == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0], [2.0]]])
def test_what_has_no_components(values):
    assert components(values) is None
