"""WikiText-2 (Merity et al. 2016, arXiv 1609.07843), the GPTQ papers' evaluation text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from colazero.corpora import CORPORA
from colazero.corpora._hub import rows
from colazero.types import Corpus

REPOSITORY = "Salesforce/wikitext"
REVISION = "b08601e04326c79dfdd32d625aee71d232d685c3"


@CORPORA.register("wikitext2")
def load(_argument: str) -> Corpus:
    """Return the raw version's lines.

    The test documents are the rows as they come, empty ones too: joined by blank lines they are
    the very text on which the published perplexities were measured.
    """
    test = [row["text"] for row in rows(REPOSITORY, "wikitext-2-raw-v1", "test", REVISION)]
    train = [row["text"] for row in rows(REPOSITORY, "wikitext-2-raw-v1", "train", REVISION)]
    train = [text.strip() for text in train if text.strip()]
    return Corpus("wikitext2", REVISION, train, test, test_sources=articles(test))


def articles(rows: Sequence[str]) -> list[int]:
    """Return the number of the article that each row belongs to; ` = Title = ` begins one."""
    begins = [row.startswith(" = ") and not row.startswith(" = = ") for row in rows]
    return list(accumulate(map(int, begins)))
