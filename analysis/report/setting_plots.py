"""The settings side by side: a panel each. Numbers in, a Figure out. Nothing is saved here."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.numbers import better
from analysis.summary import Summary
from colazero.figures import BLACK, label, look, name_rows, page, short, styled

ACROSS = 3
"""Panels in a row, at most."""


@styled
def settings(summary: Summary, base: str) -> Figure:
    """Mean and interval of every method of a model, a panel a setting, each with its own scale."""
    models = [m for m in summary.models if summary.place(m).model == base]
    names = [
        name for name in summary.names if any(n.name == name for m in models for n in summary.of(m))
    ]
    caption = (
        f"Means of {summary.metric_name} on {short(base)} in each setting, with 95 % t-intervals "
        f"over observations, on exactly these windows. {better(summary)} Scales differ from panel "
        "to panel, and no test compares two of them. Dashed: the unquantized model, where it lies "
        "near."
    )
    across = min(ACROSS, len(models))
    rows = -(-len(models) // across)
    figure, axes = page(rows, across, rows * (0.8 + 0.28 * len(names)), caption)
    for axis in axes[len(models) :]:
        axis.remove()
    for number, (axis, model) in enumerate(zip(axes, models, strict=False)):
        _panel(axis, summary, model, names)
        name_rows(axis, [label(n) for n in names] if number % across == 0 else [""] * len(names))
        axis.set_title(title(summary, model), fontsize=8.5)
        axis.set_xlabel(summary.metric_name, fontsize=8)
        axis.tick_params(labelsize=8)
    return figure


def title(summary: Summary, model: str) -> str:
    """Return a setting in lines, as in `quant_bits 3`."""
    return "\n".join(f"{name} {value}" for name, value in summary.place(model).setting.items())


def _panel(axis: Axes, summary: Summary, model: str, names: list[str]) -> None:
    for method in summary.of(model):
        colour, marker = look(method.name, summary.names)
        row, about = names.index(method.name), method.description
        assert about.mean is not None
        if about.ci95 is not None:
            axis.plot(about.ci95, [row, row], color=colour, lw=1.6, gid="ci95")
        face = "white" if method.one_set else colour
        axis.plot(about.mean, row, marker, color=colour, mfc=face, markersize=6, gid="mean")
    plain = summary.unquantized.get(model)
    low, high = axis.get_xlim()
    if plain is not None and low - (high - low) < plain < high + (high - low):
        axis.axvline(plain, color=BLACK, ls=(0, (5, 3)), lw=1.0, gid="unquantized")
    axis.margins(x=0.1)
