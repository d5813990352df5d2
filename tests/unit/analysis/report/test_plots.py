"""What each figure shows: its marks, its limits, its labels, its caption."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from analysis.report.plots import (
    budget,
    differences,
    figures,
    seeds,
    time_against_change,
    windows,
)
from analysis.report.write import image
from colazero.figures import KNOWN, caption_of

MODEL = "smollm2-135m"
ROWS = ["gptq_default", "random", "cola_zero"]


def lines(axis, gid):
    return [line for line in axis.lines if line.get_gid() == gid]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def methods(summary, model=MODEL):
    return {m.name: m for m in summary.methods if m.model == model}


def test_seeds_shows_every_observation_once_with_mean_and_interval(demo):
    figure = seeds(demo, MODEL)
    (axis,) = figure.axes
    found = methods(demo)
    marks = lines(axis, "seeds")
    assert [sorted(m.get_xdata()) for m in marks] == [sorted(found[n].values) for n in ROWS]
    assert [m.get_markerfacecolor() == "white" for m in marks] == [True, False, False]
    means = [line.get_xdata()[0] for line in lines(axis, "mean")]
    assert means == [found[name].description.mean for name in ("random", "cola_zero")]
    intervals = [tuple(line.get_xdata()) for line in lines(axis, "ci95")]
    assert intervals == [found[n].description.ci95 for n in ("random", "cola_zero")]
    (plain,) = lines(axis, "unquantized")
    assert set(plain.get_xdata()) == {20.0}
    low, high = axis.get_xlim()
    assert low < 20 < 24 < high
    assert [t.get_text() for t in axis.get_yticklabels()] == ["GPTQ default", "Random", "COLA-Zero"]
    assert "24.000, one draw" in texts(axis)
    assert "n = 5 seeds per method and 1 draw where a method has one set" in caption_of(figure)
    assert "95 % t-interval" in caption_of(figure)


def test_a_figure_is_of_one_model_and_named_after_it(three):
    drawn = figures(three)
    assert {name for name in drawn if name.startswith("seeds")} == {"seeds_a", "seeds_b", "seeds_c"}
    (axis,) = drawn["seeds_b"].axes
    assert axis.get_title("left") == "b"
    assert [m.get_xdata().size for m in lines(axis, "seeds")] == [1, 4, 5]


def test_differences_shows_the_interval_that_decided_and_the_band(repeated):
    figure = differences(repeated, MODEL)
    (axis,) = figure.axes
    pairs = repeated.pairs
    centres = [line.get_xdata()[0] for line in lines(axis, "difference")]
    assert centres == [p.percent for p in pairs]
    drawn = [tuple(line.get_xdata()) for line in lines(axis, "decided")]
    assert drawn == [p.decided[0] for p in pairs]
    wide = [tuple(line.get_xdata()) for line in lines(axis, "ci95")]
    assert wide == [p.text.percent_ci for p in pairs]
    (band,) = (patch for patch in axis.patches if patch.get_gid() == "margin")
    assert (band.get_x(), band.get_width()) == (-1, 2)
    assert len(lines(axis, "families")) == 1
    for text, pair in zip(texts(axis), pairs, strict=True):
        assert pair.verdict in text
        assert f"{100 * pair.decided[1]:.4g} % CI" in text
    for words in ("16 windows", "±1 %", "exploratory"):
        assert words in caption_of(figure)


def test_differences_marks_where_no_test_applies(demo):
    (axis,) = differences(demo, MODEL).axes
    undefined = [p for p in demo.pairs if p.decided is None]
    assert len(undefined) == 2
    assert sum(text.endswith("no test") for text in texts(axis)) == 2
    faces = [line.get_markerfacecolor() == "white" for line in lines(axis, "difference")]
    assert faces == [p.decided is None for p in demo.pairs]


def test_time_shows_selection_against_change(repeated):
    figure = time_against_change(repeated, MODEL)
    (axis,) = figure.axes
    found = methods(repeated)
    expected = [(found[n].selection.mean, found[n].change_percent) for n in ROWS]
    drawn = [(m.get_xdata()[0], m.get_ydata()[0]) for m in lines(axis, "method")]
    np.testing.assert_allclose(drawn, expected)
    assert len(lines(axis, "seconds95")) == 3
    named = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [n.split("\n")[0] for n in named] == ["GPTQ default", "Random", "COLA-Zero"]


def test_windows_shows_the_difference_against_the_place_in_the_text(demo):
    figure = windows(demo, MODEL)
    assert len(figure.axes) == 2  # the primary comparisons
    text = demo.texts[MODEL]
    for axis, pair in zip(
        figure.axes,
        [p for p in demo.pairs if (p.model, p.family) == (MODEL, "primary")],
        strict=True,
    ):
        delta = text.profile(pair.a, pair.b)
        (marks,) = lines(axis, "windows")
        np.testing.assert_array_equal(marks.get_xdata(), text.start / 1000)
        np.testing.assert_array_equal(marks.get_ydata(), delta)
        steps = [line.get_ydata()[0] for line in lines(axis, "stretch")]
        np.testing.assert_allclose(steps, delta.reshape(4, 4).mean(axis=1))
        (mean,) = lines(axis, "mean")
        assert mean.get_ydata()[0] == pytest.approx(pair.text.log_ratio)
    for words in ("the 16 windows", "4 stretches", "sotu"):
        assert words in caption_of(figure)


def test_the_budget_is_drawn_a_panel_a_metric(repeated):
    figure = budget(repeated, MODEL)
    assert [axis.get_title("left") for axis in figure.axes] == ["perplexity", "kl_divergence"]
    known = repeated.budgets["perplexity", MODEL]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    sources = (known.seed, known.arithmetic, known.method_window, known.window)
    assert widths == [s.percent for s in sources]


def test_methods_differ_in_colour_and_in_shape(demo):
    summary = demo
    assert len({marker for _, marker in KNOWN.values()}) == len(KNOWN)
    (axis,) = time_against_change(summary, MODEL).axes
    looks = {(to_hex(m.get_color()), m.get_marker()) for m in lines(axis, "method")}
    shown = [KNOWN[name] for name in summary.names]
    assert looks == {(colour.lower(), marker) for colour, marker in shown}


def covered(figure):
    """Texts that cover each other, a mark, or an axis's caption; a legend counts as text."""
    figure.draw_without_rendering()
    found = []
    for axis in figure.axes:
        boxes = [(t.get_text(), Text.get_window_extent(t)) for t in axis.texts]
        legend = axis.get_legend()
        boxes += [] if legend is None else [("legend", legend.get_window_extent())]
        found += [
            (a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :] if x.overlaps(y)
        ]
        for line in axis.lines:
            if line.get_gid() in ("seeds", "mean", "difference", "method"):
                places = axis.transData.transform(line.get_xydata())
                found += [(t, line.get_gid()) for t, box in boxes if box.count_contains(places)]
        bottom = axis.get_tightbbox().y0
        found += [t for t in figure.texts if t.get_window_extent().y1 > bottom]
    return found


@pytest.mark.parametrize("suite", ["demo", "repeated", "crowded"])
def test_no_text_is_clipped_or_covers_another_or_a_mark(suite, request):
    summary = request.getfixturevalue(suite)
    for name, figure in figures(summary).items():
        assert covered(figure) == [], name
        page = figure.bbox
        shown = [t for axis in figure.axes for t in (*axis.texts, axis._left_title)] + figure.texts
        for text in shown:
            box = text.get_window_extent()
            assert box.x0 >= -1, (name, text.get_text())
            assert box.x1 <= page.x1 + 1, (name, text.get_text())


def test_files_carry_their_letters_and_are_reproducible(demo):
    figure = seeds(demo, MODEL)
    content = image(figure, "svg")
    assert b"<text" not in content  # letters are outlines, no font is asked for
    assert content == image(seeds(demo, MODEL), "svg")
    opened = Image.open(io.BytesIO(image(figure, "png")))
    assert opened.width == pytest.approx(7.2 * 160, abs=1)


def test_drawing_leaves_the_settings_of_others_alone(demo):
    before = dict(matplotlib.rcParams)
    image(next(iter(figures(demo).values())), "png")
    assert dict(matplotlib.rcParams) == before
