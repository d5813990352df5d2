"""The picture of a calibration set: a map of its documents, and a page with its windows.

The map has the first two principal components of the features that COLA-Zero clusters. It is the
same for every method and seed that shows the same documents.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from colazero.calibration.sets import documents_of
from colazero.corpora import tokens
from colazero.figures import RC, caption_of, label, sheet, style_of, styled
from colazero.selection import features, one_thread
from colazero.selection.cola_zero import GROUPS, MIN_DOC_TOKENS
from colazero.settings import RunConfig
from colazero.types import CalibrationSet, Model, SelectionSettings, Span, TokenPool

MOST = 4_000
"""Documents on a map; of a larger corpus, a fixed sample."""
FEWEST = 50
"""If fewer documents are long enough to be clustered, the map shows all documents."""
GREY = "#bdbdbd"  # documents that were not chosen
MOST_BINS = 36
FEW = 16
"""Up to this many clusters have their number of chosen documents written on them."""
CHARACTERS = 200
"""Characters of a window on the page."""
TOKENS = 4 * CHARACTERS
"""Enough tokens for them: a character has at most four bytes, a token at least one."""

MEASURES = {
    "tokens_given": ("tokens", "{:,.0f}"),
    "documents_used": ("documents used", "{:,.0f}"),
    "documents_share": ("share of the corpus's documents", "{:.2f} %"),
    "type_token_ratio": ("type-token ratio", "{:.4f}"),
    "entropy_bits": ("entropy, bits", "{:.2f}"),
    "kl_from_corpus_bits": ("KL divergence from the corpus, bits", "{:.3f}"),
    "test_13gram_overlap": ("13-grams that are also in the test split", "{:.2f} %"),
    "test_13gram_overlap_worst_window": ("the same in the worst window", "{:.2f} %"),
}


def write(folder: Path, config: RunConfig, model: Model, calibration: CalibrationSet) -> None:
    """Write `selection.png` and `.svg`, and `windows.html` with the picture and every window."""
    pool, tokenizer = tokens.pool_of(config, model), tokens.tokenizer(model)
    documents, available, min_tokens = shown(pool, documents_of(calibration, pool))
    settings = SelectionSettings.of(config, device="cpu")  # the map runs no model
    drawn_by = tokens.drawn_by(config)
    points = _cached_map(model, drawn_by, settings, documents.tobytes(), available, min_tokens)
    title = (
        f"{config.n_calibration_samples:,} windows of {config.seq_len:,} tokens from "
        f"{config.corpus} (method {label(config.method)}, seed {config.seed})"
    )
    figure = draw(title, config.method, calibration, pool, points)
    svg = saved(figure, "svg", metadata={"Date": None}, dpi=300)
    figure.set_layout_engine("none")  # keep the layout of the first file
    image = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    html = page(title, (image, caption_of(figure)), calibration, pool, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "selection.svg").write_bytes(svg)
    (folder / "selection.png").write_bytes(saved(figure, "png"))
    (folder / "windows.html").write_text(html, encoding="utf-8")


@dataclass(frozen=True)
class DocumentMap:
    """`documents` [m] at `points` [m, 2], of `available` documents of at least `min_tokens`.

    The axes explain `shares` [2] of the features' variance; `groups` names their feature groups.
    """

    documents: NDArray[np.int64]
    points: NDArray[np.float64]
    available: int
    min_tokens: int
    shares: tuple[float, float]
    groups: tuple[str, str]


def shown(pool: TokenPool, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, int]:
    """Return the documents to map, the number they were taken from, and their least length.

    These are the documents long enough to be clustered. Of more than MOST, a sample that includes
    the `chosen` ones.
    """
    lengths = pool.stops - pool.starts
    min_tokens = MIN_DOC_TOKENS if (lengths >= MIN_DOC_TOKENS).sum() >= FEWEST else 1
    documents = np.flatnonzero(lengths >= min_tokens)
    available = len(documents)
    if available > MOST:
        among = chosen[lengths[chosen] >= min_tokens]
        documents = np.union1d(_sample(documents), _sample(among))
    return documents, available, min_tokens


def _sample(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(documents) <= MOST:
        return documents
    return np.random.default_rng(0).choice(documents, size=MOST, replace=False)


@lru_cache(maxsize=2)
def _cached_map(
    model: Model,
    drawn_by: tuple[str, float, int, str],
    settings: SelectionSettings,
    documents: bytes,
    available: int,
    min_tokens: int,
) -> DocumentMap | None:
    pool = replace(tokens.token_pool(model, *drawn_by), selection_settings=settings)
    return document_map(pool, np.frombuffer(documents, dtype=np.int64), available, min_tokens)


def document_map(
    pool: TokenPool, documents: NDArray[np.int64], available: int, min_tokens: int
) -> DocumentMap | None:
    """Project documents to their first two principal components; None if they do not differ."""
    if len(documents) < 3:
        return None
    if len(documents) < available:  # every cell maps other documents: do not cache their features
        pool = replace(pool, entry=None)
    with one_thread():
        blocks = {name: features.matrix(pool, documents, [name]) for name in GROUPS}
        matrix = np.hstack(list(blocks.values())).astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(matrix, rowvar=False))
        if values[-2] <= 1e-12:
            return None
        axes = vectors[:, :-3:-1]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # eigh leaves signs open
        points = matrix @ axes
    first, second = (float(values[-i] / values.sum()) for i in (1, 2))
    groups = (_made_of(blocks, axes[:, 0]), _made_of(blocks, axes[:, 1]))
    return DocumentMap(documents, points, available, min_tokens, (first, second), groups)


def _made_of(blocks: Mapping[str, NDArray[np.float32]], axis: NDArray[np.float64]) -> str:
    """Name the feature groups that make up an axis of length 1, with their shares of it."""
    ends = np.cumsum([block.shape[1] for block in blocks.values()])
    shares = [float((part**2).sum()) for part in np.split(axis, ends[:-1])]
    ranked = sorted(zip(shares, blocks, strict=True), reverse=True)
    names = [(share, "TF-IDF" if name == "tfidf" else name) for share, name in ranked]
    return " and ".join(f"{name} ({100 * share:.0f} %)" for share, name in names if share >= 0.1)


class Panel(NamedTuple):
    """One chart: its title, its part of the caption, and the function that draws it."""

    title: str
    caption: str
    paint: Callable[[Axes], None]


@styled
def draw(
    title: str,
    method: str,
    calibration: CalibrationSet,
    pool: TokenPool,
    points: DocumentMap | None,
) -> Figure:
    """Draw the panels that have data: the map large on the left, the others to its right."""
    lengths, chosen = pool.stops - pool.starts, documents_of(calibration, pool)
    style = style_of(method, [method])
    origin = "the method's own text, not from any document"
    if any(calibration.spans):
        origin = f"{len(chosen):,} documents"
    large = [] if points is None else [_map_panel(points, chosen, *style)]
    small = []
    if calibration.notes.get("cluster_sizes"):
        small.append(_clusters_panel(calibration.notes, style[0]))
    if len(chosen):
        small.append(_lengths_panel(lengths[lengths > 0], lengths[chosen], style[0]))
    panels = dict(zip("abc", [*large, *small], strict=False))
    captions = [f"({letter}) {panel.caption}" for letter, panel in panels.items()]
    with mpl.rc_context({"text.parse_math": False}):  # a file may be called $a$
        figure = sheet(3.9 if large else 2.6, " ".join([f"{title}: {origin}.", *captions]))
        if not panels:
            return figure
        columns = bool(large) and len(panels) > 1
        rows = "\n".join("a" + letter for letter in "bc"[: len(small)])
        layout = rows if columns else "".join(panels)
        axes = figure.subplot_mosaic(layout, width_ratios=[1.55, 1] if columns else None)
        for letter, axis in axes.items():
            panels[letter].paint(axis)
            axis.set_title(f"({letter}) {panels[letter].title}")
    return figure


def _map_panel(points: DocumentMap, chosen: NDArray[np.int64], colour: str, marker: str) -> Panel:
    shown = np.isin(points.documents, chosen)

    def paint(axis: Axes) -> None:
        rest, own = points.points[~shown].T, points.points[shown].T
        axis.scatter(rest[0], rest[1], 5, color=GREY, lw=0, label="not chosen", rasterized=True)
        axis.set_xlabel(f"first component, {100 * points.shares[0]:.0f} % of the variance")
        axis.set_ylabel(f"second component, {100 * points.shares[1]:.0f} %")
        axis.set_xticks([])
        axis.set_yticks([])
        if shown.any():
            size = 18 if shown.sum() < 200 else 10
            edged: dict[str, Any] = {"edgecolor": "white", "lw": 0.35, "rasterized": True}
            axis.scatter(own[0], own[1], size, color=colour, marker=marker, label="chosen", **edged)
            axis.legend(loc="best", fontsize=8, handletextpad=0.2, borderpad=0.3)

    long = f" of at least {points.min_tokens} tokens" if points.min_tokens > 1 else ""
    which = f"All {points.available:,} documents{long}"
    if len(points.documents) < points.available:
        which = f"{len(points.documents):,} of the {points.available:,} documents{long} (a fixed "
        which += "random sample and the chosen ones)" if shown.any() else "random sample)"
    hidden = len(chosen) - int(shown.sum())
    left_out = f" {hidden:,} chosen documents are not shown." if hidden else ""
    caption = (
        f"{which}, by the first two principal components of COLA-Zero's features; the first is "
        f"made of {points.groups[0]}, the second of {points.groups[1]}.{left_out}"
    )
    return Panel("Documents by their features", caption, paint)


def _clusters_panel(notes: Mapping[str, Any], colour: str) -> Panel:
    used = Counter(notes.get("document_clusters", {}).values())
    sizes = np.array(notes["cluster_sizes"])
    chosen = [used[cluster] for cluster in range(len(sizes))]

    def paint(axis: Axes) -> None:
        edges = np.arange(len(sizes) + 1) - 0.5
        axis.stairs(sizes, edges, fill=True, color=GREY)
        axis.stairs(chosen, edges, fill=True, color=colour)
        if len(sizes) <= FEW:  # among hundreds, a few chosen ones are too small to see
            for number, (size, own) in enumerate(zip(sizes, chosen, strict=True)):
                axis.text(number, size, str(own), color=colour, ha="center", va="bottom", size=8)
            axis.set_ylim(0, 1.15 * sizes.max())  # room for the numbers
        axis.set_xlabel("cluster")
        axis.set_ylabel("documents")
        axis.set_xlim(edges[0], edges[-1])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=True))
            side.set_major_formatter(StrMethodFormatter("{x:,.0f}"))

    number = " and their number" if len(sizes) <= FEW else ""
    caption = (
        f"Documents per cluster, numbered as in windows.html; coloured: the chosen ones{number}."
    )
    return Panel("Cluster sizes", caption, paint)


def _lengths_panel(every: NDArray[np.int64], chosen: NDArray[np.int64], colour: str) -> Panel:
    bins = int(np.clip(2 * np.sqrt(len(chosen)), 8, MOST_BINS))
    edges = np.geomspace(every.min(), every.max() + 1, bins + 1)

    def share(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return 100 * np.histogram(lengths, edges)[0] / len(lengths)

    def paint(axis: Axes) -> None:
        axis.stairs(share(every), edges, fill=True, color=GREY)
        axis.stairs(share(chosen), edges, color=colour, lw=1.6)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("tokens per document")
        axis.set_ylabel("% of documents")
        axis.yaxis.set_major_locator(MaxNLocator(4))

    return Panel("Document lengths", "Grey: the corpus; line: the chosen documents.", paint)


def saved(figure: Figure, kind: str, **options: Any) -> bytes:
    """Return a figure as the content of a file."""
    out = io.BytesIO()
    with mpl.rc_context({**RC, "text.parse_math": False}):
        figure.savefig(out, format=kind, **options)
    return out.getvalue()


def page(
    title: str,
    image: tuple[str, str],
    calibration: CalibrationSet,
    pool: TokenPool,
    tokenizer: Any,
) -> str:
    """Return the page: the picture (its data URI and alternative text), measures and windows."""
    notes = calibration.notes
    clusters = notes.get("document_clusters", {})
    template = Path(__file__).with_name("windows.html").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            digest=calibration.digest,
            image=image[0],
            alt=image[1],
            measures=[
                (name, form.format(notes[key] * (100 if "%" in form else 1)))
                for key, (name, form) in MEASURES.items()
                if key in notes
            ],
            characters=CHARACTERS,
            windows=[
                {
                    "text": beginning(window, tokenizer),
                    "origins": [_origin(span, pool, clusters) for span in spans]
                    or [("no document", "written by the method")],
                }
                for window, spans in zip(calibration.windows, calibration.spans, strict=True)
            ],
        )
    )


def beginning(window: NDArray[np.int32], tokenizer: Any) -> str:
    """Return the first characters of a window; a character cut at its edge shows as �."""
    text: str = tokenizer.decode(window[:TOKENS].tolist(), clean_up_tokenization_spaces=False)
    return text[:CHARACTERS]


def _origin(span: Span, pool: TokenPool, clusters: Mapping[str, int]) -> tuple[str, str]:
    """Name the documents of a span, with the cluster of a single one, and its tokens."""
    last = int(np.searchsorted(pool.starts, span.stop, side="left")) - 1
    name = f"document {span.document:,}"
    if last > span.document:
        name = f"documents {span.document:,} to {last:,}"
    elif str(span.document) in clusters:
        name += f", cluster {clusters[str(span.document)]}"
    return name, f"tokens {span.start:,} to {span.stop - 1:,}"
