"""The inputs of a block's layers, added to statistics while windows pass the block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from colazero.blocks.sequence import Sequence, Stream


class Statistic(Protocol):
    """What inputs are added to."""

    tokens: int

    def add(self, x: Any) -> None:
        """Add inputs [..., inputs], one token per row."""


def observe(
    sequence: Sequence, index: int, stream: Stream, statistics: Mapping[str, Statistic]
) -> None:
    """Take the stream through a block, which must be filled; add what reaches each named layer.

    RuntimeError if memory ran out on the way, because some inputs were then added twice.
    """
    block = sequence.blocks[index]

    def hook(name: str) -> Any:
        return lambda _layer, args: statistics[name].add(args[0])

    with ExitStack() as stack:
        for name in statistics:
            handle = block.get_submodule(name).register_forward_pre_hook(hook(name))
            stack.callback(handle.remove)
        sequence.advance(index, stream)
    if any(one.tokens != stream.ids.numel() for one in statistics.values()):
        raise RuntimeError("memory ran out while a block's inputs were observed: free the device")
