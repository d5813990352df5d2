"""Models, corpora and calibration sets; what a corpus and a selection method are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.config import Settings

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""A model on the Hugging Face Hub: `org/name`, with a revision behind an @."""


@dataclass(frozen=True)
class Model:
    """A model at hand. `revision` changes whenever its weights, its config or its tokenizer do."""

    name: str
    path: Path
    revision: str

    @property
    def label(self) -> str:
        """Return a short name for run names: the last part of the name, without revision."""
        return label(self.name)


def label(name: str) -> str:
    """Return the last part of a model's name, without revision and ending."""
    match = HUB_ID.fullmatch(name)
    return Path(match["repository"] if match else name).name.removesuffix(".gguf") or "model"


@dataclass(frozen=True)
class Corpus:
    """Documents to calibrate on and documents to evaluate on, disjoint.

    `revision` changes whenever the documents do. The test documents with `joined_by` between them
    are the evaluation text, of which the first `test_windows` are evaluated at most.
    """

    name: str
    revision: str
    train: Sequence[str]
    test: Sequence[str]
    joined_by: str = "\n\n"
    test_windows: int | None = None
    parts: Sequence[tuple[int, float]] = ()
    """Of a mix, whose parts' documents follow each other: documents and share of tokens of each."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of the pool's token stream, and the document they begin in."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Selection:
    """What a method chose: for each window the spans that make it up, in order.

    The spans of a window hold `seq_len` tokens together. `notes` is what the method thought
    (cluster sizes, coverage, fall-backs): JSON values, logged with the calibration set.
    """

    windows: Sequence[Sequence[Span]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    tokens: NDArray[np.int32] | None = None
    """Windows [n, seq_len] that the method wrote itself: no document's, so without any spans."""


@dataclass(frozen=True)
class CalibrationSet:
    """`windows`: int32 [n_calibration_samples, seq_len] token ids, and how they were chosen.

    They are a set: GPTQ's Hessian is a sum over them. Their order decides nothing but how that sum
    is rounded, which moves perplexity by about as much as another seed does, so it is drawn.
    """

    windows: NDArray[np.int32]
    spans: Sequence[Sequence[Span]]
    notes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return 16 hex digits over the windows as a set, whatever their order."""
        return self._digest(sorted(self._windows()))

    @property
    def order_digest(self) -> str:
        """Return 16 hex digits over the windows in their order."""
        return self._digest(self._windows())

    def _windows(self) -> list[bytes]:
        return [window.astype("<i4").tobytes() for window in self.windows]

    def _digest(self, windows: Sequence[bytes]) -> str:
        digest = hashlib.sha256(f"{self.windows.shape}".encode())
        for window in windows:
            digest.update(window)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TokenPool:
    """The training documents of a corpus as one stream of tokens, as a selector sees it.

    `documents`: int64 [documents], their numbers in the corpus; None where they are all of it.

    `tokens`: int32 [total], of the documents joined by blank lines, without special tokens.
    `starts`, `stops`: int64 [documents]; a token belongs to the document in which it begins.
    """

    texts: Sequence[str]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    forbidden: frozenset[int]
    """Ids of the tokenizer's special tokens: none of them may stand in a window."""
    entry: Path | None = None
    """Where in the cache the tokens lie, and what is computed from them beside; None: nowhere."""
    written: int = 0
    """How often the documents spell a special token out, which is text there."""
    config: Settings = field(default_factory=lambda: Settings.model_validate({"device": "cpu"}))
    """The run's parameters, with `device` resolved."""
    model: Model | None = None
    """The model to be quantized, for methods that look at what it computes."""
    documents: NDArray[np.int64] | None = None


Selector = Callable[[TokenPool, int, int, np.random.Generator], Selection]
"""(pool, n windows, tokens a window, source of randomness) → selection."""

CorpusLoader = Callable[[str], Corpus]
"""The part of the name after the colon (empty for most) → corpus."""
