"""Evaluation one block at a time, of a model by itself or while it is quantized.

Perplexity, and the distance from the unquantized model: KL divergence of the predictions and top-1
agreement. They are a steadier measure of what quantization did than perplexity, which it can also
lower by accident.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from colazero import devices
from colazero.blocks.probe import open_sequence
from colazero.blocks.sequence import Sequence as Blocks
from colazero.blocks.weights import Refused
from colazero.cache import cache_dir, facts_digest, kept_arrays, own_code
from colazero.evaluation.perplexity import (
    TOKENS_A_BATCH,
    Likelihoods,
    digest,
    load_dense,
    perplexity,
    slices,
)
from colazero.types import Divergence, Model, Perplexity, Progress, Text

ROWS = 64
"""Predictions compared at once: each holds a number per token of the vocabulary several times."""
log = logging.getLogger(__name__)


class Reference:
    """The unquantized model's last hidden states of a text, kept in the cache.

    They are computed once per model and text. `sequence` is the unquantized model, whose norm and
    head give the logits. `halved`: memory ran out meanwhile, so this process alone uses them.
    """

    def __init__(
        self,
        model: Model,
        sequence: Blocks,
        text: Text,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self.sequence, self.halved = sequence, False
        dtype = str(sequence.dtype)
        facts = (model.revision, digest(text), dtype, devices.identity(sequence.device))
        libraries = (version("torch"), version("transformers"), own_code(open_sequence.__module__))
        entry = cache_dir() / "last_hidden" / facts_digest(*facts, *libraries)

        def build(draft: Path) -> None:
            import torch

            evaluator = Evaluator([text])
            evaluator.pass_all(sequence, progress)
            hidden = evaluator.streams[0].hidden.cpu()
            self.halved = evaluator.streams[0].halved
            # NumPy lacks bfloat16, so half precision is kept as int16.
            kept = hidden.view(torch.int16) if hidden.itemsize == 2 else hidden
            np.save(draft / "hidden.npy", kept.numpy())

        self._hidden = kept_arrays(entry, ["hidden"], build)["hidden"]
        if self.halved:
            shutil.rmtree(entry, ignore_errors=True)  # what is mapped stays readable

    def hidden(self, window: int) -> Any:
        """Return a window's last hidden states [tokens, width] in the model's dtype."""
        import torch

        return torch.from_numpy(np.array(self._hidden[window])).view(self.sequence.dtype)

    def logits_of(self, window: int, ids: Any) -> Callable[[slice], Any]:
        """Return a function: slice of a window → its logits; `ids`: the window's tokens."""
        return self.sequence.logits_of(self.hidden(window), ids)


