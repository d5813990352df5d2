"""Statistics of one's own: found by their file, and unable to break a report."""

import numpy as np
import pytest

from analysis import custom as statistics
from analysis.custom.worst_seed import worst_seed


def test_every_file_of_the_folder_can_be_used():
    found = statistics.all_statistics()
    assert "worst_seed" in [s.name for s in found]
    for value in statistics.evaluate(found, [21.0, 22.0], 20.0).values():
        assert value is None or isinstance(value, float)


def test_the_worst_seed():
    assert worst_seed(np.array([21.0, 22.0]), 20.0) == pytest.approx(10.0)
    assert worst_seed(np.array([21.0]), None) is None


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    """A folder that is searched for statistics like the project's own."""
    monkeypatch.setattr(statistics, "__path__", [*statistics.__path__, str(tmp_path)])
    statistics.all_statistics.cache_clear()
    yield tmp_path
    statistics.all_statistics.cache_clear()


def test_a_statistic_of_ones_own_is_one_file(own_folder):
    (own_folder / "spread_of_seeds.py").write_text(
        'def spread_of_seeds(values, reference):\n    """Largest minus smallest."""\n'
        "    return values.max() - values.min()\n"
    )
    found = statistics.all_statistics()
    assert found[0][:2] == ("spread_of_seeds", "Largest minus smallest")
    values = statistics.evaluate(found, [1.0, 4.0], None)
    assert values == {"spread_of_seeds": 3.0, "worst_seed": None}


def test_a_file_that_cannot_be_used_is_shown_and_breaks_nothing(own_folder):
    (own_folder / "a_typo.py").write_text("def")
    (own_folder / "b_misnamed.py").write_text("def other(values, reference): ...")
    values = statistics.evaluate(statistics.all_statistics(), [1.0], 1.0)
    assert values["a_typo"].startswith("SyntaxError")
    assert values["b_misnamed"].startswith("AttributeError: ")
    assert values["worst_seed"] == 0


def test_a_broken_statistic_is_shown_and_breaks_nothing():
    def broken(values, reference):
        return 1 / 0

    own = statistics.Own("broken", "broken", broken)
    assert statistics.evaluate([own], [1.0], 1.0) == {
        "broken": "ZeroDivisionError: division by zero"
    }
