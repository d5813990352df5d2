"""From the table of runs to numbers: methods described, compared, and judged."""

from __future__ import annotations

from analysis.summary.options import Options
from analysis.summary.summarize import Summary, summarize

__all__ = ["Options", "Summary", "summarize"]
