"""Corpora, one file each. `load(name)` is the way in; see `colazero.interfaces.Corpus`."""

from __future__ import annotations

from functools import lru_cache

from colazero.errors import UserError
from colazero.interfaces import Corpus, CorpusLoader
from colazero.registry import Registry

CORPORA: Registry[CorpusLoader] = Registry("corpus", "colazero.corpora")


@lru_cache(maxsize=4)
def load(name: str) -> Corpus:
    """Return the corpus called `name` (`sotu`, `wikitext2`, …, `file:PATH`), kept for reuse.

    UserError if there is no such corpus, or it cannot be read, or one of its splits is empty.
    """
    corpus = check(name)(name.partition(":")[2])
    for split, documents in (("train", corpus.train), ("test", corpus.test)):
        if not any(text.strip() for text in documents):
            raise UserError(f"corpus {name!r} has no text in its {split} split.")
    return corpus


def check(name: str) -> CorpusLoader:
    """Return the loader for `name` without loading; UserError if there is none."""
    kind, _, argument = name.partition(":")
    loader = CORPORA.get(kind)
    if kind == "file" and not argument:
        raise UserError("corpus 'file' needs a path: file:PATH.")
    if kind != "file" and argument:
        raise UserError(f"corpus {kind!r} takes no argument, got {argument!r}.")
    return loader


def without(documents: list[str], others: list[str]) -> list[str]:
    """Return `documents` less those that stand word for word among `others`."""
    seen = {text.strip() for text in others}
    return [text for text in documents if text.strip() not in seen]
