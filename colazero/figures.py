"""The style of all figures: colours that colour-blind readers can tell apart, markers, captions."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008), without its yellow, which is too pale for a marker on white.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#595959"
TEXT = "#222222"  # small text in the colours of markers would be too pale on white
OTHERS = (PURPLE, ORANGE, SKY)
OTHER_MARKERS = (">", "p", "d", "*", "8")  # distinct from the markers below
KNOWN = {
    "cola_zero": (BLUE, "o"),
    "random": (VERMILION, "s"),
    "gptq_default": (GREEN, "D"),
    "cola": (BLACK, "h"),
    "cola_zero_perplexity": (SKY, "P"),
    "cola_zero_reasoning": (SKY, "X"),
    "stratified": (ORANGE, "v"),
    "unique_tokens": (PURPLE, "<"),
    "zipcal": (PURPLE, "^"),
}
LABELS = {
    "cola_zero": "COLA-Zero",
    "random": "Random",
    "random_tokens": "Random tokens",
    "self": "Self-written",
    "gptq_default": "GPTQ default",
    "cola": "COLA",
    "cola_zero_perplexity": "COLA-Zero, perplexity",
    "cola_zero_reasoning": "COLA-Zero, reasoning",
    "stratified": "Stratified",
    "unique_tokens": "Unique tokens",
    "zipcal": "ZipCal",
}

WIDTH = 7.2  # inches
CAPTION_SIZE = 8.5  # points
LINE = 1.35 * CAPTION_SIZE / 72  # inches per line of caption

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.fonttype": "path",  # letters as outlines, which need no font
    "svg.hashsalt": "colazero",  # the same figure gives the same file
    "savefig.dpi": 160,
}


Draw = TypeVar("Draw", bound=Callable[..., Figure])


def styled(draw: Draw) -> Draw:
    """Decorate a drawing function so that it uses the report's style."""

    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context(RC):
            return draw(*args, **kwargs)

    return cast(Draw, inside)


def label(method: str) -> str:
    """Return the display name of a method."""
    return LABELS.get(method, method)


def short(model: str) -> str:
    """Return a model's name short enough for a chart: the last part of a Hub id or path.

    A setting in brackets after the name is kept whole.
    """
    name, bracket, setting = model.partition(" [")
    name = name.rstrip("/").rsplit("/", 1)[-1]
    return (name if len(name) <= 28 else name[:27] + "…") + bracket + setting


def style_of(method: str, methods: list[str]) -> tuple[str, str]:
    """Return a method's colour and marker, which are fixed for built-in methods."""
    if method in KNOWN:
        return KNOWN[method]
    index = [name for name in methods if name not in KNOWN].index(method)
    return OTHERS[index % len(OTHERS)], OTHER_MARKERS[index % len(OTHER_MARKERS)]


def page(rows: int, columns: int, height: float, caption: str) -> tuple[Figure, list[Axes]]:
    """Return a figure of `rows` × `columns` axes, `height` inches in total, above its caption."""
    figure = sheet(height, caption)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def sheet(height: float, caption: str) -> Figure:
    """Return a figure without axes, `height` inches, above its caption."""
    lines = textwrap.wrap(caption.replace(" %", "\u00a0%"), 104)  # a number keeps its % sign
    foot = LINE * len(lines) + 0.14
    figure = Figure(figsize=(WIDTH, height + foot), layout="constrained")
    total = height + foot
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, foot / total, 1, height / total))  # type: ignore[call-arg]
    text = figure.text(0.012, 0.07 / total, "\n".join(lines), fontsize=CAPTION_SIZE, va="bottom")
    text.set_gid("caption")
    text.set_linespacing(1.25)
    text.set_color("#333333")
    return figure


def name_rows(axis: Axes, labels: Sequence[str], above: float = 0.6) -> None:
    """Label the rows of a chart on its left, row 0 at the top, `above` rows below the edge."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.3, -above)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color="#e6e6e6", lw=0.7)


def write_at_right(axis: Axes, row: int, text: str) -> None:
    """Write a row's numbers to the right of a chart, where they cover no marker."""
    axis.annotate(
        text, (1.01, row), xycoords=("axes fraction", "data"), va="center", ha="left",
        fontsize=7.5, color=TEXT, annotation_clip=False,
    )  # fmt: skip


def legend(axis: Axes) -> None:
    """Add a legend to the right of a chart."""
    axis.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, labelspacing=0.7
    )


def caption_of(figure: Figure) -> str:
    """Return a figure's caption on one line."""
    text = next(text.get_text() for text in figure.texts if text.get_gid() == "caption")
    return str(text).replace("\n", " ").replace("\u00a0", " ")
