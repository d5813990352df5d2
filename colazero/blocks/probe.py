"""Whether a block at a time gives what the whole model gives, tried on a few tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from colazero import devices
from colazero.blocks.record import own, run
from colazero.blocks.sequence import Sequence
from colazero.cache import facts_digest, files_digest, kept_json
from colazero.errors import UserError

TOKENS = 16


@lru_cache
def source_digest() -> str:
    """Return 16 hex digits over the source of this package."""
    return files_digest(sorted(Path(__file__).parent.glob("*.py")))


def kept(sequence: Sequence) -> dict[str, str]:
    """Return `probed`, from the cache where this model was tried with these versions before."""
    config = sequence.model.config.to_dict() | {"_name_or_path": ""}
    facts = [json.dumps(config, sort_keys=True, default=str), str(sequence.dtype)]
    facts += [devices.identity(sequence.device), version("transformers"), version("torch")]
    key = facts_digest(*facts, source_digest())
    found: dict[str, str] = kept_json(f"blocks/{key}.json", lambda: probed(sequence))
    return found


def probed(sequence: Sequence) -> dict[str, str]:
    """Return why the model cannot be run or quantized a block at a time, empty where it can.

    The whole model is run in its own code, each block filled when its turn comes, so that this too
    takes the memory of one. What is recorded of one text serves for another, as it does later.
    """
    import torch

    size = sequence.model.config.get_text_config().vocab_size
    ids = np.random.default_rng(0).integers(size, size=(2, 2, TOKENS))
    sequence.begin(ids[0], 2)
    stream = sequence.begin(ids[1], 2)
    counts: Counter[str] = Counter()

    def act(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with sequence.filled(index) as block:
            with counting(index, block, counts):
                whole = own(block, *args, **kwargs)
            sequence.advance(index, stream)
        return whole

    with torch.no_grad():
        tokens = stream.ids.to(sequence.device)
        logits = run(sequence.model, sequence.blocks, tokens, act).logits
    if not torch.isfinite(logits).all():  # said of these weights, and not kept for others
        raise UserError(
            f"the model gives logits that are no numbers (NaN or infinite, in {logits.dtype}): its "
            "weights are damaged, or too large for this type. Fetch the model again."
        )
    parts = [sequence.logits(h, i) for h, i in zip(stream.hidden, stream.ids, strict=True)]
    same = torch.equal(logits, torch.stack(parts))
    why = "" if same else "its blocks, one at a time, do not give the whole model's logits"
    return {"run": why, "quantize": why or unsolvable(sequence, counts)}


def unsolvable(sequence: Sequence, counts: Counter[str]) -> str:
    """Return why the blocks' weights cannot be quantized one layer after another; empty if so.

    `counts`: how often each layer ran when the model ran once.
    """
    from torch import nn

    for index, block in enumerate(sequence.blocks):
        layers = linears(block)
        for name, layer in layers.items():
            where, (outputs, inputs) = sequence.at(index, name), layer.weight.shape
            if counts[f"{index}.{name}"] != 1:
                return f"layer {where!r} runs {counts[f'{index}.{name}']} times a pass, not once"
            if inputs % 32 or outputs % 32:
                return f"layer {where!r} is {inputs} x {outputs}, no multiples of 32"
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                continue
            for own_name, weight in module.named_parameters(name, recurse=False):
                if weight.dim() > 1:
                    return f"its weight {sequence.at(index, own_name)!r} is in no nn.Linear"
    return ""


def linears(block: Any) -> dict[str, Any]:
    """Return a block's linear layers by the names they have in it."""
    from torch import nn

    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


@contextmanager
def counting(index: int, block: Any, counts: Counter[str]) -> Iterator[None]:
    """Count in `counts` how often each linear layer of a block runs meanwhile."""

    def counted(name: str) -> Callable[..., None]:
        return lambda *_: counts.update([f"{index}.{name}"])

    hooks = [layer.register_forward_pre_hook(counted(n)) for n, layer in linears(block).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
