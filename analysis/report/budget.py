"""Where the noise comes from, what would make it less, and which metric sees most, as tables."""

from __future__ import annotations

from analysis.report.numbers import NONE, draws, number, p_text, percent
from analysis.report.places import columns, place
from analysis.report.tables import Table
from analysis.stats import Source, VarianceBudget
from analysis.summary import Summary
from analysis.summary.summarize import Sharpness
from colazero.figures import label

# The attribute of a budget, what it is called, and what there would be more of.
SOURCES = (
    ("seed", "calibration set (seed)", "seeds"),
    ("arithmetic", "arithmetic (order of a set)", "replicates"),
    ("method_window", "method × window", "windows"),
    ("window", "window (shared by all methods)", ""),
)


def budget_table(summary: Summary) -> Table:
    """Return the variance budgets: a row a model, metric and source."""
    header = [
        *columns(summary),
        *("metric", "source of noise", "note", "σ of one draw, %", "share of the interval %"),
        "to halve the interval by it alone",
    ]
    rows = [
        [*place(summary, model), metric, name, *_source(getattr(budget, key), unit)]
        for (metric, model), budget in summary.budgets.items()
        for key, name, unit in SOURCES
    ]
    return Table(header, rows, left=3 + len(columns(summary)))


def _source(source: Source, unit: str) -> list[str]:
    share = number(None if source.share is None else 100 * source.share, 0)
    return [source.reason or "", number(source.percent, 2), share, _halving(source, unit)]


def _halving(source: Source, unit: str) -> str:
    if not unit or source.share is None:
        return NONE
    if source.factor is None:
        return f"no number of {unit}"
    return f"{source.factor:.2g} × the {unit}"


def budget_sentence(summary: Summary, model: str) -> str:
    """Say what most of the interval of a difference comes from, and what would halve it."""
    budget = summary.budgets.get((summary.metric, model))
    if budget is None or budget.std_error_percent is None:
        return ""
    known = [(getattr(budget, key), name, unit) for key, name, unit in SOURCES[:3]]
    shares = [(s.share or 0.0, name) for s, name, _ in known]
    most = max(shares)
    ways = [f"{s.factor:.2g} times the {unit}" for s, _, unit in known if s.factor is not None]
    both = "four times the seeds and the windows"
    halve = f"{' or '.join(ways)} alone would halve it, and so would {both}"
    if not ways:
        halve = f"more of one source alone does not halve it, {both} would"
    return (
        f"A difference of two methods has a standard error of "
        f"{number(budget.std_error_percent, 2)} % with the average of these designs; "
        f"{number(100 * most[0], 0)} % of its variance comes from: {most[1]}. As far as these runs "
        f"tell, {halve}.{_caveat(budget)}"
    )


def _caveat(budget: VarianceBudget) -> str:
    if budget.arithmetic.percent is None and budget.seed.percent is not None:
        return " Without replicates the arithmetic is counted with the calibration set."
    return ""


def metrics_table(summary: Summary) -> Table:
    """Return, for each metric of the runs, the seeds it needs to tell the methods apart."""
    header = [
        *columns(summary),
        *("comparison", "metric", "difference %", "p (Welch)", "seeds a method", "range"),
    ]
    rows = [[*place(summary, s.model), *_sharpness(s)] for s in summary.metrics]
    return Table(header, rows, left=2 + len(columns(summary)))


def _sharpness(s: Sharpness) -> list[str]:
    top = "no upper limit" if s.many is None else draws(s.many)
    return [
        f"{label(s.a)} vs {label(s.b)}",
        s.metric,
        percent(s.percent),
        p_text(s.p_value),
        draws(s.seeds),
        f"{draws(s.few)} to {top}",
    ]
