"""From the table of runs to numbers: methods described, compared, and judged."""

from __future__ import annotations

from analysis.summary.summarize import (
    DEFAULT_BASELINE,
    OURS,
    Method,
    Options,
    Pair,
    Summary,
    controls_of,
    pairs_of,
    summarize,
)

__all__ = [
    "DEFAULT_BASELINE",
    "OURS",
    "Method",
    "Options",
    "Pair",
    "Summary",
    "controls_of",
    "pairs_of",
    "summarize",
]
