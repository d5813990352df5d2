"""Evaluation a block at a time, of a model by itself or while it is quantized."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colazero import blocks
from colazero.evaluation.divergence import Distances, Reference
from colazero.evaluation.loading import load_dense
from colazero.evaluation.perplexity import TOKENS_A_BATCH, Likelihoods, perplexity, slices
from colazero.types import Model, Perplexity, Progress, Text

log = logging.getLogger(__name__)


class Evaluator:
    """Texts on their way through a model's blocks; `perplexities` are there when it finished.

    Windows are run in the batches of `perplexity()`, the first of each text by itself: evaluated
    alone again, it gives the same bits. `references`: what the unquantized model makes of each
    text, for the divergence from it. `seconds`: what all of it took.
    """

    def __init__(self, texts: Sequence[Text], references: Sequence[Reference] = ()) -> None:
        self.perplexities: list[Perplexity] = []
        self.seconds = 0.0
        self.windows_at_once: int | None = None
        self._texts = texts
        self.references = references

    def board(self, sequence: blocks.Sequence) -> None:
        """Take the texts before the first block."""
        begin = time.perf_counter()
        self._sequence = sequence
        self._streams = [
            sequence.begin(text.windows, max(1, TOKENS_A_BATCH // text.windows.shape[1]), alone=1)
            for text in self._texts
        ]
        self.seconds += time.perf_counter() - begin

    def advance(self, index: int) -> None:
        """Take the texts through a block, which holds its weights."""
        begin = time.perf_counter()
        for stream in self._streams:
            self._sequence.advance(index, stream)
        self.seconds += time.perf_counter() - begin

    def finish(self) -> None:
        """Take the texts from the last block to their perplexities, see `scored`."""
        begin = time.perf_counter()
        known: Sequence[Reference | None] = self.references or [None] * len(self._texts)
        self.perplexities = [
            scored(self._sequence, text, stream.hidden.__getitem__, reference)
            for text, stream, reference in zip(self._texts, self._streams, known, strict=True)
        ]
        self.windows_at_once = max((s.at_once for s in self._streams), default=None)
        self._streams = []
        self.seconds += time.perf_counter() - begin


def scored(
    sequence: blocks.Sequence,
    text: Text,
    hidden_of: Callable[[int], Any],
    reference: Reference | None = None,
) -> Perplexity:
    """Return the perplexity of a text, given each window's last hidden states [tokens, width].

    And its divergence, if there is a `reference`. FloatingPointError if a sum is not finite.
    """
    import torch

    windows, length = text.windows.shape
    found = Likelihoods(windows)
    distances = Distances(reference, windows) if reference else None
    vocabulary = 0
    for window, ids in enumerate(torch.from_numpy(text.windows)):
        hidden, tokens = hidden_of(window), ids.to(sequence.device)
        vocabulary = vocabulary or sequence.logits(hidden[:1], tokens[:1]).shape[-1]
        for part in slices(length, vocabulary):
            logits = sequence.logits(hidden[part], tokens[part]).float()
            likely = found.take(window, part, logits, tokens)
            del logits
            if distances:
                distances.take(window, part, likely, tokens)
    return found.of(text, distances.sums() if distances else None)


def evaluate(
    sequence: blocks.Sequence,
    texts: Sequence[Text],
    progress: Progress = lambda done, total: None,
    references: Sequence[Reference] = (),
) -> list[Perplexity]:
    """Return the perplexity of each text under a model, each of whose blocks is read once."""
    evaluator = Evaluator(texts, references)
    evaluator.board(sequence)
    for index in range(len(sequence)):
        with sequence.filled(index):
            evaluator.advance(index)
        progress(index + 1, len(sequence))
    evaluator.finish()
    return evaluator.perplexities


def references(
    model: Model,
    device: str,
    texts: Sequence[Text],
    progress: Progress = lambda done, total: None,
) -> list[Reference]:
    """Return what the unquantized `model` makes of each text; none if it is not run by blocks."""
    try:
        sequence = blocks.open_sequence(model.path, device)
    except blocks.Refused as refused:
        log.info("no divergence from %s: %s", model.name, refused.why)
        return []
    return [Reference(model, sequence, text, progress) for text in texts]


def unquantized(
    model: Model, device: str, texts: Sequence[Text], progress: Progress
) -> list[Perplexity]:
    """Return the perplexity of each text under `model` itself, with what is kept in the cache."""
    known = references(model, device, texts, progress)
    if not known:
        return perplexities(model.path, device, texts, progress)
    return [scored(r.sequence, text, r.hidden) for text, r in zip(texts, known, strict=True)]


def perplexities(
    model_dir: Path,
    device: str,
    texts: Sequence[Text],
    progress: Progress,
    references: Sequence[Reference] = (),
) -> list[Perplexity]:
    """Return the perplexity of each text under the model in a directory, quantized or not.

    A block at a time; a model that cannot be run so is loaded whole. UserError if it cannot be
    loaded either.
    """
    try:
        sequence = blocks.open_sequence(model_dir, device)
    except blocks.Refused as refused:
        log.info("%s is evaluated in one piece: %s", model_dir, refused.why)
        model = load_dense(model_dir, device)
        return [perplexity(model, t.corpus, t.windows, t.starts, progress) for t in texts]
    return evaluate(sequence, texts, progress, references)
