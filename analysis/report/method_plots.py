"""Figures of the methods of one model, each on its own: numbers in, a Figure out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.numbers import better, counts, interval, number
from analysis.stats.samples import Interval
from analysis.summary import Method, Summary
from colazero.figures import (
    BLACK,
    GREY,
    beside,
    label,
    legend,
    look,
    name_rows,
    page,
    short,
    styled,
)

CV_BANDS = ((0.0, 5.0, "< 5 %"), (5.0, 10.0, "5–10 %"), (10.0, np.inf, "> 10 %"))
BAND_GREYS = ("#ffffff", "#ececec", "#d6d6d6")


@styled
def seeds(summary: Summary, model: str) -> Figure:
    """Every observation of every method, with the mean and its 95 % t-interval."""
    methods = summary.of(model)
    plain = summary.unquantized.get(model)
    line = f" Dashed: the unquantized model, {number(plain, 3)}." if plain is not None else ""
    caption = (
        f"Values of {summary.metric_name} on {short(model)}; {counts(methods)}. Small marks: one "
        "each, a seed (its replicates averaged), or, hollow, a replicate of a method's one set. "
        f"Line: mean with 95 % t-interval, on exactly these windows.{line}"
    )
    figure, (axis,) = page(1, 1, 0.9 + 0.45 * len(methods), caption)
    for row, method in enumerate(methods):
        _strip(axis, row, method, summary.names)
    name_rows(axis, [label(m.name) for m in methods])
    axis.set_title(short(model))
    axis.set_xlabel(summary.metric_name)
    if plain is not None:
        axis.axvline(plain, color=BLACK, ls=(0, (5, 3)), lw=1.1, gid="unquantized")
    axis.margins(x=0.05)
    return figure


def _strip(axis: Axes, row: int, method: Method, names: list[str]) -> None:
    colour, marker = look(method.name, names)
    values, about = np.array(method.values), method.description
    assert about.mean is not None
    face = "white" if method.one_set else colour
    spread = np.linspace(-0.12, 0.12, values.size) if values.size > 1 else np.zeros(1)
    axis.plot(
        values, row - 0.12 + spread, marker, color=colour, mfc=face, alpha=0.65, ms=5, gid="seeds"
    )
    text = number(about.mean, 3)
    if about.ci95 is not None:
        y = row + 0.22
        axis.plot(about.ci95, [y, y], color=colour, lw=1.8, gid="ci95")
        axis.plot(about.mean, y, "|", color=colour, markersize=9, markeredgewidth=2.4, gid="mean")
        text += f" {interval(about.ci95, 3)}"
    beside(axis, row, text if method.n > 1 else f"{text}, one draw")


class Mark(NamedTuple):
    """One method in the trade-off: seconds, value, and the interval of each where it has one."""

    method: Method
    x: float
    y: float
    x_limits: Interval | None
    y_limits: Interval | None


@styled
def time_against_change(summary: Summary, model: str) -> Figure:
    """What selecting costs against what it gives, with the Pareto front where it is shown."""
    marks, plain = _marks(summary, model), summary.unquantized.get(model)
    found = front(marks, summary.lower_is_better)
    line = (
        "Dotted line: Pareto front, what no other method beats in both."
        if found
        else "No Pareto front is drawn: intervals overlap, or one draw has none."
    )
    unit = f"change in {summary.metric_name}\nfrom unquantized, %"
    caption = (
        f"Seconds to select a calibration set against {summary.metric_name} on {short(model)}; "
        f"means, {counts(summary.of(model))}. Bars: 95 % t-intervals, on exactly these windows. "
        f"{line} {better(summary)}"
    )
    figure, (axis,) = page(1, 1, 3.2, caption)
    for m in marks:
        colour, marker = look(m.method.name, summary.names)
        if m.y_limits is not None:
            axis.plot([m.x, m.x], m.y_limits, color=colour, lw=1.3, gid="ci95")
        if m.x_limits is not None:
            axis.plot(m.x_limits, [m.y, m.y], color=colour, lw=1.3, gid="seconds95")
        axis.plot(
            m.x, m.y, marker, color=colour, markersize=8, gid="method", label=_named(m, plain)
        )
    if found:
        axis.plot(*zip(*found, strict=True), ":", color=GREY, lw=1.4, zorder=1, gid="front")
    axis.margins(x=0.08, y=0.12)
    axis.set_title(short(model))
    axis.set_xlabel("selection, s")
    axis.set_ylabel(unit if plain else summary.metric_name)
    axis.grid(color="#e6e6e6", lw=0.7)
    if marks:
        legend(axis)
    return figure


def _named(m: Mark, plain: float | None) -> str:
    change = f"{number(m.y, 2, sign=True)} %" if plain else number(m.y, 3)
    return f"{label(m.method.name)}\n{number(m.x, 2)} s, {change}"


def _marks(summary: Summary, model: str) -> list[Mark]:
    plain = summary.unquantized.get(model)

    def change(value: float) -> float:
        return 100 * (value / plain - 1) if plain else value

    found = []
    for method in summary.of(model):
        mean, seconds = method.description.mean, method.selection
        if mean is not None and seconds.mean is not None:
            limits = method.description.ci95
            ends = None if limits is None else (change(limits[0]), change(limits[1]))
            found.append(Mark(method, seconds.mean, change(mean), seconds.ci95, ends))
    return found


def front(marks: Sequence[Mark], lower: bool) -> list[tuple[float, float]]:
    """Return the Pareto front; empty where two of its methods are not told apart in both."""
    points = pareto_front([(m.x, m.y) for m in marks], lower)
    on = [m for m in marks if (m.x, m.y) in points]
    apart = all(
        _apart(a.x_limits, b.x_limits) and _apart(a.y_limits, b.y_limits)
        for a, b in combinations(on, 2)
    )
    return points if len(points) > 1 and apart else []


def _apart(a: Interval | None, b: Interval | None) -> bool:
    return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])


def pareto_front(
    points: Sequence[tuple[float, float]], lower: bool = True
) -> list[tuple[float, float]]:
    """Return the (seconds, value) points that no other beats in both, by rising seconds."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], p[1] if lower else -p[1])):
        if not front or (y < front[-1][1] if lower else y > front[-1][1]):
            front.append((x, y))
    return front


