"""What a model takes: asked once for every way to it, before anything is selected or computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colazero.cache import facts_digest, kept_json
from colazero.errors import UserError
from colazero.models.anatomy import anatomy
from colazero.models.files import stored, weight_files
from colazero.models.settings import is_quantized
from colazero.types import Model

MAPPED = 2**28
"""Bytes of weights after which their file is mapped anew."""


def refuse_long_windows(model: Model, seq_len: int) -> None:
    """Raise UserError if windows of `seq_len` tokens are longer than the model's positions.

    Beyond them GPT-2 and OPT have no embedding; other libraries cut such windows without a word.
    """
    limit = anatomy(model.path).positions
    if limit and seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is more than model {model.name!r} takes: at most {limit}."
        )


def refuse_unknown_ids(model: Model, largest: int, what: str) -> None:
    """Raise UserError if `largest`, the largest token id in `what`, has no embedding."""
    rows = anatomy(model.path).rows
    if largest >= rows:
        raise UserError(
            f"{what} holds the token id {largest}, and model {model.name!r} has embeddings for "
            f"0 to {rows - 1} only: its tokenizer is larger than the model. Take the tokenizer "
            "that belongs to it, or resize the embedding (resize_token_embeddings) and save it."
        )


def refuse_quantized(model: Model) -> None:
    """Raise UserError if the model holds quantized weights already, of whatever method."""
    if is_quantized(model.path):
        raise UserError(f"model {model.name!r} is quantized already: name the original.")


def refuse_not_finite(model: Model) -> None:
    """Raise UserError if a weight of the model is infinite or no number.

    Each weight is read once, and what was found is kept by the model's revision. (Two cores look
    through about 3 GB a second; the system keeps what was read, as far as memory is free, for the
    loading that follows.)
    """
    name = f"finite/{facts_digest(model.revision, str(model.path))}.json"
    bad = kept_json(name, lambda: _not_finite(model.path))
    if bad:
        raise UserError(
            f"model {model.name!r} has {len(bad)} weights with values that are infinite or no "
            f"number, {bad[0]!r} among them: no perplexity can come of it. Take an undamaged copy."
        )


def _not_finite(folder: Path) -> list[str]:
    import torch
    from safetensors import safe_open

    files, unused = weight_files(folder), set(anatomy(folder).unused)
    bad = []
    for file in files:
        reader: Any = None
        read = 0
        for name in stored([file]):
            # Every page once read counts as this process's memory until its file is unmapped.
            if reader is None or read > MAPPED:
                reader, read = safe_open(file, framework="pt"), 0
            tensor = reader.get_tensor(name)
            read += tensor.nbytes
            if name in unused or not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.element_size() < 2:  # 8 bit floats have no aminmax
                tensor = tensor.to(torch.float32)
            # The least and the largest are no number if any value is none.
            if not all(torch.isfinite(value) for value in torch.aminmax(tensor)):
                bad.append(name)
    return bad
