"""The looks drawn: estimate and repeated interval over seeds, with the boundaries beside them."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import special

from analysis.report.numbers import better
from analysis.summary import Summary
from analysis.summary.looks import Tracked
from colazero.figures import BLACK, GREY, label, look, page, short, styled


def followed(summary: Summary, model: str) -> list[Tracked]:
    """Return the comparisons of a model that were looked at under a declared maximum."""
    return [one for one in summary.looks if one.levels and one.pairs[0].model == model]


@styled
def looks(summary: Summary, model: str) -> Figure:
    """A row a comparison: left the differences with repeated intervals, right z and boundaries."""
    known = followed(summary, model)
    margin = summary.options.margin
    caption = (
        f"Looks at {short(model)}. Left: difference in {summary.metric_name}, % of the second "
        "method's, with the interval at the nominal level of the look (repeated interval); "
        f"shaded: ±{margin:g} %. Right: the size of the difference over its error, as the z of "
        "equal p, against the boundary at which it counts as a difference (line). Large mark: the "
        f"look whose numbers the verdict rests on. {better(summary)}"
    )
    figure, axes = page(len(known), 2, 1.9 * len(known) + 0.3, caption)
    for one, left, right in zip(known, axes[::2], axes[1::2], strict=True):
        colour, marker = look(one.pairs[0].a, summary.names)
        _differences(left, one, margin, (colour, marker))
        _boundary(right, one, (colour, marker))
        for axis in (left, right):
            axis.set_xlim(0, 1.04 * (one.maximum or one.ns[-1]))
            axis.tick_params(labelsize=8)
    for axis in axes[-2:]:
        axis.set_xlabel("seeds a method", fontsize=8.5)
    return figure


def _sizes(one: Tracked) -> list[float]:
    return [8.0 if k == one.decided else 4.5 for k in range(len(one.ns))]


def _differences(axis: Axes, one: Tracked, margin: float, mark: tuple[str, str]) -> None:
    axis.axhspan(-margin, margin, color="#e4e4e4", lw=0, gid="margin")
    axis.axhline(0, color=BLACK, lw=0.8)
    for k, (n, pair, size) in enumerate(zip(one.ns, one.pairs, _sizes(one), strict=True)):
        limits = one.repeated(k)
        if limits is not None:
            axis.plot([n, n], limits, color=mark[0], lw=1.6, gid="repeated")
        if pair.percent is not None:
            axis.plot(n, pair.percent, mark[1], color=mark[0], ms=size, gid="difference")
    pair = one.pair
    axis.set_title(f"{label(pair.a)} vs {label(pair.b)}: {pair.verdict}", fontsize=8.5)
    axis.set_ylabel("difference, %", fontsize=8.5)


def _boundary(axis: Axes, one: Tracked, mark: tuple[str, str]) -> None:
    bounds = [float(-special.ndtri(level / 2)) for level in one.levels]
    axis.plot(one.ns, bounds, color=GREY, lw=1.4, marker="_", ms=9, gid="boundary")
    for n, pair, size in zip(one.ns, one.pairs, _sizes(one), strict=True):
        if pair.estimate is not None:
            z = float(-special.ndtri(max(pair.estimate.p_value, 1e-300) / 2))
            axis.plot(n, z, mark[1], color=mark[0], ms=size, gid="z")
    axis.margins(y=0.15)  # marks are whole
    axis.set_ylim(bottom=0)
    axis.set_title("size over its error, and its boundary", fontsize=8.5)
    axis.set_ylabel("z", fontsize=8.5)