@styled
def cv_bands(summary: Summary, model: str) -> Figure:
    """Coefficient of variation of each method with its interval, over the bands it is read by."""
    methods = summary.of(model)
    caption = (
        f"Coefficient of variation (standard deviation / mean) of {summary.metric_name} on "
        f"{short(model)}; {counts(methods)}. Lines: 95 % χ² interval of the standard deviation, "
        "which takes the observations as normally distributed; it may go on beyond the edge. "
        "Hollow: replicates of one set, the spread of the arithmetic alone."
    )
    figure, (axis,) = page(1, 1, 0.95 + 0.4 * len(methods), caption)
    right = max(12.0, 1.3 * max(m.description.cv_percent or 0 for m in methods))
    axis.set_xlim(0, right)
    for (low, high, text), grey in zip(CV_BANDS, BAND_GREYS, strict=True):
        axis.axvspan(low, min(high, right), color=grey, lw=0, gid="band")
        axis.annotate(text, ((low + min(high, right)) / 2, 1), xycoords=("data", "axes fraction"),
                      ha="center", va="bottom", fontsize=8.5, color=GREY)  # fmt: skip
    for row, method in enumerate(methods):
        _cv(axis, row, method, summary.names)
    name_rows(axis, [label(m.name) for m in methods])
    axis.set_xlabel("coefficient of variation, %")
    return figure


def _cv(axis: Axes, row: int, method: Method, names: list[str]) -> None:
    colour, marker = look(method.name, names)
    cv = method.description.cv_percent
    if cv is None:
        beside(axis, row, "one draw")
        return
    low, high = method.cv_ci95 or (cv, cv)
    axis.plot([low, high], [row, row], color=colour, lw=1.6, gid="ci95")
    face = "white" if method.one_set else colour
    axis.plot(cv, row, marker, color=colour, mfc=face, markersize=8, gid="cv")
    beside(axis, row, f"{number(cv, 2)} % {interval((low, high), 2)}")
