"""What each figure shows: its marks, its limits, its labels, its caption."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from analysis.report import html
from analysis.report.comparison_plots import differences, window_histograms
from analysis.report.method_plots import cv_bands, pareto_front, seeds, time_against_change
from analysis.report.plots import figures
from analysis.report.style import KNOWN, caption_of, spread_out

MODEL = "smollm2-135m"
ROWS = ["gptq_default", "random", "cola_zero"]


def lines(axis, gid):
    return [line for line in axis.lines if line.get_gid() == gid]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def methods(summary, model=MODEL):
    return {m.name: m for m in summary.methods if m.model == model}


def test_seeds_shows_every_run_once_with_mean_and_interval(demo):
    summary, _ = demo
    figure = seeds(summary)
    (axis,) = figure.axes
    found = methods(summary)
    marks = lines(axis, "seeds")
    assert [sorted(m.get_xdata()) for m in marks] == [
        sorted(found["random"].values),
        sorted(found["cola_zero"].values),
    ]
    means = [line.get_xdata()[0] for line in lines(axis, "mean")]
    assert means == pytest.approx([found[name].description.mean for name in ROWS])
    intervals = [tuple(line.get_xdata()) for line in lines(axis, "ci95")]
    assert intervals == [found[n].description.ci95 for n in ("random", "cola_zero")]
    (plain,) = lines(axis, "unquantized")
    assert set(plain.get_xdata()) == {20.0}
    low, high = axis.get_xlim()
    assert low < 20 < 24 < high
    assert [t.get_text() for t in axis.get_yticklabels()] == ["GPTQ default", "Random", "COLA-Zero"]
    assert "24.000 (deterministic)" in texts(axis)
    assert "unquantized 20.000" in texts(axis)
    assert "n = 5 seeds" in caption_of(figure)
    assert "95 % t-interval" in caption_of(figure)


def test_seeds_has_a_panel_a_model_and_only_runs_with_a_result(three):
    summary, _ = three
    axes = seeds(summary).axes
    assert [axis.get_title("left") for axis in axes] == ["a", "b", "c"]
    sizes = [[m.get_xdata().size for m in lines(axis, "seeds")] for axis in axes]
    assert sizes == [[5, 5], [4, 5], [5, 5]]


def test_differences_shows_each_comparison_with_both_intervals_and_the_band(demo):
    summary, _ = demo
    figure = differences(summary)
    (axis,) = figure.axes
    centres = [line.get_xdata()[0] for line in lines(axis, "difference")]
    assert centres == pytest.approx([100 * p.result.diff / 20 for p in summary.pairs])
    for gid, limits in (("ci95", "diff_ci95"), ("ci90", "diff_ci90")):
        drawn = [line.get_xdata() for line in lines(axis, gid)]
        np.testing.assert_allclose(
            drawn, [np.array(getattr(p.result, limits)) * 5 for p in summary.pairs if p.result.test]
        )
    (band,) = (patch for patch in axis.patches if patch.get_gid() == "margin")
    assert (band.get_x(), band.get_width()) == (-1, 2)
    for text, pair in zip(texts(axis), summary.pairs, strict=True):
        if pair.result.test is None:
            assert text.endswith("no test")
            continue
        assert pair.result.verdict in text
        assert f"p = {pair.result.p_adjusted:.3f}" in text
    caption = caption_of(figure)
    for words in ("95 %", "90 %", "n = 5", "±1 %", "Holm-adjusted over 1 tests"):
        assert words in caption


def test_differences_marks_where_no_test_applies(suites):
    from analysis.reading.runs import load_suite
    from analysis.summary import Options, summarize

    summary = summarize(load_suite(suites.suite(seeds=1, windows=False)), Options())
    (axis,) = differences(summary).axes
    assert lines(axis, "ci95") == []
    assert all(text.endswith("no test") for text in texts(axis))
    assert {line.get_markerfacecolor() for line in lines(axis, "difference")} == {"white"}


def test_time_shows_each_method_and_the_front(demo):
    summary, _ = demo
    figure = time_against_change(summary)
    (axis,) = figure.axes
    found = methods(summary)
    expected = [
        (m.selection_time_sec + m.quant_time_sec, m.change_percent)
        for m in (found[name] for name in ROWS)
    ]
    drawn = [(m.get_xdata()[0], m.get_ydata()[0]) for m in lines(axis, "method")]
    np.testing.assert_allclose(drawn, expected)
    (front,) = lines(axis, "front")
    np.testing.assert_allclose(np.transpose(front.get_data()), pareto_front(expected))
    for text, name in zip(texts(axis), ("GPTQ default", "Random", "COLA-Zero"), strict=True):
        assert text.startswith(name)
    assert "95 % t-interval" in caption_of(figure)


def test_the_front_keeps_what_nothing_beats_in_both():
    points = [(3, 1.0), (1, 3.0), (2, 2.0), (2.5, 2.5), (1, 4.0)]
    assert pareto_front(points) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert pareto_front(points, lower=False) == [(1, 4.0)]
    assert pareto_front([]) == []


def test_windows_shows_every_window_of_every_comparison(demo):
    summary, windows = demo
    figure = window_histograms(summary, windows)
    assert len(figure.axes) == 3
    for axis, found in zip(figure.axes, windows.values(), strict=True):
        assert sum(bar.get_height() for bar in axis.patches if bar.get_gid() is None) == 16
        (mean,) = lines(axis, "mean")
        assert mean.get_xdata()[0] == found.result.diff_nll
        (interval,) = (p for p in axis.patches if p.get_gid() == "ci95")
        assert interval.get_x() == found.result.diff_nll_ci95[0]
        low, high = axis.get_xlim()
        assert low <= min(0, found.delta.min())
        assert high >= max(0, found.delta.max())
    assert "n = 16 evaluation windows" in caption_of(figure)
    assert "clustered" in caption_of(figure)


def test_cv_shows_bands_and_no_cv_for_one_observation(demo):
    summary, _ = demo
    figure = cv_bands(summary)
    (axis,) = figure.axes
    found = methods(summary)
    drawn = [line.get_xdata()[0] for line in lines(axis, "cv")]
    assert drawn == [found[n].description.cv_percent for n in ("random", "cola_zero")]
    edges = [p.get_x() for p in axis.patches if p.get_gid() == "band"]
    assert edges == [0, 5, 10]
    assert axis.get_xlim()[1] >= 12
    for text in ("< 5 %", "5–10 %", "> 10 %", "deterministic: one observation"):
        assert text in texts(axis)
    assert "χ²" in caption_of(figure)


def test_methods_differ_in_colour_and_in_shape(demo):
    summary, _ = demo
    assert len({marker for _, marker in KNOWN.values()}) == len(KNOWN)
    (axis,) = time_against_change(summary).axes
    looks = {(to_hex(m.get_color()), m.get_marker()) for m in lines(axis, "method")}
    shown = [KNOWN[name] for name in summary.names]
    assert looks == {(colour.lower(), marker) for colour, marker in shown}


def overlaps(figure):
    """Pairs of texts beside the marks, and of captions and axes, that cover each other."""
    figure.draw_without_rendering()
    found = []
    for axis in figure.axes:
        boxes = [(t.get_text(), Text.get_window_extent(t)) for t in axis.texts]  # without arrows
        found += [
            (a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :] if x.overlaps(y)
        ]
        bottom = axis.get_tightbbox().y0
        found += [t for t in figure.texts if t.get_window_extent().y1 > bottom]
    return found


@pytest.mark.parametrize("suite", ["demo", "three", "crowded"])
def test_no_text_is_clipped_or_covers_another(suite, request):
    summary, windows = request.getfixturevalue(suite)
    for name, figure in figures(summary, windows).items():
        assert overlaps(figure) == [], name
        page = figure.bbox
        shown = [t for axis in figure.axes for t in axis.texts] + figure.texts
        for text in shown:
            box = text.get_window_extent()
            assert box.x0 >= 0, (name, text.get_text())
            assert box.x1 <= page.x1, (name, text.get_text())


def test_files_carry_their_letters_and_are_reproducible(demo):
    figure = seeds(demo[0])
    content = html.svg(figure)
    assert b"<text" not in content  # letters are outlines, no font is asked for
    assert content == html.svg(seeds(demo[0]))
    image = Image.open(io.BytesIO(html.png(figure)))
    assert image.width == pytest.approx(7.2 * 160, abs=1)


def test_drawing_leaves_the_settings_of_others_alone(demo):
    before = dict(matplotlib.rcParams)
    html.png(next(iter(figures(*demo).values())))
    assert dict(matplotlib.rcParams) == before


def test_labels_are_moved_apart_in_order():
    moved = spread_out([1.0, 1.1, 5.0], 1.0)
    assert np.diff(moved).min() >= 1.0 - 1e-12
    assert spread_out([0.0, 3.0], 1.0) == [0.0, 3.0]
    assert spread_out([], 1.0) == []
