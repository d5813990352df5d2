"""A corpus in the tokens of a model: what a process needs again and again, kept for reuse."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import corpora, models
from colazero.corpora import pool
from colazero.interfaces import Model, TokenPool


@lru_cache(maxsize=2)
def tokenizer(model: Model) -> Any:
    """Return the model's tokenizer."""
    return models.load_tokenizer(model)


@lru_cache(maxsize=4)
def vocabulary(model: Model) -> pool.Vocabulary:
    """Return what names the model's tokens, without loading the tokenizer where it is known."""
    return pool.kept_vocabulary(model.revision, lambda: tokenizer(model))


@lru_cache(maxsize=2)
def token_pool(model: Model, corpus: str) -> TokenPool:
    """Return the corpus's training documents in the model's tokens."""
    return pool.open_pool(corpora.load(corpus), vocabulary(model), lambda: tokenizer(model))


@lru_cache(maxsize=2)
def token_counts(model: Model, corpus: str) -> NDArray[np.int64]:
    """Count each token id in the corpus's training documents."""
    return pool.token_counts(token_pool(model, corpus).tokens)
