"""Run a model one block at a time: begin, advance, and from the last block to logits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from colazero import devices
from colazero.blocks.lockstep import halved, run_if_fits
from colazero.blocks.skeleton import (
    Call,
    Form,
    Recorded,
    build,
    fill_rest,
    first,
    head_of,
    holding,
    own,
    parted,
    record,
    run,
    standing_in,
)
from colazero.blocks.weights import Refused, Weights
from colazero.errors import UserError
from colazero.models.fit import decoder_blocks

log = logging.getLogger(__name__)

SHARE_OF_DEVICE = 0.5
"""Share of a GPU's free memory for hidden states; larger ones stay in pinned main memory."""


@dataclass(frozen=True)
class Stream:
    """Windows between two blocks.

    `ids`: token ids [windows, tokens]; `hidden`: the next block's input, [windows, tokens, width];
    `batches`: the windows that run together: `planned`, or fewer if memory runs out.
    """

    ids: Any
    hidden: Any
    batches: list[slice]
    planned: int

    @property
    def at_once(self) -> int:
        return largest(self.batches)

    @property
    def halved(self) -> bool:
        """Return True if memory ran out: sums were then rounded in another order than planned."""
        return self.at_once < self.planned


def batches(windows: int, at_once: int, alone: int = 0) -> list[slice]:
    """Divide windows into batches of `at_once`; each of the first `alone` is its own batch."""
    starts = [*range(min(alone, windows)), *range(min(alone, windows), windows, at_once)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], windows], strict=True)]


def largest(parts: list[slice]) -> int:
    return max(int(part.stop - part.start) for part in parts)


class Statistic(Protocol):
    """What inputs of a layer are added to."""

    tokens: int

    def add(self, x: Any) -> None:
        """Add inputs [..., inputs], one token per row."""


