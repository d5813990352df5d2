"""Open a model as a sequence of blocks, after checking that it gives the whole model's logits."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import devices
from colazero.blocks.lockstep import out_of_memory
from colazero.blocks.sequence import Sequence
from colazero.blocks.skeleton import own, run
from colazero.blocks.weights import Refused, eval_dtype
from colazero.cache import facts_digest, kept_json, own_code
from colazero.errors import UserError

log = logging.getLogger(__name__)

TOKENS = 16
UNITS = 8
"""Largest difference between two orders of the same sums, in units in the last place. On a GPU,
products of other shapes run other kernels; on CPUs none was observed."""


def open_sequence(model_dir: Path, device: str, *, to_quantize: bool = False) -> Sequence:
    """Return the model of a directory, quantized to GPTQ's format or not, as a sequence of blocks.

    Raise Refused if it cannot be run block by block, which is checked once per model and version.
    With `to_quantize`, also if its blocks have weights outside `nn.Linear`, norms and embeddings.
    Raise UserError if its logits give no perplexity.
    """
    with refusing("built"):
        sequence = Sequence(model_dir, device, eval_dtype(model_dir, device))
    with refusing("tried"):
        found = kept(sequence)
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
    """Raise Refused for any error of the model's own code: the model then runs as a whole.

    UserErrors and errors for lack of memory pass through.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        words = str(error).strip().splitlines() or [""]
        reason = f"it cannot be {how} block by block: {type(error).__name__}: {words[0]}"
        raise Refused(reason.rstrip(": ")) from error


def kept(sequence: Sequence) -> dict[str, str]:
    """Return `probed`, from the cache if this model was checked with these versions before."""
    config = sequence.model.config.to_dict() | {"_name_or_path": ""}
    facts = [json.dumps(config, sort_keys=True, default=str), str(sequence.dtype)]
    facts += [devices.identity(sequence.device), version("transformers"), version("torch")]
    key = facts_digest(*facts, own_code(__name__))
    found: dict[str, str] = kept_json(f"blocks/{key}.json", lambda: probed(sequence))
    return found


def probed(sequence: Sequence) -> dict[str, str]:
    """Check the model on a few tokens. Return four sentences, each empty if there is no problem.

    `causal`: why its logits are not predictions; `run` and `quantize`: why it cannot be run, or
    quantized, block by block; `differs`: by how much blocks one at a time differ from the whole.
    The whole model runs in its own code, and each block is filled when it runs, so that this takes
    the memory of one block. Arguments recorded with one text are used with the other, as later.
    """
    import torch

    size = sequence.model.config.get_text_config().vocab_size
    ids = other_endings(size)
    streams = [sequence.begin(some, 2) for some in ids]
    counts: Counter[str] = Counter()

    def act(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with sequence.filled(index) as block:
            with counting(index, block, counts):
                whole = own(block, *args, **kwargs)
            for stream in streams:
                sequence.advance(index, stream)
        return whole

    with torch.no_grad():
        tokens = streams[1].ids.to(sequence.device)
        logits = run(sequence.model, sequence.blocks, tokens, act).logits
    # The head gets the rows of both windows at once, as above: products of other shapes may differ.
    first, second = (
        sequence.logits(stream.hidden.flatten(0, 1), stream.ids.flatten()).view_as(logits)
        for stream in streams
    )
    if not torch.isfinite(logits).all():  # about these weights, so it is not cached
        raise UserError(
            f"the model gives logits that are not numbers (NaN or infinite, {logits.dtype}): its "
            "weights are damaged, or too large for this type. Fetch the model again."
        )
    off = units_apart(logits, second)
    why = "" if off <= UNITS else "its blocks, one at a time, do not give the whole model's logits"
    differs = f"run block by block, its logits differ by {off:.1f} units in the last place"
    return {
        "causal": "" if why else not_causal(first, second),
        "run": why,
        "quantize": why or unsolvable(sequence, counts),
        "differs": differs if off and not why else "",
    }


def other_endings(vocabulary: int) -> NDArray[Any]:
    """Return two texts of two windows each, [2, 2, TOKENS], with the same first halves."""
    ids = np.random.default_rng(0).integers(vocabulary, size=(2, 2, TOKENS))
    ids[1, :, : TOKENS // 2] = ids[0, :, : TOKENS // 2]
    return ids


def units_apart(expected: Any, found: Any) -> float:
    """Return the largest difference, in units in the last place of the largest logit."""
    import torch

    off = (expected.double() - found.double()).abs().max()
    return float(off / expected.double().abs().max() / torch.finfo(expected.dtype).eps)


def not_causal(first: Any, second: Any) -> str:
    """Return why logits [windows, tokens, vocabulary] of `other_endings` are not predictions.

    Logits of a position must not depend on later tokens. Rounding may, since experts get other
    rows together, so a difference counts if it is large in every window.
    """
    import torch

    half = slice(0, TOKENS // 2)
    a, b = first[:, half].double(), second[:, half].double()
    relative = (a - b).norm(dim=-1) / a.norm(dim=-1).clamp_min(1e-30)
    allowed = max(UNITS * torch.finfo(first.dtype).eps, 1e-3)
    if not bool((relative.amin(0) > allowed).any()):
        return ""
    return (
        f"the model is not a causal language model: its logits before position {TOKENS // 2} "
        "change with the tokens from there on, so it sees what it is to predict. Take a model "
        "that predicts the next token (of BERT and its kind: one whose config.json says "
        "is_decoder)."
    )


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
                return f"layer {where!r} is {inputs} x {outputs}, not multiples of 32"
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                continue
            for own_name, weight in module.named_parameters(name, recurse=False):
                if weight.dim() > 1:
                    return f"its weight {sequence.at(index, own_name)!r} is not in an nn.Linear"
    return ""


def linears(block: Any) -> dict[str, Any]:
    """Return name in the block → linear layer."""
    from torch import nn

    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


@contextmanager
def counting(index: int, block: Any, counts: Counter[str]) -> Iterator[None]:
    """Count how often each linear layer of a block runs inside the `with` block."""

    def counted(name: str) -> Callable[..., None]:
        return lambda *_: counts.update([f"{index}.{name}"])

    hooks = [layer.register_forward_pre_hook(counted(n)) for n, layer in linears(block).items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
