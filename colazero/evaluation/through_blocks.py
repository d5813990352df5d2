"""Evaluation a block at a time, of a model by itself or while it is quantized.

Perplexity, and the distance from the unquantized model: KL divergence of the predictions and top-1
agreement. They are a steadier measure of what quantization did than perplexity, which it can also
lower by accident.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import devices
from colazero.blocks.probe import open_sequence, source_digest
from colazero.blocks.sequence import Sequence as Blocks
from colazero.blocks.weights import Refused
from colazero.cache import cache_dir, facts_digest, kept_arrays
from colazero.evaluation.perplexity import (
    TOKENS_A_BATCH,
    Likelihoods,
    digest,
    load_dense,
    perplexity,
    slices,
)
from colazero.types import Divergence, Model, Perplexity, Progress, Text

log = logging.getLogger(__name__)


class Reference:
    """What the unquantized model makes of a text: its last hidden states, kept in the cache.

    Computed once a model and text. `sequence` is the unquantized model: its tail gives the logits.
    """

    def __init__(
        self,
        model: Model,
        sequence: Blocks,
        text: Text,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.sequence = sequence
        dtype = str(sequence.dtype)
        facts = (model.revision, digest(text), dtype, devices.identity(sequence.device))
        libraries = (version("torch"), version("transformers"), source_digest())
        entry = cache_dir() / "last_hidden" / facts_digest(*facts, *libraries)

        def build(draft: Path) -> None:
            np.save(draft / "hidden.npy", _last_hidden(sequence, text, progress))

        self._hidden = kept_arrays(entry, ["hidden"], build)["hidden"]

    def hidden(self, window: int) -> Any:
        """Return a window's last hidden states [tokens, width] in the model's dtype."""
        import torch

        return torch.from_numpy(np.array(self._hidden[window])).view(self.sequence.dtype)


def _last_hidden(sequence: Blocks, text: Text, progress: Progress) -> NDArray[Any]:
    """Return [windows, tokens, width]; half precision, which NumPy lacks in part, as int16."""
    import torch

    at_once = max(1, TOKENS_A_BATCH // text.windows.shape[1])
    stream = sequence.begin(text.windows, at_once, alone=1)
    for index in range(len(sequence)):
        with sequence.filled(index):
            sequence.advance(index, stream)
        progress(index + 1, len(sequence))
    hidden = stream.hidden.cpu()
    found: NDArray[Any] = hidden.view(torch.int16 if hidden.itemsize == 2 else hidden.dtype).numpy()
    return found


class Distances:
    """Adds up each window's divergence from a `Reference`, from slices of logits."""

    def __init__(self, reference: Reference, windows: int) -> None:
        self._reference = reference
        self._kl = np.zeros(windows)
        self._agreed = np.zeros(windows, dtype=np.int64)

    def take(self, window: int, part: slice, found: Any, ids: Any) -> None:
        """Take in the log-probabilities [positions, vocabulary] of positions `part` of a window.

        `found`, in float32, is overwritten. `ids`: the window's tokens. Sums are in float64.
        """
        import torch

        hidden = self._reference.hidden(window)[part]
        expected = self._reference.sequence.logits(hidden, ids[part]).float().log_softmax(-1)
        self._agreed[window] += int((expected.argmax(-1) == found.argmax(-1)).sum())
        ratio = torch.sub(expected, found, out=found)  # each is as large as a slice may be
        self._kl[window] += float(expected.exp_().mul_(ratio).sum(dtype=torch.float64))

    def sums(self) -> Divergence:
        """Return what was added up."""
        return Divergence(self._kl, self._agreed)


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

    def board(self, sequence: Blocks) -> None:
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
    sequence: Blocks,
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
    sequence: Blocks,
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
        sequence = open_sequence(model.path, device)
    except Refused as refused:
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
        sequence = open_sequence(model_dir, device)
    except Refused as refused:
        log.info("%s is evaluated in one piece: %s", model_dir, refused.why)
        model = load_dense(model_dir, device)
        return [perplexity(model, t.corpus, t.windows, t.starts, progress) for t in texts]
    return evaluate(sequence, texts, progress, references)
