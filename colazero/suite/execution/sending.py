"""Results on their way to the store while their worker computes the next."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Sender:
    """One thread that sends what a job left sealed; the disk holds one such result at most."""

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    def begin(self, send: Callable[[], None]) -> None:
        """Call `send` in a thread, once the one before is over."""
        if self._last:
            self._last.join()
        self._last = threading.Thread(target=send, name="send", daemon=True)
        self._last.start()
