"""What a model passes to each of its blocks, found by running it with recorders in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colazero.blocks.refusal import Refused
from colazero.blocks.skeleton import standing_in


@dataclass(frozen=True)
class Call:
    """The arguments of a block but for its hidden states (masks, rotary embeddings, ...)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def __call__(self, block: Any, hidden: Any) -> Any:
        """Return what the block makes of hidden states [batch, tokens, width]."""
        if self.by_name:
            return own(block, *self.args, hidden_states=hidden, **self.kwargs)
        return own(block, hidden, *self.args, **self.kwargs)


def own(block: Any, *args: Any, **kwargs: Any) -> Any:
    """Run what the block itself computes, whatever stands in for it at the moment."""
    return type(block).forward(block, *args, **kwargs)


def parted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Call]:
    """Divide a block's arguments into its hidden states and the rest; Refused if it gets none."""
    if args:
        return args[0], Call(args[1:], kwargs, by_name=False)
    if "hidden_states" not in kwargs:
        raise Refused(f"its blocks get no hidden states, but {', '.join(sorted(kwargs))}")
    rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return kwargs["hidden_states"], Call((), rest, by_name=True)


def first(output: Any) -> Any:
    """Return the hidden states of what a block returned: that, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Form:
    """Whether blocks return a tensor, or a tuple of how many with the tensor at its head."""

    def __init__(self, output: Any) -> None:
        self._others = len(output) - 1 if isinstance(output, tuple) else None

    def __call__(self, hidden: Any) -> Any:
        """Return hidden states as a block would."""
        return hidden if self._others is None else (hidden, *[None] * self._others)


class _Recorded(Exception):
    """Ends a model's run when nothing more is to be learnt from it."""


def record(model: Any, blocks: list[Any], ids: Any, form: Form) -> tuple[Any, list[Call]]:
    """Return the first block's hidden states [batch, tokens, width], and every block's `Call`."""
    calls: list[Call] = []
    inputs: list[Any] = []

    def act(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, call = parted(args, kwargs)
        calls.append(call)
        if index == 0:
            inputs.append(hidden)
        if len(calls) == len(blocks):
            raise _Recorded
        return form(hidden)

    run(model, blocks, ids, act)
    return inputs[0], calls


def embed(model: Any, blocks: list[Any], ids: Any) -> Any:
    """Return the hidden states that the first block gets, [batch, tokens, width]."""
    inputs: list[Any] = []

    def act(_index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs.append(parted(args, kwargs)[0])
        raise _Recorded

    run(model, blocks, ids, act)
    return inputs[0]


def learn_form(model: Any, blocks: list[Any], ids: Any) -> Form:
    """Return the form of what the first block, which must hold its weights, returns."""
    forms: list[Form] = []

    def act(_index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forms.append(Form(own(blocks[0], *args, **kwargs)))
        raise _Recorded

    run(model, blocks, ids, act)
    return forms[0]


def run(model: Any, blocks: list[Any], ids: Any, act: Any) -> Any:
    """Run the model on ids [batch, tokens] with `act` for its blocks; return what it returns."""
    with standing_in(blocks, act):
        try:
            return model(input_ids=ids, use_cache=False)
        except _Recorded:
            return None
