"""Hours that a suite may take: which cells still end in time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping

from colazero.suite.execution import Job


class Budget:
    """Tells of a job whether it would end in time, by what such jobs took so far.

    hours: from now; inf for no limit. known: seconds by name that finished runs suggest; own times
    count instead as soon as there are any. free: names of cells whose results are there already.
    """

    def __init__(
        self,
        hours: float = math.inf,
        known: Mapping[str, float] | None = None,
        free: Collection[str] = (),
    ) -> None:
        self._end = time.monotonic() + 3600 * hours
        self._known, self._free = dict(known or {}), set(free)
        self._took: dict[tuple[str, str], float] = {}

    def took(self, job: Job, seconds: float) -> None:
        """Learn what a job took: the longest of a method's is what its next may take."""
        key = job.config.model, job.config.method
        self._took[key] = max(seconds, self._took.get(key, 0.0))

    def expected(self, job: Job) -> float:
        """Seconds that a job may take; 0 where nothing tells."""
        model, method = job.config.model, job.config.method
        if (model, method) in self._took:
            return self._took[model, method]
        if job.name in self._known:
            return self._known[job.name]
        return max((t for (m, _), t in self._took.items() if m == model), default=0.0)

    def fits(self, job: Job) -> bool:
        """Whether a job that is started now would end in time.

        What is taken over from another run always does, and so does the unquantized model, without
        which the cells that are done say nothing.
        """
        if job.kind == "baseline" or job.name in self._free:
            return True
        return time.monotonic() + self.expected(job) < self._end
