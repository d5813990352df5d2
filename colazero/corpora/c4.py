"""C4 (Raffel et al. 2020, arXiv 1910.10683): web text, streamed and capped."""

from __future__ import annotations

from itertools import islice

from colazero.corpora import CORPORA
from colazero.corpora._hub import rows
from colazero.types import Corpus

REPOSITORY = "allenai/c4"
REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
TRAIN_DOCUMENTS = 50_000
"""About 24 M tokens, ten times WikiText-2: enough to choose from, and minutes to stream."""
TEST_DOCUMENTS = 1_100
"""The first documents of the validation split, as the GPTQ code takes them."""
TEST_WINDOWS = 256
"""Of them, at any length: what the published perplexities on C4 are of."""


@CORPORA.register("c4")
def load(_argument: str) -> Corpus:
    """Return the first documents of the English train and validation splits.

    Evaluated as the GPTQ code does it: documents joined by a space, the first 256 windows.
    """
    train = rows(REPOSITORY, "en", "train", REVISION, streaming=True)
    test = rows(REPOSITORY, "en", "validation", REVISION, streaming=True)
    return Corpus(
        "c4",
        f"{REVISION}-{TRAIN_DOCUMENTS}",
        [row["text"] for row in islice(train, TRAIN_DOCUMENTS)],
        [row["text"] for row in islice(test, TEST_DOCUMENTS)],
        joined_by=" ",
        test_windows=TEST_WINDOWS,
    )
