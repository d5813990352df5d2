"""Micro-batches that go through a block in lockstep: all of them meet at each linear layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from colazero.blocks.record import own

Meeting = Callable[[str, list[Any]], None]
"""(name of a layer, its input in each micro-batch): called before any computes its output."""


class Lockstep:
    """One thread a micro-batch, of which one runs at a time and hands its turn to the next.

    The last is the calling thread, where `meet` is called too: with one micro-batch there is no
    other thread. So the operations and their order are the same at every run.
    """

    def __init__(self, members: int, meet: Meeting) -> None:
        self._meet = meet
        self._last = members - 1
        self._turns = [threading.Semaphore(0) for _ in range(members)]
        self._now = 0
        self._met: list[tuple[str, Any]] = [("", None)] * members
        self._ended = 0
        self._error: BaseException | None = None

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work` with the number of each micro-batch; what one of them raises is raised."""
        threads = [threading.Thread(target=self._member, args=(i, work)) for i in range(self._last)]
        for thread in threads:
            thread.start()
        self._turns[0].release()
        try:
            self._member(self._last, work)
        except BaseException as error:  # an interrupt while waiting for a turn
            self._stop(error)
        if self._ended <= self._last:
            self._stop(RuntimeError("micro-batches ran through different layers"))
        for thread in threads:
            thread.join()
        self._met.clear()
        if self._error is not None:
            raise self._error

    def arrive(self, layer: str, x: Any) -> None:
        """Wait at a layer until all micro-batches are there, with its input `x` in this one."""
        member = self._now
        self._met[member] = (layer, x)
        if member == self._last:
            if {name for name, _ in self._met} != {layer}:
                raise RuntimeError("micro-batches ran through different layers")
            self._meet(layer, [found for _, found in self._met])
        if self._last:
            self._hand_to((member + 1) % len(self._turns))
            self._await(member)

    def _member(self, member: int, work: Callable[[int], None]) -> None:
        import torch

        try:
            self._await(member)
            with torch.no_grad():  # of each thread's own
                work(member)
        except _Stopped:
            return
        except BaseException as error:
            self._stop(error)
            return
        self._ended += 1
        if member < self._last:
            self._hand_to(member + 1)

    def _hand_to(self, member: int) -> None:
        self._now = member
        self._turns[member].release()

    def _await(self, member: int) -> None:
        self._turns[member].acquire()
        if self._error is not None:
            raise _Stopped

    def _stop(self, error: BaseException) -> None:
        """Let no micro-batch go on: those that wait end, the one that runs at its next layer."""
        self._error = self._error or error
        for turn in self._turns:
            turn.release()


class _Stopped(BaseException):
    """Ends a micro-batch because another one failed."""


@contextmanager
def stopping_at(layers: Mapping[str, Any], arrive: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `arrive` with each layer's name and input before it computes, meanwhile."""

    def forward(name: str, layer: Any) -> Callable[[Any], Any]:
        def stopped(x: Any) -> Any:
            arrive(name, x)
            return own(layer, x)

        return stopped

    for name, layer in layers.items():
        layer.forward = forward(name, layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward
