"""The picture and the page of a selection, on corpora like a user's and on odd ones."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from colazero import models, pipeline
from colazero.calibration import picture as selection_picture
from colazero.calibration.picture import CHARACTERS, beginning, document_map, draw, page, shown
from colazero.calibration.sets import documents_of, select
from colazero.corpora import tokens
from colazero.corpora.tokens import build_pool
from colazero.figures import caption_of
from colazero.settings import RunConfig, Settings
from colazero.types import CalibrationSet, Corpus, Model, SelectionSettings, Span, TokenPool

N, SEQ_LEN = 8, 128
SETTINGS = SelectionSettings.of(Settings(), device="cpu")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return models.fetch(str(tiny_llama))


def config_of(corpus: Path, method: str, seed: int = 42) -> RunConfig:
    name = f"file:{corpus}"
    own = {"method": method, "seed": seed, "n_calibration_samples": N, "seq_len": SEQ_LEN}
    return RunConfig(corpus=name, eval_corpora=(name,), **own)


def chosen_and_pool(config: RunConfig, model: Model) -> tuple[CalibrationSet, TokenPool]:
    calibration, _ = pipeline.calibrate(config, model)
    pool = tokens.token_pool(model, config.corpus)
    return calibration, replace(pool, selection_settings=SETTINGS)


class Cells(HTMLParser):
    """Collect the text of every cell of class `text`, and every tag's name and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "td":
            self._inside = dict(attributes).get("class") == "text"
            self.texts += [""] * self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


# --- the files


@pytest.mark.parametrize("method", ["cola_zero", "random"])
def test_the_files_hold_a_picture_and_every_window(
    method: str, model: Model, corpus_file: Path, tmp_path: Path
) -> None:
    config = config_of(corpus_file, method)
    calibration, _ = chosen_and_pool(config, model)
    for folder in ("once", "again"):
        selection_picture.write(tmp_path / folder, config, model, calibration)
    names = {"selection.png", "selection.svg", "windows.html"}
    assert {file.name for file in (tmp_path / "once").iterdir()} == names
    for name in names:
        once, again = (tmp_path / folder / name for folder in ("once", "again"))
        assert once.read_bytes() == again.read_bytes(), "the same selection, the same file"
    html = (tmp_path / "once" / "windows.html").read_text(encoding="utf-8")
    cells = Cells(html)
    decoded = tokens.tokenizer(model).batch_decode(calibration.windows)
    assert cells.texts == [text[:CHARACTERS] for text in decoded]
    assert ("cluster" in html.split("<tbody>")[1]) == (method == "cola_zero")
    sources = [a["src"] for _, a in cells.tags if "src" in a]
    assert [str(s)[:26] for s in sources] == ["data:image/svg+xml;base64,"]
    assert not any(tag in ("script", "link", "iframe") or "href" in a for tag, a in cells.tags)


