"""Documents of several corpora in given shares of tokens: `mix:sotu=0.5,file:my.jsonl=0.5`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from colazero import corpora
from colazero.cache import facts_digest
from colazero.corpora import CORPORA, shares
from colazero.types import Corpus


@CORPORA.register("mix")
def load(argument: str) -> Corpus:
    """Return all documents of the parts, one part after the other, for `mixed` to choose from.

    The test split is that of all parts. UserError unless the shares add up to 1.
    """
    named = shares(argument)
    loaded = [corpora.load(name) for name in named]
    test = [text for corpus in loaded for text in corpus.test]
    sources = [
        (i, source)
        for i, corpus in enumerate(loaded)
        for source in corpus.test_sources or range(len(corpus.test))
    ]
    numbers = {pair: n for n, pair in enumerate(dict.fromkeys(sources))}
    trains = [corpora.without(corpus.train, test) for corpus in loaded]
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
        drawn = np.random.default_rng(0).permutation(own)
        behind = np.cumsum(tokens[drawn])
        # Keep the document that crosses the border if the share is then closer.
        chosen = np.sort(drawn[behind - tokens[drawn] / 2 <= share * total])
        kept.append(chosen)
        order.append((np.cumsum(tokens[chosen]) - tokens[chosen] / 2) / tokens[chosen].sum())
    numbers = np.concatenate(kept)[np.argsort(np.concatenate(order), kind="stable")]
    train = [corpus.train[number] for number in numbers]
    revision = f"{corpus.revision} in shares"
    return replace(corpus, train=train, revision=revision, parts=()), numbers
