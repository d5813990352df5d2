"""Memory for windows: given back when freed, and smaller micro-batches where a device has none."""

from __future__ import annotations

import ctypes
import logging
import traceback
from collections.abc import Callable

from colazero import devices
from colazero.devices import main_memory

log = logging.getLogger(__name__)

SHARE_OF_FREE = 0.75
"""Of the memory that is free when a block begins, for what its micro-batches hold while they wait;
the rest is for what one of them computes, and for solving."""
MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` in glibc's malloc.h."""
OF_ITS_OWN = 2**20
"""Bytes from which on an allocation that needs more memory becomes a mapping of its own."""


class Room:
    """The memory of a device that is free when a block begins, and whether too much of it went."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._least = (1 - SHARE_OF_FREE) * free(device)

    def full(self) -> bool:
        """Tell whether no more should wait, even when all that was freed is given back."""
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
        return main_memory.available()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)


def fits(work: Callable[[], object], windows: int) -> bool:
    """Do `work`, on so many windows at once; tell whether memory was enough for it.

    Where it was not, what the work held is given back. torch.OutOfMemoryError if it was one window.
    """
    import torch

    try:
        work()
        return True
    except torch.OutOfMemoryError as error:
        if windows <= 1:
            raise
        said = str(error).partition(".")[0]
        traceback.clear_frames(error.__traceback__)  # they hold what did not fit
    devices.release()
    log.warning("%d windows at once do not fit (%s): half as many are tried", windows, said)
    return False


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
