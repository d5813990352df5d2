"""What is done when a device runs out of memory: smaller micro-batches, down to one window."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from colazero import devices

log = logging.getLogger(__name__)


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
