"""WikiText-2 (Merity et al. 2016, arXiv 1609.07843), the GPTQ papers' evaluation text."""

from __future__ import annotations

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
    return Corpus("wikitext2", REVISION, [text.strip() for text in train if text.strip()], test)
