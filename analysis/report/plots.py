"""Every figure of the report: numbers in, a Figure out. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import special

from analysis.report.tables import (
    NONE,
    SOURCES,
    counts,
    deciding,
    interval,
    number,
    p_decided,
    p_equation,
    percent,
    unit,
    versus,
)
from analysis.stats.budget import VarianceBudget
from analysis.stats.text import stretch_labels
from analysis.summary import Summary
from analysis.summary.looks import Tracked
from analysis.summary.methods import Text
from analysis.summary.pairs import BASES, Pair, leading
from analysis.summary.sizes import Sizes
from colazero.figures import (
    BLACK,
    GREY,
    label,
    legend,
    name_rows,
    page,
    short,
    style_of,
    styled,
    write_at_right,
)

BAND = "#e4e4e4"
ACROSS = 3
"""Panels per row of the settings, at most."""


def figures(summary: Summary) -> dict[str, Figure]:
    """Return every figure that the runs have numbers for: NAME, or NAME_MODEL for several models.

    Where the runs differ in settings, a figure per model with all of its settings comes first.
    """
    drawn = {}
    if summary.facets:
        bases = list(dict.fromkeys(summary.place(m).model for m in summary.models if summary.of(m)))
        for k, base in enumerate(bases, 1):
            drawn["settings" + f"_{k}" * (len(bases) > 1)] = settings(summary, base)
    for k, group in enumerate(summary.sizes, 1):
        drawn["sizes" + f"_{k}" * (len(summary.sizes) > 1)] = sizes(summary, group)
    drawing: dict[str, tuple[Callable[[Summary, str], Figure], Callable[[Summary, str], object]]]
    drawing = {
        "seeds": (seeds, Summary.of),
        "differences": (differences, measured),
        "looks": (looks, followed),
        "windows": (windows, shown),
        "budget": (budget, budgets),
        "time": (time_against_change, Summary.of),
    }
    for name, (draw, content) in drawing.items():
        for model in (m for m in summary.models if content(summary, m)):
            suffix = f"_{_file(summary, model)}" if len(summary.models) > 1 else ""
            drawn[name + suffix] = draw(summary, model)
    return drawn


def _file(summary: Summary, model: str) -> str:
    """Return a model's short name as part of a file's, numbered where two would be the same."""

    def plain(name: str) -> str:
        return "".join(c if c.isalnum() or c in "-." else "_" for c in short(name).rstrip("…"))

    same = [m for m in summary.models if plain(m) == plain(model)]
    return plain(model) if len(same) == 1 else f"{plain(model)}_{same.index(model) + 1}"


def better(summary: Summary) -> str:
    """Say in which direction the metric is good."""
    return "Lower is better." if summary.lower_is_better else "Higher is better."


@styled
def seeds(summary: Summary, model: str) -> Figure:
    """Draw every observation of every method, with the mean and its 95 % t-interval."""
    methods = summary.of(model)
    plain = summary.unquantized.get(model)
    line = f" Dashed: the unquantized model, {number(plain, 3)}." if plain is not None else ""
    caption = (
        f"Values of {summary.metric_name} on {short(model)}; {counts(methods)}. Small marks: one "
        "per seed (its replicates averaged) or, hollow, per replicate of a method's one set. "
        f"Line: mean with 95 % t-interval, on exactly these windows.{line}"
    )
    figure, (axis,) = page(1, 1, 0.9 + 0.45 * len(methods), caption)
    for row, method in enumerate(methods):
        colour, marker = style_of(method.name, summary.names)
        values, about = np.array(method.values), method.description
        assert about.mean is not None
        face = "white" if method.one_set else colour
        spread = np.linspace(-0.12, 0.12, values.size) if values.size > 1 else np.zeros(1)
        y = row - 0.12 + spread
        axis.plot(values, y, marker, color=colour, mfc=face, alpha=0.65, ms=5, gid="seeds")
        text = number(about.mean, 3)
        if about.ci95 is not None:
            low = row + 0.22
            axis.plot(about.ci95, [low, low], color=colour, lw=1.8, gid="ci95")
            axis.plot(about.mean, low, "|", color=colour, ms=9, mew=2.4, gid="mean")
            text += f" {interval(about.ci95, 3)}"
        write_at_right(axis, row, text if method.n > 1 else f"{text}, one draw")
    name_rows(axis, [label(m.name) for m in methods])
    axis.set_title(short(model))
    axis.set_xlabel(summary.metric_name)
    if plain is not None:
        axis.axvline(plain, color=BLACK, ls=(0, (5, 3)), lw=1.1, gid="unquantized")
    axis.margins(x=0.05)
    return figure


def measured(summary: Summary, model: str) -> list[Pair]:
    """Return the comparisons of a model that have a difference."""
    return [p for p in summary.pairs if p.model == model and p.percent is not None]


@styled
def differences(summary: Summary, model: str) -> Figure:
    """Draw each comparison's difference with its intervals, over the equivalence band."""
    pairs, margin = measured(summary, model), summary.options.margin
    per = "percentage points" if unit(summary) == "points" else "% of the second method's"
    late = ", chosen post hoc" if any("margin" in x for x in summary.options.post_hoc) else ""
    caption = (
        f"Difference in {summary.metric_name} on {short(model)}, {per}. Thin "
        f"line: the interval that decided; thick: 95 %, not adjusted. {_basis(pairs)} "
        f"Shaded: ±{margin:g} {unit(summary)}{late}. p: Holm-adjusted over a family; below the "
        f"line: exploratory. {better(summary)} Hollow: no test applies."
    )
    figure, (axis,) = page(1, 1, 0.9 + 0.42 * len(pairs), caption)
    axis.axvspan(-margin, margin, color=BAND, lw=0, gid="margin")
    axis.axvline(0, color=BLACK, lw=1)
    for row, pair in enumerate(pairs):
        _difference(axis, row, pair, summary.names)
    primary = sum(p.family == "primary" for p in pairs)
    if 0 < primary < len(pairs):
        axis.axhline(primary - 0.5, color=GREY, lw=0.8, ls=":", gid="families")
    name_rows(axis, [versus(p) for p in pairs])
    axis.set_title(short(model))
    axis.set_xlabel(f"difference in {summary.metric_name}, {unit(summary)}")
    axis.margins(x=0.05)
    return figure


