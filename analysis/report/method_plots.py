"""Figures of the methods, each on its own: numbers in, a Figure out. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.numbers import better, counts, interval, number
from analysis.report.style import (
    BLACK,
    GREY,
    PLATE,
    TEXT,
    label,
    look,
    name_rows,
    page,
    short,
    spread_out,
    styled,
)
from analysis.summary import Method, Summary

CV_BANDS = ((0.0, 5.0, "< 5 %"), (5.0, 10.0, "5–10 %"), (10.0, np.inf, "> 10 %"))
BAND_GREYS = ("#ffffff", "#ececec", "#d6d6d6")


def _models(summary: Summary) -> list[str]:
    return [model for model in summary.models if summary.of(model)]


@styled
def seeds(summary: Summary) -> Figure:
    """Every seed of every method, with the mean and its 95 % t-interval, one panel a model."""
    models = _models(summary)
    caption = (
        f"The {summary.metric_name} of every run; {counts(summary.methods)}. Small marks: "
        "one seed each. Line: mean with 95 % t-interval. A deterministic method is one mark "
        "without an interval, however many seeds it was run with. Dashed: the unquantized model."
    )
    height = sum(1.15 + 0.62 * len(summary.of(m)) for m in models)
    figure, axes = page(len(models), 1, height, caption)
    for axis, model in zip(axes, models, strict=True):
        methods = summary.of(model)
        for row, method in enumerate(methods):
            _strip(axis, row, method, summary.names)
        name_rows(axis, [label(m.name) for m in methods], above=0.95)
        axis.set_title(short(model))
        axis.set_xlabel(summary.metric_name)
        if model in summary.unquantized:
            middle = float(np.mean([v for m in methods for v in m.values]))
            _unquantized_line(axis, summary.unquantized[model], middle)
        axis.margins(x=0.12)
    return figure


def _strip(axis: Axes, row: int, method: Method, names: list[str]) -> None:
    colour, marker = look(method.name, names)
    values, about = np.array(method.values), method.description
    assert about.mean is not None
    if method.n == 1:
        axis.plot(about.mean, row, marker, color=colour, markersize=9, gid="mean")
        note = " (deterministic)" if method.deterministic else " (one run)"
        text = number(about.mean, 3) + note
    else:
        spread = np.linspace(-0.14, 0.14, values.size)
        axis.plot(values, row - 0.12 + spread, marker, color=colour, alpha=0.55, ms=5, gid="seeds")
        low, high = about.ci95 or (about.mean, about.mean)
        y = row + 0.2
        axis.plot([low, high], [y, y], color=colour, lw=1.8, gid="ci95")
        axis.plot(about.mean, y, "|", color=colour, markersize=12, markeredgewidth=2.4, gid="mean")
        text = f"{number(about.mean, 3)} {interval(about.ci95, 3)}"
    axis.annotate(
        text, (about.mean, row + 0.2), (0, -8), textcoords="offset points", ha="center", va="top",
        fontsize=8.5, color=TEXT, bbox=PLATE,
    )  # fmt: skip


def _unquantized_line(axis: Axes, value: float, middle: float) -> None:
    """Draw the unquantized model's line, its label on the side where the runs lie."""
    axis.axvline(value, color=BLACK, ls=(0, (5, 3)), lw=1.1, gid="unquantized")
    side, align = (5, "left") if value < middle else (-5, "right")
    axis.annotate(
        f"unquantized {number(value, 3)}", (value, 1), (side, -1), textcoords="offset points",
        xycoords=("data", "axes fraction"), fontsize=8.5, va="top", ha=align,
    )  # fmt: skip


