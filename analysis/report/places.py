"""Where a table's row belongs: columns for its model and for the settings that differ."""

from __future__ import annotations

from analysis.summary import Summary
from colazero.figures import short


def columns(summary: Summary) -> list[str]:
    """Return the heads: `model` where there are several, and each setting that differs."""
    several = len({summary.place(model).model for model in summary.models}) > 1
    return [*(["model"] if several else []), *summary.facets]


def place(summary: Summary, model: str) -> list[str]:
    """Return what stands in `columns` for a model."""
    found = summary.place(model)
    values = {"model": short(found.model), **found.setting}
    return [values[name] for name in columns(summary)]
