"""Evaluation texts: a corpus's test split in a model's tokens, cut into windows."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from colazero import corpora
from colazero.corpora import bos as bos_rule
from colazero.corpora.pool import open_pool
from colazero.corpora.tokens import tokenizer, vocabulary
from colazero.evaluation.perplexity import eval_windows, warn_of_other_tokens
from colazero.settings import Settings
from colazero.types import Model, Perplexity, Text, TokenPool

log = logging.getLogger(__name__)


def test_tokens(model: Model, name: str) -> NDArray[np.int32]:
    """Return the tokens of a corpus's test split, read as those of its training documents are."""
    return _test_pool(model, name).tokens


def places(model: Model, found: Perplexity, bos: str) -> Perplexity:
    """Return the result with the document of each window, and how many windows the text has."""
    known, corpus = vocabulary(model), corpora.load(found.corpus)
    rule = bos_rule.resolve(bos, model, known)
    pool, begin = _test_pool(model, found.corpus), len(bos_rule.of_text(rule, known))
    length = int(found.tokens[0]) + 1 - len(bos_rule.of_window(rule, known))
    middle = found.starts + length // 2 - begin
    document = np.searchsorted(pool.starts, middle, side="right") - 1
    sources = np.asarray(corpus.test_sources or np.arange(len(pool.starts)), dtype=np.int64)
    available = (len(pool.tokens) + begin) // length
    if corpus.test_windows is not None:
        available = min(available, corpus.test_windows)
    return replace(found, documents=sources[np.maximum(document, 0)], available=available)


def _test_pool(model: Model, name: str) -> TokenPool:
    corpus = corpora.load(name)
    test = replace(corpus, name=f"{corpus.name} (test)", train=corpus.test)
    pool = open_pool(test, vocabulary(model), lambda: tokenizer(model), between=corpus.joined_by)
    if pool.written:
        log.warning(
            "the test split of %s spells out %d special tokens of %s: they are read as text, as "
            "in calibration.",
            *(name, pool.written, model.name),
        )
    return pool


@lru_cache(maxsize=4)
def evaluation_text(
    model: Model, corpus: str, seq_len: int, count: int | str, bos: str = "auto"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corpus's evaluation windows in the model's tokens, which are kept on disk.

    Of all documents joined as the corpus says; `bos` decides what stands in front, see
    `corpora.bos`.
    """
    known = vocabulary(model)
    rule = bos_rule.resolve(bos, model, known)
    ids = test_tokens(model, corpus)
    if begin := bos_rule.of_text(rule, known):
        ids = np.concatenate([np.array(begin, dtype=ids.dtype), ids])
    warn_of_other_tokens(corpus, model.path, len(ids))
    front, loaded = bos_rule.of_window(rule, known), corpora.load(corpus)
    return eval_windows(ids, seq_len, count, loaded.name, front, loaded.test_windows)


def evaluation_texts(config: Settings, model: Model) -> list[Text]:
    """Return the evaluation text of each corpus, in the order asked for."""
    return [
        Text(
            name,
            *evaluation_text(model, name, config.evaluated_len, config.eval_windows, config.bos),
        )
        for name in config.eval_corpora
    ]