def _basis(pairs: Sequence[Pair]) -> str:
    """Say what the verdicts rest on, the primary ones first."""
    bases = list(dict.fromkeys(BASES[p.decided_by] for p in pairs if p.decided_by))
    windows = {p.text.n_windows for p in pairs if p.text is not None}
    text = "".join(f" ({n} windows)" for n in windows)
    return f"Verdicts {' or '.join(bases)}{text}." if bases else "No test applies."


def _difference(axis: Axes, row: int, pair: Pair, names: list[str]) -> None:
    assert pair.percent is not None
    colour, marker = style_of(pair.a, names)
    wide = None
    if pair.decided_by == "seeds and text" and pair.text is not None:
        wide = pair.text.percent_ci
    elif pair.decided_by == "seeds":
        wide = pair.seeds_percent_ci95
    narrow = pair.decided and pair.decided[0]
    for gid, ends, width in (("decided", narrow, 1.3), ("ci95", wide, 4.0)):
        if ends is not None:
            axis.plot(ends, [row, row], color=colour, lw=width, gid=gid, solid_capstyle="butt")
    hollow = "white" if pair.decided is None else colour
    axis.plot(pair.percent, row, marker, color=colour, mfc=hollow, markersize=7, gid="difference")
    text = f"{percent(pair.percent)} {pair.unit}, no test"
    if pair.decided is not None:
        p = p_decided(pair)
        known = "" if p is None else f", {p_equation(p)}"
        text = f"{percent(pair.percent)} {pair.unit}, {deciding(pair)}\n{pair.verdict}{known}"
    write_at_right(axis, row, text)


def followed(summary: Summary, model: str) -> list[Tracked]:
    """Return the comparisons of a model that were looked at under a declared maximum."""
    return [one for one in summary.looks if one.levels and one.pairs[0].model == model]


