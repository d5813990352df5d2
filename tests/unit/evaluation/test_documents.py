"""Which document an evaluation window lies in, as it is logged with the window."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from colazero import corpora, models
from colazero.corpora.hub import articles
from colazero.evaluation import perplexity as texts
from colazero.settings import RunConfig
from colazero.types import Perplexity


def test_each_window_has_the_document_that_holds_its_middle(
    tiny_llama: Path, corpus_file: Path
) -> None:
    model, name = models.fetch(str(tiny_llama)), f"file:{corpus_file}"
    text = texts.evaluation_text(model, name, 32, 6)
    windows, starts = text.windows, text.starts
    sums = np.ones(6)
    config = RunConfig(eval_seq_len=32)
    found = texts.places(config, model, Perplexity(name, starts, sums, np.full(6, 31), ""))
    assert found.available == len(texts.evaluation_text(model, name, 32, "all").windows)
    assert found.documents is not None
    tokenizer, test = texts.tokenizer(model), corpora.load(name).test
    for window, document in zip(windows, found.documents, strict=True):
        middle = tokenizer.decode(window[14:19]).strip()
        around = " ".join(test[max(0, document - 1) : document + 2])
        assert middle.split()[0] in around
    assert (np.diff(found.documents) >= 0).all()
    assert len(set(found.documents)) > 1


def test_the_paragraphs_of_a_speech_are_one_document() -> None:
    corpus = corpora.load("sotu")
    assert len(corpus.test_sources) == len(corpus.test)
    assert len(set(corpus.test_sources)) == 23
    assert list(corpus.test_sources) == sorted(corpus.test_sources)


def test_the_rows_of_an_article_are_one_document() -> None:
    rows = ["", " = Robert Boulter = \n", "", " Text . \n", " = = Career = = \n", " = Other = \n"]
    assert articles(rows) == [0, 1, 1, 1, 1, 2]


def test_a_mix_keeps_the_documents_of_its_parts_apart(corpus_file: Path) -> None:
    mix = corpora.load(f"mix:sotu=0.5,file:{corpus_file}=0.5")
    alone = corpora.load("sotu")
    assert len(mix.test_sources) == len(mix.test)
    first = mix.test_sources[: len(alone.test)]
    assert len(set(first)) == 23
    assert len(set(mix.test_sources) - set(first)) == len(mix.test) - len(alone.test)
