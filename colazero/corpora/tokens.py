"""A corpus in the tokens of a model: what a process needs again and again, kept for reuse."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import corpora, models
from colazero.corpora import mix, pool
from colazero.settings import RunConfig
from colazero.types import Model, TokenPool


@lru_cache(maxsize=2)
def tokenizer(model: Model) -> Any:
    """Return the model's tokenizer."""
    return models.load_tokenizer(model)


@lru_cache(maxsize=4)
def vocabulary(model: Model) -> pool.Vocabulary:
    """Return what names the model's tokens, without loading the tokenizer where it is known."""
    return pool.kept_vocabulary(model.revision, lambda: tokenizer(model))


@lru_cache(maxsize=2)
def token_pool(model: Model, corpus: str, share: float = 1, seed: int = 0) -> TokenPool:
    """Return the corpus's training documents, or the share that a seed draws, in tokens."""
    whole, documents = corpora.load(corpus), None
    if share < 1:
        whole, documents = corpora.drawn(whole, share, seed)
    found = pool.open_pool(whole, vocabulary(model), lambda: tokenizer(model))
    if whole.parts:
        whole, chosen = mix.mixed(whole, found.stops - found.starts)
        documents = chosen if documents is None else documents[chosen]
        found = pool.open_pool(whole, vocabulary(model), lambda: tokenizer(model))
    return replace(found, documents=documents)


def pool_of(config: RunConfig, model: Model) -> TokenPool:
    """Return what a cell's method may choose from."""
    return token_pool(model, *drawn_by(config))


def drawn_by(config: RunConfig) -> tuple[str, float, int]:
    """Return what decides a cell's documents: corpus, share and, where that is below 1, seed."""
    share = config.corpus_share
    return config.corpus, share, config.seed if share < 1 else 0


@lru_cache(maxsize=2)
def token_counts(model: Model, corpus: str, share: float = 1, seed: int = 0) -> NDArray[np.int64]:
    """Count each token id in what `token_pool` returns."""
    return pool.token_counts(token_pool(model, corpus, share, seed).tokens)
