"""Every figure of the report, by name. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from analysis.report.comparison_plots import differences, window_histograms
from analysis.report.method_plots import cv_bands, seeds, time_against_change
from analysis.summary import Summary
from analysis.summary.windows import Key, WindowPair


def figures(summary: Summary, windows: Mapping[Key, WindowPair]) -> dict[str, Figure]:
    """Return every figure that the runs have the numbers for, by name."""
    found: dict[str, Figure] = {}
    some = any(m.values for m in summary.methods)
    if some:
        found["seeds"] = seeds(summary)
    if any(pair.result.diff is not None for pair in summary.pairs):
        found["differences"] = differences(summary)
    if some:
        found["time"] = time_against_change(summary)
    if windows:
        found["windows"] = window_histograms(summary, windows)
    if some:
        found["cv"] = cv_bands(summary)
    return found
