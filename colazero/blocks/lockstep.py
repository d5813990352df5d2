"""Micro-batches that go through a block in lockstep, as many and as large as memory holds."""

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
"""Of the memory that is free when a block begins, for what its micro-batches hold while they wait;
the rest is for what one of them computes, and for solving."""
MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` in glibc's malloc.h."""
OF_ITS_OWN = 2**20
"""Bytes from which on an allocation that needs more memory becomes a mapping of its own."""
NO_MEMORY = ("out of memory", "_STATUS_ALLOC_FAILED", "cublasCreate", "cusolverDnCreate")
"""What RuntimeErrors say where memory ran out: the last two, where a library could not begin."""
DIFFERENT = "micro-batches ran through different layers"
Visit = Callable[[int, Any, bool], bool]
"""(micro-batch, a layer's input in it, whether it leaves then): tells if it is the last layer's."""
Meeting = Callable[[str], None]
"""(name of a layer): called when its input was seen in all, before any computes its output."""


class Lockstep:
    """Run micro-batches on one thread each; one thread runs at a time and hands its turn on.

    The last thread is the calling one, on which `meet` is called: a single micro-batch needs no
    other. A waiting micro-batch holds everything that its block has computed so far. Where that is
    too much (`full` says so), a micro-batch between the first and the last leaves once its input
    was seen. It is run again from the block's beginning, through layers that are solved, when its
    turn comes. The operations on the inputs and their order are the same at every run.
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
        """Call `work` with the number of each micro-batch; what one of them raises is raised.

        Again for those in `left`, at each of the layers that they still have to reach.
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
        """Wait at a layer until all micro-batches were there, with its input `x` in this one."""
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
        """Run a micro-batch until it ends or leaves. Return True if it left at a known input."""
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
        """Give the turn to the next; those that left are passed over where the input is `known`."""
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
        """Let no micro-batch go on: those that wait end, the one that runs at its next layer."""
        self._error = self._error or error
        for turn in self._turns:
            turn.release()


class _Left(BaseException):
    """Ends a micro-batch whose input was seen, and for which there is no room to wait."""

    def __init__(self, known: bool) -> None:
        self.known = known


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


class Headroom:
    """The memory of a device that is free when a block begins, and whether too much of it went."""

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
    """Let the C library return what is freed to the system, and grow its heaps no more.

    glibc has a heap for each of a lockstep's threads, which keeps what its micro-batch has freed
    while the next one allocates the same anew: a block of 32 windows of 2,048 tokens held three
    times what was in use. From now on a large tensor for which a heap has no place is a mapping of
    its own, which goes when it is freed. Fresh pages cost time, up to a sixth of a cell's: so only
    when memory is short. Nothing is done where the library is another one.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(MMAP_THRESHOLD, OF_ITS_OWN)
        library.malloc_trim(0)


def free(device: str) -> float:
    """Return the bytes that this process may still take on the device; on a CPU main memory's."""
    import torch

    if not device.startswith("cuda"):
        return devices.main_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def run_if_fits(work: Callable[[], object], windows: int) -> bool:
    """Run `work` on so many windows at once. Return True if memory was enough.

    Where it was not, what the work held is given back. torch.OutOfMemoryError if it was one window.
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
    log.warning("%d windows at once do not fit (%s): half as many are tried", windows, said)
    return False


def out_of_memory(error: BaseException) -> bool:
    """Return whether a device had too little memory, as PyTorch or one of its libraries says it.

    cuBLAS and cuSOLVER take memory of their own, and what they raise is a plain RuntimeError.
    """
    import torch

    said = isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)
    return said or isinstance(error, torch.OutOfMemoryError)


def halved(parts: list[slice]) -> list[slice]:
    """Divide the largest batches, and all of more than half their windows, in two."""
    most = max(part.stop - part.start for part in parts)
    return [
        half
        for part in parts
        for half in (_halves(part) if 2 * (part.stop - part.start) > most else [part])
    ]


def _halves(part: slice) -> list[slice]:
    if part.stop - part.start == 1:
        return [part]
    middle = (part.start + part.stop + 1) // 2
    return [slice(part.start, middle), slice(middle, part.stop)]
