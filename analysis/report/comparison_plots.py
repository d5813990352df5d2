"""Figures of a model's comparisons: numbers in, a Figure out. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.report.budget import SOURCES
from analysis.report.numbers import NONE, better, decided, number, p_equation, percent
from analysis.stats.text import stretch_labels
from analysis.summary import Pair, Summary
from analysis.summary.methods import Text
from analysis.summary.pairs import text_percent
from colazero.figures import (
    BLACK,
    GREY,
    beside,
    label,
    look,
    name_rows,
    page,
    short,
    styled,
)


@styled
def differences(summary: Summary, model: str) -> Figure:
    """Forest plot: each comparison's difference with the intervals, over the equivalence band."""
    pairs = [p for p in summary.pairs if p.model == model and p.percent is not None]
    margin = summary.options.margin
    late = ", chosen post hoc" if summary.options.post_hoc else ""
    caption = (
        f"Difference in {summary.metric_name} on {short(model)}, % of the second method's. Thin "
        f"line: the interval that decided, its confidence beside it; thick: 95 %, not adjusted. "
        f"{_basis(pairs)} Shaded: ±{margin:g} %{late}. p: Holm-adjusted over a family; below the "
        f"line: exploratory. {better(summary)} Hollow: no test applies."
    )
    figure, (axis,) = page(1, 1, 0.9 + 0.42 * len(pairs), caption)
    axis.axvspan(-margin, margin, color="#e4e4e4", lw=0, gid="margin")
    axis.axvline(0, color=BLACK, lw=1)
    for row, pair in enumerate(pairs):
        _difference(axis, row, pair, summary.names)
    primary = sum(p.family == "primary" for p in pairs)
    if 0 < primary < len(pairs):
        axis.axhline(primary - 0.5, color=GREY, lw=0.8, ls=":", gid="families")
    name_rows(axis, [f"{label(p.a)} vs {label(p.b)}" for p in pairs])
    axis.set_title(short(model))
    axis.set_xlabel(f"difference in {summary.metric_name}, %")
    axis.margins(x=0.05)
    return figure


def _basis(pairs: Sequence[Pair]) -> str:
    """Say what was done: over which text, or over seeds alone."""
    on_text = [p.text for p in pairs if p.decided_by == "seeds and text" and p.text is not None]
    if any(p.decided_by == "seeds at any time" for p in pairs):
        return "Over seeds on exactly these windows, valid at any look (t e-process)."
    if not on_text:
        return "Over seeds alone (Welch), on exactly these windows."
    first = on_text[0]
    others = any(p.decided_by == "seeds" for p in pairs)
    more = " Where a method lacks windows, over seeds (Welch)." if others else ""
    return (
        f"Over seeds and text: {first.n_windows} windows, neighbouring {first.unit} compared; for "
        f"other documents of this mix.{more}"
    )


def _difference(axis: Axes, row: int, pair: Pair, names: list[str]) -> None:
    assert pair.percent is not None
    colour, marker = look(pair.a, names)
    wide = None
    if pair.decided_by == "seeds and text" and pair.text is not None:
        wide = text_percent(pair.text, pair.scale, pair.log)
    elif pair.decided_by == "seeds":
        wide = pair.seeds_percent_ci95
    narrow = pair.decided and pair.decided[0]
    for gid, ends, width in (("decided", narrow, 1.3), ("ci95", wide, 4.0)):
        if ends is not None:
            axis.plot(ends, [row, row], color=colour, lw=width, gid=gid, solid_capstyle="butt")
    hollow = "white" if pair.decided is None else colour
    axis.plot(pair.percent, row, marker, color=colour, mfc=hollow, markersize=7, gid="difference")
    if pair.decided is None:
        beside(axis, row, f"{percent(pair.percent)} %, no test")
        return
    j = pair.judgement
    p = j.tost_p_adjusted if pair.verdict == "equivalent" else j.p_adjusted
    text = f"{percent(pair.percent)} %, {decided(pair)}\n{pair.verdict}, {p_equation(p)}"
    beside(axis, row, text)


@styled
def windows(summary: Summary, model: str) -> Figure:
    """Difference a window against its position in the text, a panel a primary comparison."""
    text = summary.texts[model]
    pairs = shown(summary, model)
    column = summary.known.windows
    unit = "share of tokens" if column == "agreed" else "nats a token"
    what = {"nll": "negative log-likelihood", "kl": "KL divergence", "agreed": "top-1 agreement"}
    stretches = stretch_labels(len(text.tokens))
    caption = (
        f"Difference in {what[str(column)]} ({unit}) a window, on {short(model)}, against its "
        f"place in {text.corpus}; each method is the mean of its observations. Points: the "
        f"{len(text.tokens)} windows. Steps: means of the {stretches.max() + 1} contiguous "
        "stretches of the text. Dashed: mean. A trend says that the difference belongs to parts "
        f"of the text. {better(summary)}"
    )
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = page(rows, columns, 2.0 * rows + 0.3, caption)
    for axis in axes[len(pairs) :]:
        axis.remove()
    for axis, pair in zip(axes, pairs, strict=False):
        _profile(axis, pair, text, stretches, look(pair.a, summary.names)[0])
    for axis in axes[max(0, len(pairs) - columns) : len(pairs)]:
        axis.set_xlabel("first token of the window, thousands")
    for first in axes[: len(pairs) : columns]:
        first.set_ylabel(f"Δ, {unit}", fontsize=8.5)
    return figure


def shown(summary: Summary, model: str) -> list[Pair]:
    """Return the comparisons that are drawn window by window: the primary ones, else all."""
    known = set(summary.texts[model].draws) if model in summary.texts else set()
    pairs = [p for p in summary.pairs if p.model == model and {p.a, p.b} <= known]
    return [p for p in pairs if p.family == "primary"] or pairs


def _profile(axis: Axes, pair: Pair, text: Text, stretches: NDArray[np.intp], colour: str) -> None:
    delta, place = text.profile(pair.a, pair.b), text.start / 1000
    axis.axhline(0, color=BLACK, lw=0.8)
    many = delta.size > 64
    axis.plot(place, delta, "o", color=colour, ms=2.5 if many else 4, alpha=0.55, gid="windows")
    for k in range(stretches.max() + 1):
        own = stretches == k
        mean = np.average(delta[own], weights=text.tokens[own])
        axis.plot([place[own][0], place[own][-1]], [mean] * 2, color=colour, lw=2.2, gid="stretch")
    mean = float(np.average(delta, weights=text.tokens))
    axis.axhline(mean, color=colour, lw=1.1, ls=(0, (4, 3)), gid="mean")
    name = f"{label(pair.a)} vs {label(pair.b)}"
    axis.set_title(f"{name}\nmean {number(mean, 4, sign=True)}", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.yaxis.set_major_locator(MaxNLocator(5))


@styled
def budget(summary: Summary, model: str) -> Figure:
    """Variance budget: the standard deviation of each source in one draw, a panel a metric."""
    known = [(metric, b) for (metric, m), b in summary.budgets.items() if m == model]
    caption = (
        f"What a value on {short(model)} is made of: standard deviation of each source in one "
        "draw, % of the metric. Beside it: its share of the variance of a difference between two "
        "methods. The window's own part is the same for all methods and leaves a difference alone."
    )
    figure, axes = page(1, len(known), 1.9, caption)
    for axis, (metric, found) in zip(axes, known, strict=True):
        for row, (key, _, _) in enumerate(SOURCES):
            source = getattr(found, key)
            if source.percent is not None:
                axis.barh(row, source.percent, height=0.55, color=GREY, gid="source")
            share = "" if source.share is None else f", {100 * source.share:.0f} %"
            text = NONE if source.percent is None else f"{number(source.percent, 2)}{share}"
            axis.annotate(
                text, (source.percent or 0, row), (4, 0), textcoords="offset points", va="center",
                fontsize=8,
            )  # fmt: skip
        first = axis is axes[0]
        names = [name.partition(" (")[0] for _, name, _ in SOURCES]
        name_rows(axis, names if first else [""] * len(SOURCES))
        axis.set_title(metric, fontsize=9)
        axis.set_xlabel("σ of one draw, %", fontsize=8.5)
        axis.margins(x=0.35)
        axis.set_xlim(left=0)
    return figure