class Evaluator:
    """Evaluates texts while they pass a model's blocks; `finish` makes the `perplexities`.

    Windows are run in the batches of `perplexity()`, the first of each text by itself: evaluated
    alone again, it gives the same bits. `references`: the unquantized model's last hidden states of
    each text, for the divergence from it. `seconds`: the time of all of it, measured with
    the device's queue empty.
    """

    def __init__(self, texts: Sequence[Text], references: Sequence[Reference] = ()) -> None:
        self.perplexities: list[Perplexity] = []
        self.seconds = 0.0
        self.windows_at_once: int | None = None
        self.texts, self.references = texts, references

    def begin(self, sequence: Blocks) -> None:
        """Take the texts before the first block of `sequence`.

        `references` use its norm and head from here on: quantization leaves them as they are, and a
        vocabulary's embeddings would take a GPU's memory twice.
        """
        self.sequence = sequence
        for reference in self.references:
            reference.sequence = sequence
        with self._clocked():
            self.streams = [
                sequence.begin(text.windows, max(1, TOKENS_A_BATCH // text.windows.shape[1]), 1)
                for text in self.texts
            ]

    def advance(self, index: int) -> None:
        with self._clocked():
            for stream in self.streams:
                self.sequence.advance(index, stream)

    def finish(self) -> None:
        """Take the texts from the last block to their perplexities, see `scored`."""
        known: Sequence[Reference | None] = self.references or [None] * len(self.texts)
        with self._clocked():
            self.perplexities = [
                replace(
                    scored(self.sequence, text, stream.hidden.__getitem__, reference),
                    halved=stream.halved or bool(reference and reference.halved),
                )
                for text, stream, reference in zip(self.texts, self.streams, known, strict=True)
            ]
        self.windows_at_once = max((s.at_once for s in self.streams), default=None)
        self.streams = []

    def pass_all(self, sequence: Blocks, progress: Progress = lambda done, total: None) -> None:
        self.begin(sequence)
        for index in range(len(sequence)):
            with sequence.filled(index):
                self.advance(index)
            progress(index + 1, len(sequence))

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        devices.settle(self.sequence.device)
        begin = time.perf_counter()
        yield
        devices.settle(self.sequence.device)
        self.seconds += time.perf_counter() - begin


def scored(
    sequence: Blocks,
    text: Text,
    hidden_of: Callable[[int], Any],
    reference: Reference | None = None,
) -> Perplexity:
    """Return the perplexity of a text, given each window's last hidden states [tokens, width].

    With a `reference`, also the divergence from it. FloatingPointError if a sum is not finite.
    """
    import torch

    length = text.windows.shape[1]
    likelihoods = Likelihoods(text, sequence.device)
    distances = Distances(text, sequence.device)
    for window, ids in enumerate(torch.from_numpy(text.windows)):
        tokens = ids.to(sequence.device)
        logits_of = sequence.logits_of(hidden_of(window), tokens)
        expected_of = reference.logits_of(window, tokens) if reference else None
        for part in slices(length, sequence.vocabulary):
            found = likelihoods.take(window, part, logits_of(part).float(), tokens)
            if expected_of:
                distances.take(window, part, expected_of(part).float().log_softmax(-1), found)
    return likelihoods.found(distances.found() if reference else None)


class Distances:
    """Collects the distance of each prediction from the unquantized model's, slice by slice.

    The numbers stay on the device until the end.
    """

    def __init__(self, text: Text, device: str) -> None:
        import torch

        self._text = text
        self._kl = torch.zeros(len(text.windows), dtype=torch.float64, device=device)
        self._agreed = torch.zeros(len(text.windows), dtype=torch.int64, device=device)
        self._each: dict[str, list[Any]] = {
            name: [] for name in ("each", "reverse", "sure", "changed")
        }

    def take(self, window: int, part: slice, expected: Any, found: Any) -> None:
        """Take in log-probabilities [positions, vocabulary] of positions `part` of a window.

        `expected`: of the unquantized model; `found`: of the other, at the positions that count.
        """
        import torch

        if self._text.scored is not None:
            counts = self._text.scored[window, part.start + 1 : part.stop + 1]
            expected = expected[np.flatnonzero(counts)]
        sure, choice = expected.max(-1)
        changed = choice != found.argmax(-1)
        each, reverse = [], []
        for p, q in zip(expected.split(ROWS), found.split(ROWS), strict=True):
            ratio = p - q
            each.append((p.exp() * ratio).sum(-1, dtype=torch.float64))
            reverse.append((q.exp() * ratio).sum(-1, dtype=torch.float64).neg())
        taken = {"each": torch.cat(each), "reverse": torch.cat(reverse)}
        taken |= {"sure": sure.double().exp(), "changed": changed}
        for name, values in taken.items():
            self._each[name].append(values)
        self._kl[window] += taken["each"].sum()
        self._agreed[window] += (~changed).sum()

    def found(self) -> Divergence:
        import torch

        each = {name: torch.cat(parts).cpu().numpy() for name, parts in self._each.items()}
        return Divergence(self._kl.cpu().numpy(), self._agreed.cpu().numpy(), **each)


def evaluate(
    sequence: Blocks,
    texts: Sequence[Text],
    progress: Progress = lambda done, total: None,
    references: Sequence[Reference] = (),
) -> list[Perplexity]:
    """Return the perplexity of each text under a model; each block is read once."""
    evaluator = Evaluator(texts, references)
    evaluator.pass_all(sequence, progress)
    evaluator.finish()
    return evaluator.perplexities


def references(
    model: Model,
    device: str,
    texts: Sequence[Text],
    progress: Progress = lambda done, total: None,
) -> list[Reference]:
    """Return the unquantized `model`'s reference for each text; none if it is not run by blocks."""
    try:
        sequence = open_sequence(model.path, device)
    except Refused as refused:
        log.info("no divergence from %s: %s", model.name, refused.why)
        return []
    return [Reference(model, sequence, text, progress) for text in texts]


def unquantized(
    model: Model, device: str, texts: Sequence[Text], progress: Progress
) -> list[Perplexity]:
    """Return the perplexity of each text under `model` itself, with cached hidden states."""
    known = references(model, device, texts, progress)
    if not known:
        return perplexities(model.path, device, texts, progress)
    return [
        replace(scored(one.sequence, text, one.hidden), halved=one.halved)
        for text, one in zip(texts, known, strict=True)
    ]


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
        return [perplexity(model, t.corpus, t.windows, t.starts, progress, t.scored) for t in texts]
    return evaluate(sequence, texts, progress, references)
