"""Figures of the comparisons: numbers in, a Figure out. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.report.numbers import better, counts, interval, number, p_equation, percent
from analysis.report.style import BLACK, PLATE, TEXT, label, look, name_rows, page, short, styled
from analysis.summary import Pair, Summary
from analysis.summary.windows import Key, WindowPair


@styled
def differences(summary: Summary) -> Figure:
    """Forest plot: each comparison's difference with its intervals and the equivalence band."""
    pairs = [pair for pair in summary.pairs if pair.result.diff is not None]
    margin = summary.options.margin
    what = "the unquantized model's" if summary.unquantized else "the second method's"
    caption = (
        f"Difference in {summary.metric_name}, % of {what}; {counts(summary.methods)}. Thin line: "
        "95 %, thick line: 90 % t-interval (Welch). "
        f"Shaded: ±{margin:g} %, differences that do not matter; methods are equivalent when the "
        f"90 % interval lies inside. p: Holm-adjusted over {summary.family} tests, the intervals "
        f"are not. {better(summary)} Hollow: no test applies."
    )
    figure, (axis,) = page(1, 1, 1.0 + 0.62 * len(pairs), caption)
    axis.axvspan(-margin, margin, color="#dcdcdc", lw=0, gid="margin")
    axis.axvline(0, color=BLACK, lw=1)
    for row, pair in enumerate(pairs):
        _difference(axis, row, pair, summary.names)
    several = len(summary.models) > 1
    name_rows(axis, [_pair_label(pair, several) for pair in pairs])
    axis.set_xlabel(f"difference in {summary.metric_name}, % of {what}")
    axis.margins(x=0.12)
    return figure


def _pair_label(pair: Pair, several: bool) -> str:
    text = f"{label(pair.a)}\nvs {label(pair.b)}"
    return f"{short(pair.model)}\n{text}" if several else text


def _difference(axis: Axes, row: int, pair: Pair, names: list[str]) -> None:
    result = pair.result
    centre = pair.percent(result.diff)
    assert centre is not None
    colour, marker = look(pair.a, names)
    for gid, bounds, width in (("ci95", result.diff_ci95, 1.4), ("ci90", result.diff_ci90, 4.5)):
        ends = pair.percent_interval(bounds)
        if ends is not None:
            axis.plot(ends, [row, row], color=colour, lw=width, gid=gid, solid_capstyle="butt")
    hollow = "white" if result.test is None else colour
    axis.plot(centre, row, marker, color=colour, mfc=hollow, markersize=8, gid="difference")
    text = f"{percent(centre)} %"
    if result.test is None:
        text += ", no test"
    else:
        limits = interval(pair.percent_interval(result.diff_ci95), 2, sign=True)
        text += f" {limits}, {p_equation(result.p_adjusted)}: {result.verdict}"
    axis.annotate(
        text, (centre, row), (0, -9), textcoords="offset points", ha="center", va="top",
        fontsize=8.5, color=TEXT, bbox=PLATE,
    )  # fmt: skip


@styled
def window_histograms(summary: Summary, windows: Mapping[Key, WindowPair]) -> Figure:
    """Histogram of the difference in NLL a window, a panel a comparison."""
    pairs = [pair for pair in summary.pairs if (pair.model, pair.a, pair.b) in windows]
    counts = sorted({w.result.n_windows for w in windows.values()})
    n = " or ".join(map(str, counts))
    caption = (
        f"Difference in negative log-likelihood (NLL) a token, a histogram over the same n = {n} "
        "evaluation windows; each method is the mean of its checkpoints. Solid line: mean, shaded: "
        "its 95 % t-interval, clustered by stretches of neighbouring windows. It speaks about "
        "these checkpoints: the noise of choosing other calibration data is not in it. Negative "
        "favours the first method."
    )
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = page(rows, columns, 2.7 * rows + 0.3, caption)
    for axis in axes[len(pairs) :]:
        axis.remove()
    several = len(summary.models) > 1
    for axis, pair in zip(axes, pairs, strict=False):
        found = windows[pair.model, pair.a, pair.b]
        _histogram(axis, pair, found, look(pair.a, summary.names)[0])
        axis.set_title(_pair_label(pair, several), fontsize=9)
    for first in axes[: len(pairs) : columns]:
        first.set_ylabel("windows")
    return figure


def _histogram(axis: Axes, pair: Pair, found: WindowPair, colour: str) -> None:
    low, high = min(0.0, found.delta.min()), max(0.0, found.delta.max())
    bins = np.linspace(low, high, 1 + int(np.clip(2 * np.sqrt(found.delta.size), 6, 40)))
    axis.hist(found.delta, bins=bins.tolist(), color=colour, alpha=0.55, edgecolor="white", lw=0.5)
    axis.axvline(0, color=BLACK, lw=1, ls=(0, (5, 3)))
    axis.axvline(found.result.diff_nll, color=colour, lw=2, gid="mean")
    limits = found.result.diff_nll_ci95
    if limits is not None:
        axis.axvspan(*limits, color=colour, alpha=0.25, lw=0, gid="ci95")
    text = f"mean {number(found.result.diff_nll, 4, sign=True)}\n{interval(limits, 4, sign=True)}"
    axis.set_xlabel(f"ΔNLL, nats a token\n{text}", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.locator_params(axis="x", nbins=4)
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
