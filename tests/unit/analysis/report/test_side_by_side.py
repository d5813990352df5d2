"""Runs of several settings in the report: columns, panels, and families within each setting."""

import pytest

from analysis.reading.runs import load_suite
from analysis.report.answer import key_lines
from analysis.report.latex import latex_table
from analysis.report.plots import figures
from analysis.report.sections import results_markdown, sections
from analysis.report.tables import (
    comparison_table,
    methods_csv,
    result_table,
    seeds_table,
)
from analysis.report.write import title
from analysis.summary import Options, summarize

SETTINGS = [("3", "8"), ("3", "16"), ("4", "8"), ("4", "16")]


@pytest.fixture(scope="module")
def swept(store, request):
    """Two models in two times two settings."""
    from synthetic_suites import Suites

    sweep = {"quant_bits": [3, 4], "n_calibration_samples": [8, 16]}
    suites = Suites(store, request.node.nodeid)
    suite = suites.suite(models=("a", "org/b"), sweep=sweep, seeds=3, windows=False)
    return summarize(load_suite(suite), Options())


def test_every_table_has_a_column_for_each_setting_that_differs(swept):
    for table in (result_table(swept), comparison_table(swept, "primary"), seeds_table(swept)):
        assert list(table.header[:3]) == ["model", "quant_bits", "n_calibration_samples"]
        found = {tuple(row[:3]) for row in table.rows}
        assert found == {(model, *setting) for model in ("a", "b") for setting in SETTINGS}
        assert table.left >= 4
    lines = methods_csv(swept).splitlines()
    assert lines[0].startswith("model,quant_bits,n_calibration_samples,method,")
    assert lines[1].startswith("a,3,8,")
    assert len(lines) == 1 + 8 * 3


def test_each_setting_has_families_of_its_own(swept):
    assert len(swept.models) == 8
    for model in swept.models:
        pairs = [p for p in swept.pairs if (p.model, p.family) == (model, "primary")]
        assert [p.b for p in pairs] == ["random", "gptq_default"]
        assert {p.tests for p in pairs} == {1}, "gptq_default is one draw"
    assert set(swept.pooled) == {
        f"cola_zero vs random [quant_bits={bits}, n_calibration_samples={n}]"
        for bits, n in SETTINGS
    }
    assert {pooled.n_models for pooled in swept.pooled.values()} == {2}


def test_the_words_say_which_settings_and_that_none_are_compared(swept):
    words = results_markdown(swept, sections(swept))
    assert "The runs differ in quant_bits (3, 4), n_calibration_samples (8, 16)." in words
    assert "Only sizes of calibration sets are compared" in words
    assert "COLA-Zero vs Random [quant_bits=3, n_calibration_samples=8]: " in words
    lines = "\n".join(key_lines(swept))
    assert "org/b [quant_bits=4, n_calibration_samples=16]: COLA-Zero vs Random: " in lines
    assert " on a, b, quant_bits (3, 4), n_calibration_samples (8, 16); " in title(swept)
    assert "Holm-adjusted within a model and setting" in latex_table(swept)


def test_a_model_has_a_figure_with_a_panel_a_setting(swept):
    drawn = figures(swept)
    assert list(drawn)[:2] == ["settings_1", "settings_2"]
    assert len([name for name in drawn if name.startswith("seeds_")]) == 8
    models = [model for model in swept.models if model.startswith("a ")]
    for model, axis in zip(models, drawn["settings_1"].axes, strict=True):
        place = swept.place(model)
        assert axis.get_title(loc="left").split("\n") == [
            f"{k} {v}" for k, v in place.setting.items()
        ]
        means = [line.get_xdata()[0] for line in axis.lines if line.get_gid() == "mean"]
        assert means == [method.description.mean for method in swept.of(model)]


def test_runs_of_one_setting_have_none_of_it(demo):
    assert demo.facets == []
    assert not [name for name in figures(demo) if name.startswith("settings")]
    assert result_table(demo).header[0] == "method"