def test_what_a_text_holds_stays_text(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>&amp; \u202e right to left", "</td></table> عربى 🙂"]
    pool = build_pool(Corpus("odd", "1", texts, []), tokenizer, tmp_path)
    spans = [[Span(d, int(pool.starts[d]), int(pool.starts[d]) + 12)] for d in (0, 1)]
    windows = np.stack([pool.tokens[s[0].start : s[0].stop] for s in spans])
    calibration = CalibrationSet(windows, spans, {})
    html = page("<title>", ("data:,", '"alt"'), calibration, pool, tokenizer)
    cells = Cells(html)
    assert cells.texts == [tokenizer.decode(window) for window in windows]
    assert "<script>" not in html
    assert html.count("</table>") == 2
    assert "&lt;title&gt;" in html


def test_the_page_names_documents_tokens_and_clusters(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["one two three", "four five six", "seven eight nine"]
    pool = build_pool(Corpus("toy", "1", texts, []), tokenizer, tmp_path)
    whole = [Span(0, 0, len(pool.tokens))]
    middle = int(pool.starts[1])
    parts = [Span(1, middle, middle + 2), Span(2, int(pool.starts[2]), int(pool.starts[2]) + 2)]
    calibration = CalibrationSet(
        np.zeros((2, 4), dtype=np.int32), [whole, parts], {"document_clusters": {"1": 7}}
    )
    html = page("t", ("data:,", ""), calibration, pool, tokenizer)
    for text in (
        "documents 0 to 2",
        f"tokens 0 to {len(pool.tokens) - 1:,}",
        "document 1, cluster 7",
        f"tokens {middle} to {middle + 1}",
        "and 1 more",
    ):
        assert text in html


def test_two_hundred_characters_are_shown_however_many_tokens_they_are(tokenizer: Any) -> None:
    text = "🙂" * 300  # four tokens each in a vocabulary of bytes
    ids = np.array(tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)
    assert beginning(ids, tokenizer) == "🙂" * CHARACTERS


# --- the picture


def test_the_picture_counts_what_was_chosen(model: Model, corpus_file: Path) -> None:
    config = config_of(corpus_file, "cola_zero")
    calibration, pool = chosen_and_pool(config, model)
    figure = draw("A title", "cola_zero", calibration, pool, None)
    chosen, sizes = documents_of(calibration, pool), calibration.notes["cluster_sizes"]
    assert sizes == sorted(sizes, reverse=True)
    drawn = next(a for a in figure.axes if "Cluster" in a.get_title(loc="left"))
    assert drawn.get_xlim() == (-0.5, len(sizes) - 0.5)
    labels = {int(text.get_position()[0]): int(text.get_text()) for text in drawn.texts}
    in_table = Counter(calibration.notes["document_clusters"].values())
    assert labels == in_table, "a cluster has one number, in the table of windows and the picture"
    assert sum(labels.values()) == len(chosen)
    assert all(0 < labels[cluster] <= size for cluster, size in enumerate(sizes))
    assert caption_of(figure).startswith(f"A title: {len(chosen)} documents. (a) ")


def titles(method: str, calibration: CalibrationSet, pool: TokenPool) -> list[str]:
    found = document_map(pool, *shown(pool, documents_of(calibration, pool)))
    figure = draw("A title", method, calibration, pool, found)
    return [axis.get_title(loc="left") for axis in figure.axes]


def test_a_method_without_clusters_has_no_panel_for_them(model: Model, corpus_file: Path) -> None:
    every = ["Documents by their features", "Cluster sizes", "Document lengths"]
    for method, expected in (("cola_zero", every), ("random", [every[0], every[2]])):
        drawn = titles(method, *chosen_and_pool(config_of(corpus_file, method), model))
        assert [re.sub(r"^\([abc]\) ", "", title) for title in drawn] == expected


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("texts", "panels"),
    [
        (["word " * 400], 1),
        (["the same text over and over " * 9] * 40, 1),
        ([" " * 400, "\n" * 90, " \n" * 60], 2),
        (["a b c d", "e f g h i j", "k l " * 40], 2),
        (["", "a"] * 300, 1),
    ],
    ids=["one document", "all identical", "blank", "three short ones", "a token each"],
)
def test_odd_corpora_leave_out_what_cannot_be_drawn(
    texts: list[str], panels: int, tokenizer: Any, tmp_path: Path
) -> None:
    pool = build_pool(Corpus("odd $x$", "1", texts, []), tokenizer, tmp_path)
    pool = replace(pool, selection_settings=SETTINGS)
    calibration = select("random", pool, 1, 16, 0, "odd")
    found = document_map(pool, *shown(pool, documents_of(calibration, pool)))
    drawn = draw("Odd $x$", "own_method", calibration, pool, found)
    assert len(drawn.axes) == panels
    assert len(selection_picture.saved(drawn, "png")) > 1_000


@pytest.mark.parametrize("method", ["cola_zero", "random"])
@pytest.mark.parametrize("clusters", [3, 512])
def test_no_text_is_cut_off_at_the_edge_of_the_page(
    method: str, clusters: int, model: Model, corpus_file: Path
) -> None:
    calibration, pool = chosen_and_pool(config_of(corpus_file, method), model)
    points = document_map(pool, *shown(pool, documents_of(calibration, pool)))
    if method == "cola_zero":
        numbers = {str(i): i % clusters for i in range(1_000 * clusters)}
        sizes = {"cluster_sizes": [1_000_000 - i for i in range(clusters)]}
        calibration = replace(calibration, notes={**sizes, "document_clusters": numbers})
    figure = draw("A title", method, calibration, pool, points)
    image = np.asarray(Image.open(io.BytesIO(selection_picture.saved(figure, "png"))).convert("L"))
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert edge.min() == 255, "a text is cut off where it leaves the page"


# --- the map


def test_the_map_is_the_same_for_every_method_and_seed(model: Model, corpus_file: Path) -> None:
    found = []
    for method, seed in (("cola_zero", 1), ("cola_zero", 2), ("gptq_default", 1)):
        calibration, pool = chosen_and_pool(config_of(corpus_file, method, seed), model)
        found.append(document_map(pool, *shown(pool, documents_of(calibration, pool))))
    first, *others = found
    assert first is not None
    assert first.points.shape == (len(first.documents), 2)
    assert first.shares[0] >= first.shares[1] > 0
    for other in others:
        assert other is not None
        assert np.array_equal(first.points, other.points)


def test_the_axes_are_the_directions_of_most_variance(model: Model, corpus_file: Path) -> None:
    from sklearn.decomposition import PCA

    from colazero.selection import features
    from colazero.selection.cola_zero import GROUPS

    calibration, pool = chosen_and_pool(config_of(corpus_file, "random"), model)
    documents, *rest = shown(pool, documents_of(calibration, pool))
    found = document_map(pool, documents, *rest)
    reference = PCA(2, svd_solver="full").fit(features.matrix(pool, documents, GROUPS))
    expected = reference.transform(features.matrix(pool, documents, GROUPS))
    assert found is not None
    assert found.shares == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
    points = found.points - found.points.mean(axis=0)
    assert np.abs(points) == pytest.approx(np.abs(expected), abs=1e-3)


def test_of_a_big_corpus_a_fixed_sample_and_what_was_chosen_is_shown(
    model: Model, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection_picture, "MOST", 60)
    calibration, pool = chosen_and_pool(config_of(corpus_file, "cola_zero"), model)
    chosen = documents_of(calibration, pool)
    documents, available, min_tokens = shown(pool, chosen)
    assert (min_tokens, available) == (175, int((pool.stops - pool.starts >= 175).sum()))
    assert set(chosen) <= set(documents.tolist())
    assert 60 <= len(documents) <= 60 + len(chosen) < available
    sample, _, _ = shown(pool, chosen[:0])
    assert Counter(documents.tolist()) >= Counter(sample.tolist())
    found = document_map(pool, documents, available, min_tokens)
    caption = caption_of(draw("T", "x", calibration, pool, found))
    assert f"{len(documents)} of the {available} documents of at least 175 tokens" in caption
    assert "sample" in caption
