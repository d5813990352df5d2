"""Ctrl-C and SIGTERM as exceptions in the main thread, at a moment at which they do no harm."""

from __future__ import annotations

import os
import signal
import time
from threading import Timer
from types import FrameType

DELICATE = ("mlflow", "sqlalchemy")
"""Packages in which an exception from nowhere does harm.

It leaves a statement open, whose lock on a database file keeps the run from being ended, or a
finalizer swallows it.
"""
PATIENCE_SEC = 10.0
"""How long a signal waits for them; a server that does not answer may keep them for minutes."""
AGAIN_SEC = 0.05


class Terminated(BaseException):
    """SIGTERM came."""


def install() -> None:
    """Let SIGTERM raise Terminated, and Ctrl-C KeyboardInterrupt, once MLflow is not at work.

    So every open run is ended on the way out. That is not interrupted by another SIGTERM, but by
    another Ctrl-C. Signals that are ignored, as in a shell's background, stay so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _Handler(KeyboardInterrupt, signal.default_int_handler))
    signal.signal(signal.SIGTERM, _Handler(Terminated, signal.SIG_IGN))


class _Handler:
    def __init__(self, error: type[BaseException], afterwards: signal._HANDLER) -> None:
        self._error, self._afterwards = error, afterwards
        self._came: float | None = None
        self._again: Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self._came = self._came or now
        if self._again is not None:
            self._again.cancel()
        if _delicate(frame) and now - self._came < PATIENCE_SEC:
            self._again = Timer(AGAIN_SEC, os.kill, (os.getpid(), number))
            self._again.daemon = True
            self._again.start()
            return
        signal.signal(number, self._afterwards)
        raise self._error


def _delicate(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in DELICATE:
            return True
        frame = frame.f_back
    return False
