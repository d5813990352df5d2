"""The table of calibration sets: a mean over observations, and only what was logged."""

import numpy as np
import pytest

from analysis.report.tables import measures_table
from analysis.report.write import contents
from analysis.summary import Options, summarize


@pytest.fixture(scope="module")
def cells(demo):
    return demo.cells


def test_each_method_has_the_mean_of_its_observations(cells):
    cells = cells.copy()
    cells["selection.entropy_bits"] = np.arange(len(cells), dtype=float)
    cells["selection.documents_share"] = np.where(cells["method"] == "random", 0.125, np.nan)
    table = measures_table(summarize(cells, Options()))
    assert table.header == ["method", "% of the corpus's", "entropy, bits"]
    by_method = {row[0]: row[1:] for row in table.rows}
    assert set(by_method) == {"gptq_default", "random", "cola_zero"}
    own = cells.loc[cells["method"] == "random", "selection.entropy_bits"]
    assert by_method["random"] == ["12.50", f"{own.mean():.2f}"]
    assert by_method["cola_zero"][0] == "–"


def test_the_report_shows_it_where_runs_have_measures(cells):
    without = contents(summarize(cells, Options()), "t")
    assert "<h2>Calibration sets</h2>" not in without["report.html"]
    assert "type-token" not in without["table.md"]
    cells = cells.assign(**{"selection.type_token_ratio": 0.25})
    found = contents(summarize(cells, Options()), "t")
    assert "<h2>Calibration sets</h2>" in found["report.html"]
    assert found["table.md"].count("0.2500") == 3