class Sequence:
    """A causal language model in which one block at a time holds weights. Inference only."""

    def __init__(self, model_dir: Path, device: str, dtype: Any) -> None:
        import torch

        self.device, self.dtype = device, dtype
        self.model = build(model_dir, dtype)
        self.name = decoder_blocks(self.model)
        if not self.name:
            raise Refused("it has no list of decoder blocks")
        self.blocks = list(self.model.get_submodule(self.name))
        self.weights = Weights(model_dir, self.model)
        fill_rest(self.model, self.name, self.weights, device)
        for index, block in enumerate(self.blocks):
            for name in (self.at(index, inner) for inner, _ in block.named_parameters()):
                if name not in self.weights:
                    raise Refused(f"its files have no weight {name!r}")
        self._calls: dict[tuple[int, int], list[Call]] = {}
        ids = torch.arange(8, device=device)[None]
        with self.filled(0, ahead=False), torch.no_grad():
            hidden, (call,) = record(self.model, self.blocks, ids)
            self._form = Form(call(self.blocks[0], hidden))
        with torch.no_grad():
            self._head, self.vocabulary = self._learn_head(ids)

    def __len__(self) -> int:
        return len(self.blocks)

    def at(self, index: int, name: str) -> str:
        """Return the full name of a block's parameter or module `name`."""
        return f"{self.name}.{index}.{name}"

    @contextmanager
    def filled(
        self, index: int, leave: Callable[[str], bool] = lambda _: False, *, ahead: bool = True
    ) -> Iterator[Any]:
        """Yield a block that holds its weights on the device, except those to `leave`.

        For a GPU, the weights of the next block are read `ahead` into page-locked memory.
        """
        block = self.blocks[index]
        ahead = ahead and self.device != "cpu"
        if ahead:
            self.weights.take_ahead(index)
        tensors = {
            name: self.weights.dense(self.at(index, name), self.device, empty.dtype)
            for name, empty in block.state_dict().items()
            if not leave(name) and self.at(index, name) in self.weights
        }
        if ahead and index + 1 < len(self):
            names = [self.at(index + 1, name) for name in self.blocks[index + 1].state_dict()]
            self.weights.read_ahead(index + 1, names, pinned=self.device.startswith("cuda"))
        try:
            with holding(block, tensors):
                del tensors
                yield block
        finally:
            if ahead:
                devices.settle(self.device)  # before what it copies from is written again
            self.weights.release()
            if index + 1 == len(self):
                self.weights.stop_ahead()

    def begin(self, windows: NDArray[Any], at_once: int, alone: int = 0) -> Stream:
        """Return a stream of token ids [windows, tokens] before the first block.

        `at_once` windows run together, or fewer if they do not fit on the device; the first `alone`
        run one by one.
        """
        import torch

        ids = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64))
        parts = batches(len(ids), at_once, alone)
        planned = largest(parts)
        hidden: list[Any] = []
        while not run_if_fits(partial(self._embed, ids, parts, hidden), at_once):
            at_once = -(-at_once // 2)
            parts = batches(len(ids), at_once, alone)
        return Stream(ids, hidden[0], parts, planned)

    def _embed(self, ids: Any, parts: list[slice], into: list[Any]) -> None:
        """Append the first block's input to `into`, [windows, tokens, hidden]."""
        import torch

        hidden = None
        with torch.no_grad():
            for part in parts:
                some = ids[part].to(self.device)
                key = (len(some), some.shape[1])
                form = None if key in self._calls else self._form
                found, calls = record(self.model, self.blocks, some, form)
                self._calls.setdefault(key, calls)
                if hidden is None:
                    hidden = self._room((len(ids), *found.shape[1:]), found.dtype)
                hidden[part] = found
        into.append(hidden)

    def _room(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an empty tensor for hidden states: on the device if it fits there."""
        import torch

        if not self.device.startswith("cuda"):
            return torch.empty(shape, dtype=dtype, device=self.device)
        free, _ = torch.cuda.mem_get_info(self.device)
        room = int(np.prod(shape)) * dtype.itemsize <= SHARE_OF_DEVICE * free
        if not room:
            log.warning(
                "hidden states (%.1f GB) stay in main memory: %.1f GB are free on %s",
                *(int(np.prod(shape)) * dtype.itemsize / 1e9, free / 1e9, self.device),
            )
        where: dict[str, Any] = {"device": self.device} if room else {"pin_memory": True}
        return torch.empty(shape, dtype=dtype, **where)

    def run_block(self, index: int, stream: Stream, part: slice) -> None:
        hidden = stream.hidden[part].to(self.device, non_blocking=True)
        key = (len(hidden), hidden.shape[1])
        if key not in self._calls:  # a batch that was halved
            ids = stream.ids[part].to(self.device)
            self._calls[key] = record(self.model, self.blocks, ids, self._form)[1]
        call = self._calls[key][index]
        stream.hidden[part] = first(call(self.blocks[index], hidden))

    def advance(self, index: int, stream: Stream) -> None:
        """Run a filled block on all windows of the stream, in smaller batches if memory runs out.

        torch.OutOfMemoryError if one window does not fit.
        """
        import torch

        done: list[slice] = []
        left = list(stream.batches)
        with torch.no_grad():
            while left:
                run = partial(self.run_block, index, stream, left[0])
                if run_if_fits(run, left[0].stop - left[0].start):
                    done.append(left.pop(0))
                else:
                    left = halved(left)
        stream.batches[:] = done

    def attended(self, index: int, stream: Stream) -> Any:
        """Return how much attention each token gets in a filled block: float32 [windows, tokens].

        Summed over heads and queries, on the CPU. The stream stays before the block. Only the eager
        implementation gives attention weights, so it runs here, one window at a time. UserError if
        the block's attention returns no weights.
        """
        import torch

        block, tokens = self.blocks[index], stream.ids.shape[1]
        received: list[Any] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            for part in output if isinstance(output, tuple) else ():
                if torch.is_tensor(part) and part.ndim == 4 and part.shape[2:] == (tokens, tokens):
                    received.append(part.float().sum((1, 2)).cpu())

        before = self.model.config._attn_implementation  # transformers has no public name for it
        hooks = [module.register_forward_hook(keep) for module in block.modules()]
        try:
            self.model.set_attn_implementation("eager")
            with torch.no_grad():
                ids = stream.ids[:1].to(self.device)
                call = record(self.model, self.blocks, ids, self._form)[1][index]
                for window in stream.hidden.split(1):
                    call(block, window.to(self.device))
        finally:
            self.model.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()
        if len(received) != len(stream.ids):
            raise UserError(
                "position_weight=attention: this model's attention does not return its weights. "
                "Use a number."
            )
        return torch.cat(received)

    def observe(self, index: int, stream: Stream, statistics: Mapping[str, Statistic]) -> None:
        """Advance the stream, and add what reaches each named layer to its statistic.

        RuntimeError if memory ran out on the way, because some inputs were then added twice.
        """

        def hook(name: str) -> Any:
            return lambda _layer, args: statistics[name].add(args[0])

        with ExitStack() as stack:
            for name in statistics:
                layer = self.blocks[index].get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(hook(name)).remove)
            self.advance(index, stream)
        if any(one.tokens != stream.ids.numel() for one in statistics.values()):
            raise RuntimeError(
                "memory ran out while a block's inputs were observed: free the device"
            )

    def logits(self, hidden: Any, ids: Any) -> Any:
        """Return the logits [tokens, vocabulary] of last hidden states [tokens, width]."""
        return self.logits_of(hidden, ids)(slice(None))

    def logits_of(self, hidden: Any, ids: Any) -> Callable[[slice], Any]:
        """Return a function from a slice of a window to its logits [tokens, vocabulary].

        `hidden` [tokens, width]: a window's last hidden states. `ids` [tokens]: its tokens, which
        some models read again at their end. The model's norm runs once, its head once per slice. A
        model with further computation after its head runs as a whole for each slice.
        """
        import torch

        hidden, ids = hidden.to(self.device), ids.to(self.device)
        if self._head is None:
            return lambda part: self._finish(hidden[part], ids[part])[0][0]
        head = self._head
        with torch.no_grad():
            _, normed = self._finish(hidden, ids, stop=True)

        def logits(part: slice) -> Any:
            with torch.no_grad():
                return head(normed[:, part])[0]

        return logits

    def _finish(self, hidden: Any, ids: Any, *, stop: bool = False) -> tuple[Any, Any]:
        """Run the model after its blocks; return logits [1, tokens, vocabulary], the head's input.

        The input is None unless the head was called exactly once. With `stop`, the run ends before
        the head, without logits.
        """
        import torch

        last, head = hidden[None], self.model.get_output_embeddings()
        got: list[Any] = []

        def act(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._form(last if index == 0 else parted(args, kwargs)[0])

        def act_head(_index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            got.append(args[0])
            if stop:
                raise Recorded
            return own(head, *args, **kwargs)

        with torch.no_grad(), standing_in([head] if head is not None else [], act_head):
            output = run(self.model, self.blocks, ids[None], act)
        return getattr(output, "logits", None), got[0] if len(got) == 1 else None

    def _learn_head(self, ids: Any) -> tuple[Callable[[Any], Any] | None, int]:
        """Return the function from the head's input to logits, and the number of logits per token.

        The function is None if its result is not bit-identical to the model's own logits.
        """
        import torch

        hidden = record(self.model, self.blocks, ids)[0][0]
        logits, normed = self._finish(hidden, ids[0])
        head = head_of(self.model)
        same = normed is not None and torch.equal(head(normed), logits)
        return head if same else None, int(logits.shape[-1])
