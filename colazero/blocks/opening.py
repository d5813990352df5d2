"""A model directory → the sequence of its blocks, if it is one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colazero.blocks import probe
from colazero.blocks.refusal import Refused
from colazero.blocks.sequence import Sequence
from colazero.blocks.weights import eval_dtype
from colazero.errors import UserError

log = logging.getLogger(__name__)


def open_sequence(model_dir: Path, device: str, *, to_quantize: bool = False) -> Sequence:
    """Return the model of a directory, quantized to GPTQ's format or not, as a sequence of blocks.

    Raise Refused if it cannot be run block by block, which `probe` tries once per model and
    version. With `to_quantize`, also if its blocks have weights outside `nn.Linear`, norms and
    embeddings. Raise UserError if no way of running it gives a perplexity.
    """
    with refusing("built"):
        sequence = Sequence(model_dir, device, eval_dtype(model_dir, device))
    with refusing("tried"):
        found = probe.kept(sequence)
    if found["causal"]:
        raise UserError(found["causal"])
    why = found["run"] or (found["quantize"] if to_quantize else "")
    if why:
        raise Refused(why)
    if found["differs"]:
        log.warning("%s: %s", model_dir, found["differs"])
    return sequence


@contextmanager
def refusing(how: str) -> Iterator[None]:
    """Raise Refused for whatever a model's own code raises meanwhile: it is run whole then.

    What says nothing about the model goes through: too little memory, and our own sentences.
    """
    import torch

    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or [""]
        reason = f"it cannot be {how} block by block: {type(error).__name__}: {words[0]}"
        raise Refused(reason.rstrip(": ")) from error
