"""Ctrl-C, SIGTERM and a closed terminal as exceptions in the main thread, at a harmless moment."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from threading import Timer
from types import FrameType

DELICATE = ("mlflow", "sqlalchemy")
"""Packages in which an exception from a signal does harm.

It may leave a statement open, and its lock on a database file then prevents the run from being
ended. Or a finalizer ignores it.
"""
PATIENCE_SEC = 10.0
"""Seconds that a signal waits while they run; with a silent server they may run for minutes."""
STARTING_SEC = 60.0
"""Seconds that a signal waits for imports and for the program to begin."""
AGAIN_SEC = 0.05


class Terminated(BaseException):
    """SIGTERM or SIGHUP came."""

    def __str__(self) -> str:
        """Return the reason why a run ended."""
        return "SIGTERM, or the terminal was closed"


_program = {"begun": True}
_waiting: dict[int, Timer] = {}
"""Signal → the timer that sends it again."""


def install() -> None:
    """Hold signals back until `begin` is called."""
    _program["begun"] = False
    _handle()


def begin() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, SIGTERM and SIGHUP Terminated, but not inside MLflow.

    The exception ends every open run. SIGTERM and SIGHUP do not interrupt that clean-up, since
    `mlflow run` and a closing terminal send several; another Ctrl-C does. Signals that are ignored
    stay ignored, as in a shell's background or under nohup.
    """
    if not isinstance(signal.getsignal(signal.SIGTERM), _Handler):
        _handle()
    _program["begun"] = True


def _handle() -> None:
    for number, error in (
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGHUP, Terminated),
        (signal.SIGTERM, Terminated),
    ):
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _Handler(error))


class _Handler:
    def __init__(self, error: type[BaseException]) -> None:
        self._error = error
        self._came: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self._came = self._came or now
        if number in _waiting:
            _waiting.pop(number).cancel()
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._must_wait(frame, now - self._came):
            _waiting[number] = again = Timer(AGAIN_SEC, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        _clean_up_begins()
        raise self._error

    def _must_wait(self, frame: FrameType | None, waited: float) -> bool:
        if not _program["begun"] or _importing(frame):
            return waited < STARTING_SEC
        return _delicate(frame) and waited < PATIENCE_SEC


def _clean_up_begins() -> None:
    """Ignore signals that would interrupt the clean-up, except Ctrl-C."""
    while _waiting:
        _waiting.popitem()[1].cancel()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave_terminal() -> None:
    """Redirect output from a closed terminal, where each write would fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        with suppress(OSError):
            if os.isatty(stream) or _hung_up(stream):
                os.dup2(nowhere, stream)
    os.close(nowhere)


def _hung_up(stream: int) -> bool:
    """Return True if a stream's terminal is closed."""
    try:
        os.write(stream, b"")
        return False
    except OSError:
        return True


def _importing(frame: FrameType | None) -> bool:
    """Return True if a module is being imported.

    Interrupted, it would keep the import lock, and imports in the clean-up would hang.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _delicate(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in DELICATE:
            return True
        frame = frame.f_back
    return False