@styled
def looks(summary: Summary, model: str) -> Figure:
    """Draw a row per comparison: left the differences look by look, right z and its boundary."""
    known = followed(summary, model)
    margin = summary.options.margin
    caption = (
        f"Looks at {short(model)}. Left: difference in {summary.metric_name}, % of the second "
        "method's, with the interval at the nominal level of the look (repeated interval); "
        f"shaded: ±{margin:g} %. Right: the difference over its standard error, as the z of equal "
        "p, and the boundary above which it counts as a difference (line). Large mark: the look "
        f"that the verdict rests on. {better(summary)}"
    )
    figure, axes = page(len(known), 2, 1.9 * len(known) + 0.3, caption)
    for one, left, right in zip(known, axes[::2], axes[1::2], strict=True):
        colour, marker = style_of(one.pairs[0].a, summary.names)
        sizes = [8.0 if k == one.decided else 4.5 for k in range(len(one.ns))]
        left.axhspan(-margin, margin, color=BAND, lw=0, gid="margin")
        left.axhline(0, color=BLACK, lw=0.8)
        bounds = [float(-special.ndtri(level / 2)) for level in one.levels]
        right.plot(one.ns, bounds, color=GREY, lw=1.4, marker="_", ms=9, gid="boundary")
        for k, (n, pair, size) in enumerate(zip(one.ns, one.pairs, sizes, strict=True)):
            limits = one.repeated(k)
            if limits is not None:
                left.plot([n, n], limits, color=colour, lw=1.6, gid="repeated")
            if pair.percent is not None:
                left.plot(n, pair.percent, marker, color=colour, ms=size, gid="difference")
            if pair.estimate is not None:
                z = float(-special.ndtri(max(pair.estimate.p_value, 1e-300) / 2))
                right.plot(n, z, marker, color=colour, ms=size, gid="z")
        left.set_title(f"{versus(one.pair)}: {one.pair.verdict}", fontsize=8.5)
        left.set_ylabel("difference, %", fontsize=8.5)
        right.margins(y=0.15)  # marks are whole
        right.set_ylim(bottom=0)
        right.set_title("difference over its error, and the boundary", fontsize=8.5)
        right.set_ylabel("z", fontsize=8.5)
        for axis in (left, right):
            axis.set_xlim(0, 1.04 * (one.maximum or one.ns[-1]))
            axis.tick_params(labelsize=8)
    for axis in axes[-2:]:
        axis.set_xlabel("seeds per method", fontsize=8.5)
    return figure


@styled
def windows(summary: Summary, model: str) -> Figure:
    """Draw the difference per window against its place in the text, a panel per comparison."""
    text = summary.texts[model]
    pairs = shown(summary, model)
    column = summary.known.windows
    what_of = "share of tokens" if column == "agreed" else "nats per token"
    what = {"nll": "negative log-likelihood", "kl": "KL divergence", "agreed": "top-1 agreement"}
    stretches = stretch_labels(len(text.tokens))
    caption = (
        f"Difference in {what[str(column)]} ({what_of}) per window, on {short(model)}, against its "
        f"place in {text.corpus}; each method is the mean of its observations. Points: the "
        f"{len(text.tokens)} windows. Steps: means of {stretches.max() + 1} stretches of the text. "
        "Dashed: mean. A trend says that the difference belongs to parts of the text. "
        f"{better(summary)}"
    )
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    figure, axes = page(rows, columns, 2.0 * rows + 0.3, caption)
    for axis in axes[len(pairs) :]:
        axis.remove()
    for axis, pair in zip(axes, pairs, strict=False):
        _profile(axis, pair, text, stretches, style_of(pair.a, summary.names)[0])
    for axis in axes[max(0, len(pairs) - columns) : len(pairs)]:
        axis.set_xlabel("first token of the window, thousands")
    for first in axes[: len(pairs) : columns]:
        first.set_ylabel(f"Δ, {what_of}", fontsize=8.5)
    return figure


def shown(summary: Summary, model: str) -> list[Pair]:
    """Return the comparisons that are drawn window by window: the primary ones, else all."""
    known = set(summary.texts[model].draws) if model in summary.texts else set()
    return leading([p for p in summary.pairs if p.model == model and {p.a, p.b} <= known])


