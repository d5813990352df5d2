"""Statistics of one's own: found by their file, and unable to break a report."""

import numpy as np
import pytest

from analysis import custom as statistics
from analysis.custom.worst_seed import worst_seed
from analysis.report.tables import own_numbers, own_table


def given(values, reference, windows=None):
    tokens = None if windows is None else [511.0] * len(windows[0])
    return {"values": values, "reference": reference, "windows": windows, "tokens": tokens}


def test_every_file_of_the_folder_can_be_used():
    found = statistics.all_statistics()
    assert "worst_seed" in [s.name for s in found]
    for value in statistics.evaluate(found, given([21.0, 22.0], 20.0)).values():
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
    values = statistics.evaluate(found, given([1.0, 4.0], None))
    assert values == {"spread_of_seeds": 3.0, "worst_seed": None}


def test_a_file_that_cannot_be_used_is_shown_and_breaks_nothing(own_folder):
    (own_folder / "a_typo.py").write_text("def")
    (own_folder / "b_misnamed.py").write_text("def other(values, reference): ...")
    values = statistics.evaluate(statistics.all_statistics(), given([1.0], 1.0))
    assert values["a_typo"].startswith("SyntaxError")
    assert values["b_misnamed"].startswith("AttributeError: ")
    assert values["worst_seed"] == 0


def test_a_broken_statistic_is_shown_and_breaks_nothing():
    def broken(values, reference):
        return 1 / 0

    own = statistics.Own("broken", "broken", broken)
    assert statistics.evaluate([own], given([1.0], 1.0)) == {
        "broken": "ZeroDivisionError: division by zero"
    }


def test_a_statistic_may_ask_for_windows_and_is_undefined_without():
    def worst_window(windows, tokens):
        return (windows / tokens).max()

    own = [statistics.Own("worst_window", "worst_window", worst_window)]
    found = statistics.evaluate(own, given([1.0, 1.0], None, [[511.0, 1022.0], [511.0, 511.0]]))
    assert found == {"worst_window": 2.0}
    assert statistics.evaluate(own, given([1.0], None)) == {"worst_window": None}


def test_an_unknown_parameter_is_shown_with_those_there_are():
    own = statistics.Own("odd", "odd", lambda sequences: 1.0)
    text = statistics.evaluate([own], given([1.0], None))["odd"]
    assert (
        text == "TypeError: no parameter 'sequences'; there are values, reference, windows, tokens"
    )


def test_a_statistic_of_two_methods_is_computed_for_every_comparison(own_folder, demo):
    (own_folder / "gap.py").write_text(
        'def gap(values_a, windows_b, reference):\n    """Rows, and the gap."""\n'
        "    return len(windows_b) + values_a.mean() - reference\n"
    )
    found = own_numbers(demo)["smollm2-135m"]
    cola = next(m for m in demo.methods if m.name == "cola_zero")
    assert found["cola_zero vs random"] == {"gap": pytest.approx(5 + cola.description.mean - 20)}
    assert "gap" not in found["random"]
    assert any("Rows, and the gap" in name for name in own_table(demo).header)
