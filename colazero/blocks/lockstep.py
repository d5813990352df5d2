"""Run micro-batches through a block together: all stop at each linear layer."""

from __future__ import annotations

import ctypes
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from colazero import devices
from colazero.blocks.skeleton import own

log = logging.getLogger(__name__)

SHARE_OF_FREE = 0.75
"""Share of the memory free at a block's beginning that waiting micro-batches may take; the rest is
for the micro-batch that computes, and for solving."""
MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` in glibc's malloc.h."""
OF_ITS_OWN = 2**20
"""Least bytes of an allocation that becomes a mapping of its own."""
NO_MEMORY = ("out of memory", "_STATUS_ALLOC_FAILED", "cublasCreate", "cusolverDnCreate")
"""Words of RuntimeErrors when memory ran out; the last two, when a library could not start."""
DIFFERENT = "micro-batches ran through different layers"
Visit = Callable[[int, Any, bool], bool]
"""(micro-batch, a layer's input, whether the micro-batch stops here) → whether the input equals the
previous layer's."""
Meeting = Callable[[str], None]
"""(name of a layer): called when all micro-batches have reached it, before it computes."""


class Lockstep:
    """Run micro-batches on one thread each; one thread runs at a time and hands its turn on.

    The calling thread runs the last micro-batch and calls `meet`. A waiting micro-batch holds all
    intermediate results of its block. If memory is short (`full`), a micro-batch between the first
    and the last stops after its input was read. When its turn comes, it runs again from the
    block's beginning, through the solved layers. The operations and their order stay the same.
    """

    def __init__(
        self, members: int, visit: Visit, meet: Meeting, full: Callable[[], bool] = lambda: False
    ) -> None:
        self._visit, self._meet, self._full = visit, meet, full
        self._last = members - 1
        self._turns = [threading.Semaphore(0) for _ in range(members)]
        self._now = 0
        self._met = [""] * members
        self._solved: set[str] = set()
        self.left: set[int] = set()
        self._ended = 0
        self._error: BaseException | None = None

    def run(self, work: Callable[[int], None]) -> None:
        """Call `work` with the number of each micro-batch; raise the error of any of them.

        Micro-batches in `left` run again for each layer that they have not reached.
        """
        self._work = work
        self._threads: dict[int, threading.Thread] = {}
        try:
            for member in range(self._last):
                self._start(member)
            self._turns[0].release()
            self._member(self._last)
        except BaseException as error:  # no more threads, or an interrupt
            self._stop(error)
        if self._ended <= self._last:
            self._stop(RuntimeError(DIFFERENT))
        while alive := [thread for thread in self._threads.values() if thread.is_alive()]:
            alive[0].join()
        if self._error is not None:
            raise self._error

    def arrive(self, layer: str, x: Any) -> None:
        """Wait at a layer until all micro-batches have reached it; `x`: this one's input."""
        member = self._now
        if member in self.left and layer in self._solved:
            return
        inner = 0 < member < self._last
        if inner and member not in self.left and self._full():
            self.left.add(member)
        known = self._visit(member, x, member in self.left)
        self._met[member] = layer
        if member == self._last:
            if set(self._met) != {layer}:
                raise RuntimeError(DIFFERENT)
            self._meet(layer)
            self._solved.add(layer)
        if not self._last:
            return  # none waits
        if member in self.left:
            raise _Left(known)
        self._hand_on(member, known)
        self._await(member)

    def _start(self, member: int) -> None:
        self._threads[member] = threading.Thread(target=self._member, args=(member,))
        self._threads[member].start()

    def _member(self, member: int) -> None:
        try:
            known = self._through(member)
            if member < self._last:
                self._hand_on(member, known)
        except _Stopped:
            pass
        except BaseException as error:
            self._stop(error)

    def _through(self, member: int) -> bool:
        """Run a micro-batch until it ends or stops. Return True if it stopped at a known input."""
        import torch

        try:
            self._await(member)
            with torch.no_grad():  # of each thread's own
                self._work(member)
        except _Left as left:  # what it held is free only after this clause
            return left.known
        self._ended += 1
        return False

    def _hand_on(self, member: int, known: bool) -> None:
        """Give the turn to the next micro-batch. Skip stopped ones if the input is `known`."""
        following = (member + 1) % len(self._turns)
        while known and following in self.left:
            self._met[following] = self._met[member]
            following += 1
        self._now = following
        if following in self.left:
            self._start(following)
        self._turns[following].release()

    def _await(self, member: int) -> None:
        self._turns[member].acquire()
        if self._error is not None:
            raise _Stopped

    def _stop(self, error: BaseException) -> None:
        """End all micro-batches: waiting ones now, the running one at its next layer."""
        self._error = self._error or error
        for turn in self._turns:
            turn.release()


class _Left(BaseException):
    """Stops a micro-batch after its input was read, for lack of memory."""

    def __init__(self, known: bool) -> None:
        self.known = known


class _Stopped(BaseException):
    """Ends a micro-batch because another one failed."""


@contextmanager
def stopping_at(layers: Mapping[str, Any], arrive: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `arrive` with each layer's name and input before it computes, inside the block."""

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


class Headroom:
    """The free memory of a device at a block's beginning, and whether most of it is used."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._least = (1 - SHARE_OF_FREE) * free(device)

    def full(self) -> bool:
        """Return True if no more micro-batches may wait, even after freed memory is returned."""
        if free(self._device) >= self._least:
            return False
        give_back_freed()
        return free(self._device) < self._least


def give_back_freed() -> None:
    """Make glibc return freed memory to the system, now and for large tensors from now on.

    glibc has one heap per thread, and each heap keeps what its micro-batch has freed: a block of 32
    windows of 2,048 tokens held three times the memory in use. Large tensors that do not fit a heap
    become mappings of their own, which are unmapped when freed. Fresh pages take time, up to a
    sixth of a cell's, so this is done only when memory is short. Other C libraries are left alone.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(MMAP_THRESHOLD, OF_ITS_OWN)
        library.malloc_trim(0)


def free(device: str) -> float:
    """Return the bytes that this process may still take on the device; main memory for a CPU."""
    import torch

    if not device.startswith("cuda"):
        return devices.main_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def run_if_fits(work: Callable[[], object], windows: int) -> bool:
    """Run `work` on so many windows at once. Return True if memory was sufficient.

    If not, its memory is released. torch.OutOfMemoryError if there was only one window.
    """
    try:
        work()
        return True
    except RuntimeError as error:
        if windows <= 1 or not out_of_memory(error):
            raise
        said = str(error).partition(".")[0]
        traceback.clear_frames(error.__traceback__)  # they hold what did not fit
    devices.release()
    log.warning("%d windows at once do not fit (%s): trying half as many", windows, said)
    return False


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that a device had too little memory.

    cuBLAS and cuSOLVER allocate memory themselves, and raise a plain RuntimeError.
    """
    import torch

    said = isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError)


def halved(parts: list[slice]) -> list[slice]:
    """Halve the batches that have more than half as many windows as the largest."""
    most = max(part.stop - part.start for part in parts)
    found = []
    for part in parts:
        windows = part.stop - part.start
        if windows == 1 or 2 * windows <= most:
            found.append(part)
        else:
            middle = (part.start + part.stop + 1) // 2
            found += [slice(part.start, middle), slice(middle, part.stop)]
    return found