def _profile(axis: Axes, pair: Pair, text: Text, stretches: NDArray[np.intp], colour: str) -> None:
    delta, place = text.profile(pair.a, pair.b), text.start / 1000
    axis.axhline(0, color=BLACK, lw=0.8)
    size = 2.5 if delta.size > 64 else 4
    axis.plot(place, delta, "o", color=colour, ms=size, alpha=0.55, gid="windows")
    for k in range(stretches.max() + 1):
        own = stretches == k
        mean = np.average(delta[own], weights=text.tokens[own])
        axis.plot([place[own][0], place[own][-1]], [mean] * 2, color=colour, lw=2.2, gid="stretch")
    mean = float(np.average(delta, weights=text.tokens))
    axis.axhline(mean, color=colour, lw=1.1, ls=(0, (4, 3)), gid="mean")
    axis.set_title(f"{versus(pair)}\nmean {number(mean, 4, sign=True)}", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.yaxis.set_major_locator(MaxNLocator(5))


def budgets(summary: Summary, model: str) -> list[tuple[str, VarianceBudget]]:
    """Return the variance budgets of a model by metric."""
    return [(metric, one) for (metric, of), one in summary.budgets.items() if of == model]


@styled
def budget(summary: Summary, model: str) -> Figure:
    """Draw the standard deviation of each source in one draw, a panel per metric."""
    known = budgets(summary, model)
    caption = (
        f"Noise of one value on {short(model)}: standard deviation of each source in one "
        "draw, % of the metric. Next to it: its share of the variance of a difference between two "
        "methods. The window's own part is the same for all methods, and cancels in a difference."
    )
    figure, axes = page(1, len(known), 1.9, caption)
    for axis, (metric, made) in zip(axes, known, strict=True):
        for row, (key, _) in enumerate(SOURCES):
            source = getattr(made, key)
            if source.percent is not None:
                axis.barh(row, source.percent, height=0.55, color=GREY, gid="source")
            share = "" if source.share is None else f", {100 * source.share:.0f} %"
            text = NONE if source.percent is None else f"{number(source.percent, 2)}{share}"
            place = (source.percent or 0, row)
            axis.annotate(text, place, (4, 0), textcoords="offset points", va="center", fontsize=8)
        names = [name.partition(" (")[0] for _, name in SOURCES]
        name_rows(axis, names if axis is axes[0] else [""] * len(SOURCES))
        axis.set_title(metric, fontsize=9)
        axis.set_xlabel("σ of one draw, %", fontsize=8.5)
        axis.margins(x=0.35)
        axis.set_xlim(left=0)
    return figure


@styled
def time_against_change(summary: Summary, model: str) -> Figure:
    """Draw what selecting costs against what it gives."""
    plain, methods = summary.unquantized.get(model), summary.of(model)
    caption = (
        f"Seconds to select a calibration set against {summary.metric_name} on {short(model)}; "
        f"means, {counts(methods)}. Bars: 95 % t-intervals, on exactly these windows. "
        f"{better(summary)}"
    )
    figure, (axis,) = page(1, 1, 3.2, caption)
    for m in methods:
        about, seconds = m.description, m.selection
        if about.mean is None or seconds.mean is None:
            continue
        values = (about.mean, *(about.ci95 or ()))
        x, (y, *ends) = seconds.mean, [100 * (v / plain - 1) if plain else v for v in values]
        colour, marker = style_of(m.name, summary.names)
        if ends:
            axis.plot([x, x], ends, color=colour, lw=1.3, gid="ci95")
        if seconds.ci95 is not None:
            axis.plot(seconds.ci95, [y, y], color=colour, lw=1.3, gid="seconds95")
        change = f"{number(y, 2, sign=True)} %" if plain else number(y, 3)
        name = f"{label(m.name)}\n{number(x, 2)} s, {change}"
        axis.plot(x, y, marker, color=colour, markersize=8, gid="method", label=name)
    axis.margins(x=0.08, y=0.12)
    axis.set_title(short(model))
    axis.set_xlabel("selection, s")
    change = f"change in {summary.metric_name}\nfrom unquantized, %"
    axis.set_ylabel(change if plain else summary.metric_name)
    axis.grid(color="#e6e6e6", lw=0.7)
    if axis.get_legend_handles_labels()[0]:
        legend(axis)
    return figure


@styled
def sizes(summary: Summary, group: Sizes) -> Figure:
    """Draw how much worse each size is than the largest, against its tokens; a line per length."""
    margin, largest = summary.options.margin, group.largest
    caption = (
        f"{label(group.method)} on {short(group.model)}: {summary.metric_name} of each size of "
        f"calibration set against that of {largest.samples:,} × {largest.seq_len:,} tokens, %. "
        f"Line upwards: one-sided {100 * group.level:.4g} % bound, {BASES['seeds and text']}. "
        f"Shaded: within {margin:g} %. Filled: shown to be enough."
    )
    figure, (axis,) = page(1, 1, 3.2, caption)
    axis.axhspan(-margin, margin, color=BAND, lw=0, gid="margin")
    axis.axhline(0, color=BLACK, lw=0.8)
    everything = [*group.sizes, replace(largest, worse_percent=0.0, enough=True)]
    lengths = sorted({size.seq_len for size in everything})
    for length in lengths:
        colour, marker = style_of(str(length), [str(one) for one in lengths])
        own = [s for s in everything if s.seq_len == length]
        worse = [np.nan if s.worse_percent is None else s.worse_percent for s in own]
        axis.plot(
            [s.tokens for s in own],
            worse,
            color=colour,
            lw=1.1,
            label=f"windows of {length:,} tokens",
            marker=marker,
            mfc="white",
            gid="length",
        )
        for size, y in zip(own, worse, strict=True):
            if size.at_most_percent is not None:
                ends = [y, size.at_most_percent]
                axis.plot([size.tokens] * 2, ends, color=colour, lw=1.6, gid="bound")
            if size.enough:
                axis.plot(size.tokens, y, marker, color=colour, gid="enough")
    axis.set_xscale("log", base=2)
    ticks = sorted({size.tokens for size in everything})
    axis.set_xticks(ticks, [f"{tokens:,}" for tokens in ticks], rotation=45, ha="right", fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("calibration tokens")
    axis.set_ylabel(f"{summary.metric_name}, % above the largest size")
    axis.grid(color="#e6e6e6", lw=0.7)
    legend(axis)
    return figure


@styled
def settings(summary: Summary, base: str) -> Figure:
    """Draw mean and interval of every method, a panel per setting with its own scale."""
    models = [m for m in summary.models if summary.place(m).model == base]
    names = [n for n in summary.names if any(x.name == n for m in models for x in summary.of(m))]
    caption = (
        f"Means of {summary.metric_name} on {short(base)} in each setting, with 95 % t-intervals "
        f"over observations, on exactly these windows. {better(summary)} Scales differ between "
        "panels, and no test compares two of them. Dashed: the unquantized model, if it is near."
    )
    across = min(ACROSS, len(models))
    rows = -(-len(models) // across)
    figure, axes = page(rows, across, rows * (0.8 + 0.28 * len(names)), caption)
    for axis in axes[len(models) :]:
        axis.remove()
    for k, (axis, model) in enumerate(zip(axes, models, strict=False)):
        for method in summary.of(model):
            colour, marker = style_of(method.name, summary.names)
            row, about = names.index(method.name), method.description
            assert about.mean is not None
            if about.ci95 is not None:
                axis.plot(about.ci95, [row, row], color=colour, lw=1.6, gid="ci95")
            face = "white" if method.one_set else colour
            axis.plot(about.mean, row, marker, color=colour, mfc=face, markersize=6, gid="mean")
        plain = summary.unquantized.get(model)
        low, high = axis.get_xlim()
        if plain is not None and low - (high - low) < plain < high + (high - low):
            axis.axvline(plain, color=BLACK, ls=(0, (5, 3)), lw=1.0, gid="unquantized")
        axis.margins(x=0.1)
        name_rows(axis, [label(n) for n in names] if k % across == 0 else [""] * len(names))
        setting = summary.place(model).setting
        axis.set_title("\n".join(f"{n} {value}" for n, value in setting.items()), fontsize=8.5)
        axis.set_xlabel(summary.metric_name, fontsize=8)
        axis.tick_params(labelsize=8)
    return figure
