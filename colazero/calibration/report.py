"""What a person wants to see of a selection: a picture, and a page to read its windows on."""

from __future__ import annotations

import base64
import io
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from colazero.calibration.check import documents_of
from colazero.calibration.map import DocumentMap, document_map, shown
from colazero.calibration.page import page
from colazero.calibration.plots import Picture, draw
from colazero.corpora import tokens
from colazero.figures import RC, caption_of, label
from colazero.settings import RunConfig
from colazero.types import CalibrationSet, Model, TokenPool


def write(folder: Path, config: RunConfig, model: Model, calibration: CalibrationSet) -> None:
    """Write `selection.png` and `.svg`, and `windows.html` with the picture and every window."""
    pool, tokenizer = tokens.pool_of(config, model), tokens.tokenizer(model)
    documents, available, min_tokens = shown(pool, documents_of(calibration, pool))
    origin = tokens.drawn_by(config)
    found = _map(model, origin, documents.tobytes(), available, min_tokens)
    figure = draw(picture(title(config), config.method, calibration, pool, found))
    drawn = saved(figure, "svg", metadata={"Date": None}, dpi=300)
    figure.set_layout_engine("none")  # as it was laid out for the first
    image = "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()
    html = page(title(config), (image, caption_of(figure)), calibration, pool, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "selection.svg").write_bytes(drawn)
    (folder / "selection.png").write_bytes(saved(figure, "png"))
    (folder / "windows.html").write_text(html, encoding="utf-8")


def title(config: RunConfig) -> str:
    """Say what was chosen, from what and by what."""
    n, seed = config.n_calibration_samples, config.seed
    return (
        f"{n:,} windows of {config.seq_len:,} tokens from {config.corpus}, chosen by "
        f"{label(config.method)} (seed {seed})"
    )


def picture(
    heading: str,
    method: str,
    calibration: CalibrationSet,
    pool: TokenPool,
    found: DocumentMap | None,
) -> Picture:
    """Gather what the picture shows."""
    lengths = pool.stops - pool.starts
    chosen = documents_of(calibration, pool)
    sizes = calibration.notes.get("cluster_sizes", [])
    used = Counter(calibration.notes.get("document_clusters", {}).values())
    what = f"{len(chosen):,} documents"
    if not any(calibration.spans):
        what = "the method's own text, out of no document"
    return Picture(
        method,
        f"{heading}: {what}.",
        lengths[lengths > 0],
        lengths[chosen],
        chosen,
        [(size, used[cluster]) for cluster, size in enumerate(sizes)],
        found,
    )


@lru_cache(maxsize=2)
def _map(
    model: Model,
    origin: tuple[str, float, int],
    documents: bytes,
    available: int,
    min_tokens: int,
) -> DocumentMap | None:
    """Return the map, the same for every method and seed that shows the same documents."""
    pool = tokens.token_pool(model, *origin)
    return document_map(pool, np.frombuffer(documents, dtype=np.int64), available, min_tokens)


def saved(figure: Figure, kind: str, **options: Any) -> bytes:
    """Return the file of a figure."""
    out = io.BytesIO()
    with mpl.rc_context({**RC, "text.parse_math": False}):
        figure.savefig(out, format=kind, **options)
    return out.getvalue()
