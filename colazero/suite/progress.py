"""What a user sees while it runs: a live line for each cell at work, or on no terminal, a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from colazero.types import Progress

log = logging.getLogger(__name__)


def counted(number: int, what: str) -> str:
    """Write a number of things: `1 cell`, `2 cells`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def stage_bar(cell_name: str) -> Callable[[str], Progress]:
    """Return what shows a bar with the time left for each stage of a cell."""

    def show(stage: str) -> Progress:
        bar = tqdm(desc=f"  {cell_name}: {stage}", leave=False, unit="step")

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return progress

    return show


class Board:
    """A suite's lines on the terminal: all cells, then the stage of each that is at work.

    Where stderr is no terminal there is a line when a cell ends, and no other.
    """

    def __init__(self, total: int) -> None:
        self._live = sys.stderr.isatty()
        self._total, self._ended = total, 0
        self._all = tqdm(total=total, desc="cells", unit="cell", disable=not self._live)
        self._bars: dict[str, Any] = {}
        self._stages: dict[str, str] = {}

    def stage(self, name: str, stage: str, done: int, total: int) -> None:
        """Show how far a cell's stage is."""
        begun = self._stages.get(name) != stage
        self._stages[name] = stage
        if not self._live:
            return
        if name not in self._bars:
            self._bars[name] = tqdm(leave=False, unit="step")
        bar = self._bars[name]
        if begun:
            bar.reset()
            bar.set_description(f"  {name}: {stage}")
        bar.total = total or None
        bar.update(done - bar.n)
        bar.refresh()

    def ended(self, name: str, how: str, *, final: bool = True) -> None:
        """Take a cell's line away and say how it ended; not `final` if it will be tried again."""
        self._stages.pop(name, None)
        if name in self._bars:
            self._bars.pop(name).close()
        if final:
            self._ended += 1
            self._all.update()
        words = f"{name}: {how} ({self._ended} of {self._total})"
        if self._live:
            tqdm.write(words, file=sys.stderr)
        else:
            log.info(words)

    def close(self) -> None:
        """Take all lines away."""
        for bar in (*self._bars.values(), self._all):
            bar.close()
