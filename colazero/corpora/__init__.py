"""Corpora, one file each. `load(name)` is the way in; see `colazero.types.Corpus`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.parts import parts_of
from colazero.errors import UserError
from colazero.registry import Registry
from colazero.types import Corpus, CorpusLoader

DOCUMENTS = 0
"""The spawn key of the generator, of those that a run's seed gives, that draws documents."""
CORPORA: Registry[CorpusLoader] = Registry("corpus", "colazero.corpora")


@lru_cache(maxsize=4)
def load(name: str) -> Corpus:
    """Return the corpus called `name` (`sotu`, `wikitext2`, …, `file:PATH`), kept for reuse.

    Training documents that stand word for word in the test split (set phrases, headings) are
    left out. UserError if there is no such corpus, or it cannot be read, or a split is empty.
    """
    corpus = _loader(name)(name.partition(":")[2])
    corpus = replace(corpus, train=without(corpus.train, corpus.test))
    for split, documents in (("train", corpus.train), ("test", corpus.test)):
        if not any(text.strip() for text in documents):
            raise UserError(
                f"corpus {name!r} has no text in its {split} split (documents that stand in both "
                "splits belong to test alone)."
            )
    return corpus


def check(name: str) -> None:
    """Raise UserError if there is no corpus called `name`; nothing is fetched.

    The user's own file is read at once, so that what is wrong with it shows early.
    """
    _loader(name)
    kind = name.partition(":")[0]
    if kind == "mix":
        for part in parts_of(name):
            check(part)
    elif kind == "file":
        load(name)


def drawn(corpus: Corpus, share: float, seed: int) -> tuple[Corpus, NDArray[np.int64]]:
    """Return the corpus with a share of its training documents, and their numbers in it, in order.

    The draw, without replacement, depends on the number of documents, `share` and `seed` alone.
    """
    there = len(corpus.train)
    source = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(DOCUMENTS,)))
    chosen = np.sort(source.choice(there, size=max(1, round(share * there)), replace=False))
    train = [corpus.train[document] for document in chosen]
    revision = f"{corpus.revision} share {share:g} seed {seed}"
    ends = np.searchsorted(chosen, np.cumsum([size for size, _ in corpus.parts]))
    sizes = np.diff(ends, prepend=0).tolist()
    parts = [(size, part) for size, (_, part) in zip(sizes, corpus.parts, strict=True)]
    found = replace(corpus, train=train, revision=revision, parts=parts)
    return found, chosen.astype(np.int64)


def _loader(name: str) -> CorpusLoader:
    kind, _, argument = name.partition(":")
    loader = CORPORA.get(kind)
    if kind == "file" and not argument:
        raise UserError("corpus 'file' needs a path: file:PATH.")
    if kind not in ("file", "mix") and argument:
        raise UserError(f"corpus {kind!r} takes no argument, got {argument!r}.")
    return loader


def without(documents: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return `documents` less those that stand word for word among `others`."""
    seen = {text.strip() for text in others}
    return [text for text in documents if text.strip() not in seen]
