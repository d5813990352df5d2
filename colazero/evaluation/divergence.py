"""Distance from the unquantized model: KL divergence of its predictions and top-1 agreement.

A steadier measure of what quantization did than perplexity, which it can also lower by accident.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import blocks, devices
from colazero.blocks.probe import source_digest
from colazero.cache import cache_dir, facts_digest, kept_arrays
from colazero.evaluation.perplexity import TOKENS_A_BATCH, digest
from colazero.types import Divergence, Model, Progress, Text


class Reference:
    """What the unquantized model makes of a text: its last hidden states, kept in the cache.

    Computed once a model and text. `sequence` is the unquantized model: its tail gives the logits.
    """

    def __init__(
        self,
        model: Model,
        sequence: blocks.Sequence,
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


def _last_hidden(sequence: blocks.Sequence, text: Text, progress: Progress) -> NDArray[Any]:
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
