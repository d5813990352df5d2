"""Evaluation a block at a time, of a model by itself or while it is quantized."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from colazero import blocks
from colazero.evaluation.divergence import Distances, Reference
from colazero.evaluation.loading import load_dense
from colazero.evaluation.perplexity import TOKENS_A_BATCH, Likelihoods, perplexity, slices
from colazero.interfaces import Model, Perplexity, Progress, Text

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
        """Take the texts from the last block to their perplexities; FloatingPointError if one is
        not finite."""
        begin = time.perf_counter()
        known: Sequence[Reference | None] = self.references or [None] * len(self._texts)
        self.perplexities = [
            self._scored(*each) for each in zip(self._texts, self._streams, known, strict=True)
        ]
        self._streams = []
        self.seconds += time.perf_counter() - begin

    def _scored(self, text: Text, stream: blocks.Stream, reference: Reference | None) -> Perplexity:
        windows, length = text.windows.shape
        found = Likelihoods(windows)
        distances = Distances(reference, windows) if reference else None
        vocabulary = self._sequence.logits(stream.hidden[0, :1], stream.ids[0, :1]).shape[-1]
        for window, (hidden, ids) in enumerate(zip(stream.hidden, stream.ids, strict=True)):
            tokens = ids.to(self._sequence.device)
            for part in slices(length, vocabulary):
                logits = self._sequence.logits(hidden[part], tokens[part]).float()
                found.take(window, part, logits, tokens)
                if distances:
                    distances.take(window, part, logits, tokens)
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


def references(model: Model, device: str, texts: Sequence[Text]) -> list[Reference]:
    """Return what the unquantized `model` makes of each text; none if it is not run by blocks."""
    try:
        sequence = blocks.open_sequence(model.path, device)
    except blocks.Refused as refused:
        log.info("no divergence from %s: %s", model.name, refused.why)
        return []
    return [Reference(model, sequence, text) for text in texts]


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
