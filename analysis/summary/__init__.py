"""From the table of runs to numbers: methods described, compared, and judged."""

from __future__ import annotations

from analysis.summary.methods import Method
from analysis.summary.options import DEFAULT_BASELINE, MARGIN, OURS, Options
from analysis.summary.pairs import Pair, pairs_of
from analysis.summary.summarize import Summary, controls_of, summarize

__all__ = [
    "DEFAULT_BASELINE",
    "MARGIN",
    "OURS",
    "Method",
    "Options",
    "Pair",
    "Summary",
    "controls_of",
    "pairs_of",
    "summarize",
]
