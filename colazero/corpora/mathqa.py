"""MathQA (Amini et al. 2019, arXiv 1905.13319): word problems with worked rationales."""

from __future__ import annotations

from collections.abc import Mapping

from colazero.corpora import CORPORA
from colazero.corpora._hub import rows
from colazero.types import Corpus

REPOSITORY = "allenai/math_qa"
REVISION = "4da34e91b436e8f6dc1ba151483e28600a8c91b3"


@CORPORA.register("mathqa")
def load(_argument: str) -> Corpus:
    """Return a document a problem: question, rationale and answer, a line each."""
    train = [_document(row) for row in rows(REPOSITORY, "default", "train", REVISION)]
    test = [_document(row) for row in rows(REPOSITORY, "default", "test", REVISION)]
    return Corpus("mathqa", REVISION, train, test)


def _document(row: Mapping[str, str]) -> str:
    return (
        f"Question: {row['Problem'].strip()}\nRationale: {row['Rationale'].strip()}\n"
        f"Answer: {row['correct'].strip()}"
    )
