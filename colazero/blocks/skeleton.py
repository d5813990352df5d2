"""A model's modules without weights, its decoder blocks, and the arguments of each.

The arguments are recorded by running the model with functions in place of its blocks, so that no
architecture is treated specially.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colazero.blocks.weights import Refused, Weights


def build(model_dir: Path, dtype: Any) -> Any:
    """Return the causal language model of a directory's config in evaluation mode.

    Its parameters are on the meta device and take no memory. Each has the dtype in which
    transformers loads it: `dtype`, or float32 where an architecture keeps that. Buffers are real,
    since some are computed and not stored.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import build_glob_alternation
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(model_dir)
    config.__dict__.pop("quantization_config", None)
    with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
        with no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        # Outside, as `from_pretrained` does: inside, positions would be computed in `dtype`.
        model.initialize_weights()
    kept = model._get_dtype_plan(dtype)
    if kept:
        pattern, *_ = build_glob_alternation(list(kept))
        for name, parameter in model.named_parameters():
            if pattern.search(name):
                parameter.data = parameter.data.float()
    return model.eval()


def fill_rest(model: Any, blocks: str, weights: Weights, device: str) -> None:
    """Load the weights outside the blocks on `device`. The model itself ties weights.

    Refused if some are missing, or if files hold one that the configuration ties to another.
    """
    import torch

    there = {
        name: weights.dense(name, device, empty.dtype)
        for name, empty in model.state_dict().items()
        if not name.startswith(f"{blocks}.") and name in weights
    }
    model.load_state_dict(there, strict=False, assign=True)
    model.tie_weights()
    now = model.state_dict()
    for name, tensor in there.items():
        if now[name].is_meta:  # the other weight is missing, and is refused as such
            continue
        if now[name].data_ptr() != tensor.data_ptr() and not torch.equal(now[name], tensor):
            raise Refused(f"its files hold {name!r}, which its config.json ties to another weight")
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    empty = [n for n, p in model.named_parameters() if p.is_meta and not n.startswith(f"{blocks}.")]
    if empty:
        raise Refused(f"{len(empty)} weights are not in its files by that name, {empty[0]!r} first")
    model.requires_grad_(False)


@contextmanager
def holding(block: Any, tensors: dict[str, Any]) -> Iterator[None]:
    """Give a block its parameters by name; it holds none after the `with` block."""
    empty = dict(block.named_parameters())
    block.load_state_dict(tensors, strict=False, assign=True)
    try:
        yield
    finally:
        block.load_state_dict(empty, strict=False, assign=True)


Acting = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
"""(index of a block, its positional arguments, its keyword arguments) → its output."""


@contextmanager
def standing_in(blocks: list[Any], act: Acting) -> Iterator[None]:
    """Replace the computation of the blocks by `act`; their attributes stay readable."""

    def forward(index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: act(index, args, kwargs)

    before = [vars(block).get("forward") for block in blocks]  # of an outer one, while it runs
    for index, block in enumerate(blocks):
        block.forward = forward(index)
    try:
        yield
    finally:
        for block, outer in zip(blocks, before, strict=True):
            if outer is None:
                del block.forward
            else:
                block.forward = outer


@dataclass(frozen=True)
class Call:
    """The arguments of a block except its hidden states (masks, rotary embeddings, ...)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def __call__(self, block: Any, hidden: Any) -> Any:
        """Return the block's output for hidden states [batch, tokens, width]."""
        if self.by_name:
            return own(block, *self.args, hidden_states=hidden, **self.kwargs)
        return own(block, hidden, *self.args, **self.kwargs)


def own(block: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the block's own computation, even while another function replaces it."""
    return type(block).forward(block, *args, **kwargs)


def parted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Call]:
    """Split a block's arguments into hidden states and the rest; Refused if there are none."""
    if args:
        return args[0], Call(args[1:], kwargs, by_name=False)
    if "hidden_states" not in kwargs:
        raise Refused(f"its blocks get no hidden states, but {', '.join(sorted(kwargs))}")
    rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return kwargs["hidden_states"], Call((), rest, by_name=True)


def first(output: Any) -> Any:
    """Return the hidden states in a block's output: the tensor, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Form:
    """The form of a block's output: a tensor, or a tuple of some length that begins with it."""

    def __init__(self, output: Any) -> None:
        self._others = len(output) - 1 if isinstance(output, tuple) else None

    def __call__(self, hidden: Any) -> Any:
        """Return hidden states in the form of a block's output."""
        return hidden if self._others is None else (hidden, *[None] * self._others)


class Recorded(Exception):
    """Ends a model's run once everything needed is recorded."""


def record(
    model: Any, blocks: list[Any], ids: Any, form: Form | None = None
) -> tuple[Any, list[Call]]:
    """Return the first block's hidden states [batch, tokens, width], and every block's `Call`.

    Without the `form` of a block's output the run ends at the first block.
    """
    calls: list[Call] = []
    inputs: list[Any] = []

    def act(_index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, call = parted(args, kwargs)
        inputs.append(hidden)
        calls.append(call)
        if form is None or len(calls) == len(blocks):
            raise Recorded
        return form(hidden)

    run(model, blocks, ids, act)
    return inputs[0], calls


def head_of(model: Any) -> Callable[[Any], Any]:
    """Return the function from the head's input to logits, for most models.

    It applies the output embeddings, and the bound of Gemma's logits (soft-capping), if any.
    """
    import torch

    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return lambda states: torch.tanh(head(states) / cap) * cap if cap else head(states)


def run(model: Any, blocks: list[Any], ids: Any, act: Any) -> Any:
    """Run the model on ids [batch, tokens] with `act` for its blocks; return its output."""
    with standing_in(blocks, act):
        try:
            return model(input_ids=ids, use_cache=False)
        except Recorded:
            return None
