"""A model directory → the sequence of its blocks, if it is one."""

from __future__ import annotations

from pathlib import Path

from colazero.blocks import probe
from colazero.blocks.refusal import Refused
from colazero.blocks.sequence import Sequence
from colazero.blocks.weights import eval_dtype


def open_sequence(model_dir: Path, device: str, *, to_quantize: bool = False) -> Sequence:
    """Return the model of a directory, quantized to GPTQ's format or not, as a sequence of blocks.

    Refused if it cannot be run so, which a probe shows once a model and version; `to_quantize`:
    or if its blocks have weights that are in no `nn.Linear`, beyond norms and embeddings.
    """
    try:
        sequence = Sequence(model_dir, device, eval_dtype(model_dir, device))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        words = str(error).splitlines() or [""]
        raise Refused(f"it cannot be built: {type(error).__name__}: {words[0]}") from error
    found = probe.kept(sequence)
    why = found["run"] or (found["quantize"] if to_quantize else "")
    if why:
        raise Refused(why)
    return sequence
