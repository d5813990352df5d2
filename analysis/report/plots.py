"""Every figure of the report, by name. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from analysis.report.comparison_plots import budget, differences, shown, windows
from analysis.report.look_plots import followed, looks
from analysis.report.method_plots import cv_bands, seeds, time_against_change
from analysis.report.setting_plots import settings
from analysis.summary import Summary
from colazero.figures import short

Draw = Callable[[Summary, str], Figure]
DRAWN: dict[str, Draw] = {
    "seeds": seeds,
    "differences": differences,
    "looks": looks,
    "windows": windows,
    "budget": budget,
    "time": time_against_change,
    "cv": cv_bands,
}


def figures(summary: Summary) -> dict[str, Figure]:
    """Return every figure that the runs have the numbers for: NAME, or NAME_MODEL for several.

    Where they differ in settings, one a model with all of its settings comes first.
    """
    several = len(summary.models) > 1
    return _side_by_side(summary) | {
        f"{name}_{_file(summary, model)}" if several else name: draw(summary, model)
        for name, draw in DRAWN.items()
        for model in summary.models
        if _known(summary, model, name)
    }


def _side_by_side(summary: Summary) -> dict[str, Figure]:
    if not summary.facets:
        return {}
    bases = list(dict.fromkeys(summary.place(m).model for m in summary.models if summary.of(m)))
    names = [f"settings_{n}" for n in range(1, 1 + len(bases))] if len(bases) > 1 else ["settings"]
    return {name: settings(summary, base) for name, base in zip(names, bases, strict=True)}


def _known(summary: Summary, model: str, name: str) -> bool:
    if name == "differences":
        return any(p.percent is not None for p in summary.pairs if p.model == model)
    if name == "looks":
        return bool(followed(summary, model))
    if name == "windows":
        return bool(shown(summary, model))
    if name == "budget":
        return any(m == model for _, m in summary.budgets)
    return bool(summary.of(model))


def _file(summary: Summary, model: str) -> str:
    """A model's short name as part of a file's, numbered where two would be the same."""

    def plain(name: str) -> str:
        return "".join(c if c.isalnum() or c in "-." else "_" for c in short(name).rstrip("…"))

    same = [m for m in summary.models if plain(m) == plain(model)]
    return plain(model) if len(same) == 1 else f"{plain(model)}_{same.index(model) + 1}"
