"""A program in a terminal of its own, whose keys can be pressed and which can be closed."""

from __future__ import annotations

import os
import pty
import select
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

CTRL_C = b"\x03"


class Terminal:
    """Runs a command as a shell in a new terminal would: leader of a session that owns it."""

    def __init__(self, command: list[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
        self.pid, self._keys = pty.fork()
        if self.pid == 0:
            for number in (signal.SIGINT, signal.SIGHUP):  # which nohup and & have ignored
                signal.signal(number, signal.SIG_DFL)
            os.chdir(folder)
            os.execvpe(command[0], command, dict(env))
        self._process = psutil.Process(self.pid)
        self._closing = threading.Event()
        self._screen = threading.Thread(target=self._show, args=(log,), daemon=True)
        self._screen.start()

    def press_ctrl_c(self) -> None:
        """Interrupt all that runs in the terminal."""
        os.write(self._keys, CTRL_C)

    def close(self) -> None:
        """Close the terminal: all that runs in it gets SIGHUP.

        Not under the hands of a thread that reads: it would keep the terminal open.
        """
        if not self._closing.is_set():
            self._closing.set()
            self._screen.join()
            os.close(self._keys)

    def family(self) -> list[psutil.Process]:
        """Return the program and all that it has started."""
        with suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program's end, or raise psutil.TimeoutExpired; return its exit code."""
        code = self._process.wait(timeout)
        self.close()
        return code or 0

    def _show(self, log: Path) -> None:
        with log.open("ab") as stream, suppress(OSError):
            while not self._closing.is_set():
                if select.select([self._keys], [], [], 0.1)[0]:
                    stream.write(os.read(self._keys, 4096))
                    stream.flush()
