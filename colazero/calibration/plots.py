"""The picture of a selection: where the chosen documents lie, their clusters, their lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from colazero.calibration.map import DocumentMap
from colazero.figures import look, sheet, styled

REST = "#bdbdbd"  # what was not chosen
MOST_BINS = 36
FEW = 16
"""Up to so many clusters have their number of chosen documents written on them."""


@dataclass(frozen=True)
class Picture:
    """What is drawn. `title`: what was chosen, in a sentence.

    `lengths`: tokens of each document that has any; `chosen_lengths`: of those that were chosen;
    `chosen`: their indices among all documents. `clusters`: for each, cluster 0 first, its size and
    how many of it were chosen; empty for a method that clusters nothing. `map`: None if documents
    do not differ.
    """

    method: str
    title: str
    lengths: NDArray[np.int64]
    chosen_lengths: NDArray[np.int64]
    chosen: NDArray[np.int64]
    clusters: Sequence[tuple[int, int]]
    map: DocumentMap | None

    @property
    def look(self) -> tuple[str, str]:
        """The method's colour and marker."""
        return look(self.method, [self.method])


class Panel(NamedTuple):
    """One chart: its title, what the caption says of it, and what draws it."""

    title: str
    caption: str
    paint: Callable[[Axes], None]


@styled
def draw(picture: Picture) -> Figure:
    """Draw what there is something to draw of: the map large at the left, the others beside it."""
    large = [] if picture.map is None else [_map(picture, picture.map)]
    small = [_clusters(picture)] if picture.clusters else []
    small += [_lengths(picture)] if len(picture.chosen_lengths) else []
    panels = dict(zip("abc", [*large, *small], strict=False))
    captions = [f"({letter}) {panel.caption}" for letter, panel in panels.items()]
    with mpl.rc_context({"text.parse_math": False}):  # a file may be called $a$
        figure = sheet(3.9 if large else 2.6, " ".join([picture.title, *captions]))
        for letter, axis in _arrange(figure, list(panels), bool(large)).items():
            panels[letter].paint(axis)
            axis.set_title(f"({letter}) {panels[letter].title}")
    return figure


def _arrange(figure: Figure, letters: list[str], large: bool) -> dict[str, Axes]:
    if not letters:
        return {}
    beside = large and len(letters) > 1
    rows = "\n".join("a" + letter for letter in letters[1:]) if beside else "".join(letters)
    return figure.subplot_mosaic(rows, width_ratios=[1.55, 1] if beside else None)


def _map(picture: Picture, found: DocumentMap) -> Panel:
    chosen = np.isin(found.documents, picture.chosen)
    colour, marker = picture.look

    def paint(axis: Axes) -> None:
        rest, own = found.points[~chosen].T, found.points[chosen].T
        size = 18 if chosen.sum() < 200 else 10
        axis.scatter(rest[0], rest[1], 5, color=REST, lw=0, rasterized=True, label="not chosen")
        if chosen.any():
            axis.scatter(
                own[0],
                own[1],
                size,
                color=colour,
                marker=marker,
                edgecolor="white",
                lw=0.35,
                rasterized=True,
                label="chosen",
            )
        axis.set_xlabel(f"first component, {100 * found.shares[0]:.0f} % of the variance")
        axis.set_ylabel(f"second component, {100 * found.shares[1]:.0f} %")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.legend(loc="best", fontsize=8, handletextpad=0.2, borderpad=0.3)

    return Panel("Documents by their features", _map_caption(picture, found, chosen), paint)


def _map_caption(picture: Picture, found: DocumentMap, chosen: NDArray[np.bool_]) -> str:
    long = f" of at least {found.min_tokens} tokens" if found.min_tokens > 1 else ""
    which = f"All {found.available:,} documents{long}"
    if len(found.documents) < found.available:
        which = f"{len(found.documents):,} of the {found.available:,} documents{long} (a random "
        which += "sample that is always the same, and chosen ones)"
    hidden = len(picture.chosen) - int(chosen.sum())
    left_out = f" {hidden:,} chosen documents are not among them." if hidden else ""
    return (
        f"{which}, by the first two principal components of COLA-Zero's features; the first is "
        f"made of {found.groups[0]}, the second of {found.groups[1]}.{left_out}"
    )


def _clusters(picture: Picture) -> Panel:
    sizes, chosen = np.array(picture.clusters).T
    colour = picture.look[0]

    def paint(axis: Axes) -> None:
        edges = np.arange(len(sizes) + 1) - 0.5
        axis.stairs(sizes, edges, fill=True, color=REST)
        axis.stairs(chosen, edges, fill=True, color=colour)
        if len(sizes) <= FEW:  # too few are chosen to show beside hundreds: say how many
            for number, (size, own) in enumerate(zip(sizes, chosen, strict=True)):
                axis.text(number, size, str(own), color=colour, ha="center", va="bottom", size=8)
        axis.set_xlabel("cluster, by its number in the table of windows")
        axis.set_ylabel("documents")
        axis.set_xlim(edges[0], edges[-1])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=True))

    return Panel("Cluster sizes", "Documents in each cluster; coloured: the chosen ones.", paint)


def _lengths(picture: Picture) -> Panel:
    bins = int(np.clip(2 * np.sqrt(len(picture.chosen_lengths)), 8, MOST_BINS))
    edges = np.geomspace(picture.lengths.min(), picture.lengths.max() + 1, bins + 1)

    def share(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return 100 * np.histogram(lengths, edges)[0] / len(lengths)

    def paint(axis: Axes) -> None:
        axis.stairs(share(picture.lengths), edges, fill=True, color=REST)
        axis.stairs(share(picture.chosen_lengths), edges, color=picture.look[0], lw=1.6)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("tokens a document")
        axis.set_ylabel("% of documents")
        axis.yaxis.set_major_locator(MaxNLocator(4))

    return Panel("Document lengths", "Grey: the corpus; line: the chosen documents.", paint)