@styled
def time_against_change(summary: Summary) -> Figure:
    """What a method costs against what it gives, with the Pareto front, one panel a model."""
    models = _models(summary)
    caption = (
        f"Seconds to select and quantize against the change in {summary.metric_name}; means, "
        f"{counts(summary.methods)}. Vertical bars: 95 % t-interval of the mean. Dotted line: "
        f"Pareto front, the means that no other method beats in both. {better(summary)}"
    )
    columns = 1 if len(models) == 1 else 2
    rows = -(-len(models) // columns)
    figure, axes = page(rows, columns, 3.4 * rows, caption)
    for axis in axes[len(models) :]:
        axis.remove()
    for axis, model in zip(axes, models, strict=False):
        _trade(axis, summary, model, room=0.3 if columns == 1 else 0.75)
    return figure


class Mark(NamedTuple):
    """One method in the trade-off: seconds, change in %, its interval."""

    method: Method
    x: float
    y: float
    low: float
    high: float


def _marks(summary: Summary, model: str) -> list[Mark]:
    plain = summary.unquantized.get(model)
    found = []
    for method in summary.of(model):
        mean, times = method.description.mean, (method.selection_time_sec, method.quant_time_sec)
        seconds = [t for t in times if t is not None]
        if mean is not None and len(seconds) == 2:
            limits = method.description.ci95 or (mean, mean)
            y, low, high = (_change(v, plain) for v in (mean, *limits))
            found.append(Mark(method, sum(seconds), y, low, high))
    return found


def _trade(axis: Axes, summary: Summary, model: str, room: float) -> None:
    marks, plain = _marks(summary, model), model in summary.unquantized
    for m in marks:
        colour, marker = look(m.method.name, summary.names)
        axis.plot([m.x, m.x], [m.low, m.high], color=colour, lw=1.4, gid="ci95")
        axis.plot(m.x, m.y, marker, color=colour, markersize=8, gid="method")
    front = pareto_front([(m.x, m.y) for m in marks], summary.lower_is_better)
    if front:
        axis.plot(*zip(*front, strict=True), ":", color=GREY, lw=1.4, zorder=1, gid="front")
    axis.margins(x=0.12, y=0.18)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right + room * (right - left))  # for the labels
    _label_marks(axis, marks, summary)
    axis.set_title(short(model))
    axis.set_xlabel("selection + quantization, s")
    unit = f"change in {summary.metric_name}\nfrom unquantized, %"
    axis.set_ylabel(unit if plain else summary.metric_name)
    axis.grid(color="#e6e6e6", lw=0.7)


def _label_marks(axis: Axes, marks: Sequence[Mark], summary: Summary) -> None:
    """Write each mark's name and numbers beside it, at heights where none covers another."""
    (bottom, top), (left, right) = axis.get_ylim(), axis.get_xlim()
    heights = spread_out([m.y + 0.04 * (top - bottom) for m in marks], gap=0.13 * (top - bottom))
    for m, height in zip(marks, heights, strict=True):
        known = m.method.model in summary.unquantized
        change = f"{number(m.y, 2, sign=True)} %" if known else number(m.y, 3)
        axis.annotate(
            f"{label(m.method.name)}\n{number(m.x, 1)} s, {change}", (m.x, m.y),
            (m.x + 0.025 * (right - left), height), va="center", fontsize=8.5, bbox=PLATE,
            color=TEXT, arrowprops={"arrowstyle": "-", "lw": 0.6, "color": GREY, "shrinkB": 5},
        )  # fmt: skip
    axis.set_ylim(min([bottom, *heights]), max([top, *heights]))


def _change(value: float, plain: float | None) -> float:
    return 100 * (value / plain - 1) if plain else value


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
def cv_bands(summary: Summary) -> Figure:
    """Coefficient of variation of each method with its interval, over the bands it is read by."""
    methods = [m for m in summary.methods if m.values]
    caption = (
        f"Coefficient of variation (standard deviation / mean) of {summary.metric_name} over "
        f"seeds; {counts(summary.methods)}. Lines: 95 % χ² interval of the standard deviation, "
        "which takes the seeds as normal; it may go on beyond the edge. A "
        "deterministic method is one observation and has none."
    )
    figure, (axis,) = page(1, 1, 1.1 + 0.56 * len(methods), caption)
    right = max(12.0, 1.3 * max(m.description.cv_percent or 0 for m in methods))
    axis.set_xlim(0, right)
    for (low, high, text), grey in zip(CV_BANDS, BAND_GREYS, strict=True):
        axis.axvspan(low, min(high, right), color=grey, lw=0, gid="band")
        axis.annotate(text, ((low + min(high, right)) / 2, 1), xycoords=("data", "axes fraction"),
                      ha="center", va="bottom", fontsize=8.5, color=GREY)  # fmt: skip
    for row, method in enumerate(methods):
        _cv(axis, row, method, summary.names)
    several = len(summary.models) > 1
    name_rows(
        axis, [f"{short(m.model)}\n{label(m.name)}" if several else label(m.name) for m in methods]
    )
    axis.set_xlabel("coefficient of variation, %")
    return figure


def _cv(axis: Axes, row: int, method: Method, names: list[str]) -> None:
    colour, marker = look(method.name, names)
    right = axis.get_xlim()[1]
    cv = method.description.cv_percent
    if method.n < 2 or cv is None:
        why = "deterministic: one observation" if method.deterministic else "one run"
        axis.annotate(why, (0, row), (6, 0), textcoords="offset points", va="center", fontsize=8.5)
        return
    low, high = method.cv_ci95 or (cv, cv)
    axis.plot([low, high], [row, row], color=colour, lw=1.6, gid="ci95")
    axis.plot(cv, row, marker, color=colour, markersize=8, gid="cv")
    axis.annotate(
        f"{number(cv, 2)} % {interval((low, high), 2)}", (cv, row), (0, -8), color=TEXT,
        textcoords="offset points", va="top", ha="left" if cv < right / 2 else "right",
        fontsize=8.5, bbox=PLATE,
    )  # fmt: skip
