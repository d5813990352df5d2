"""MLflow's search API → one tidy, typed table; holes and duplicates refused."""

from __future__ import annotations

from analysis.reading.checks import UNQUANTIZED, RunsError, observations
from analysis.reading.runs import (
    latest_suite,
    load_experiment,
    load_folder,
    load_suite,
    load_suites,
)

__all__ = [
    "UNQUANTIZED",
    "RunsError",
    "latest_suite",
    "load_experiment",
    "load_folder",
    "load_suite",
    "load_suites",
    "observations",
]
