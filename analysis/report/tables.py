"""Numbers as text, and every table of the report as rows of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from analysis.custom import all_statistics, evaluate
from analysis.reading.table import observations
from analysis.stats.budget import Source
from analysis.stats.samples import Interval
from analysis.stats.verdicts import stars
from analysis.summary import Summary
from analysis.summary.items import ItemPair
from analysis.summary.looks import Rank
from analysis.summary.methods import Method
from analysis.summary.pairs import Pair
from analysis.summary.summarize import Sharpness
from colazero.figures import label, short

NONE = "–"


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Write a number with `digits` decimals and a real minus sign; – for None."""
    return NONE if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Write a change in per cent with its sign, without the per cent sign."""
    return number(value, 2, sign=True)


def interval(limits: Interval | None, digits: int, sign: bool = False) -> str:
    """Write an interval as [low, high]; – for None."""
    if limits is None:
        return NONE
    return f"[{number(limits[0], digits, sign)}, {number(limits[1], digits, sign)}]"


def p_text(p: float | None) -> str:
    """Write a p-value with three decimals, `< 0.001` below that; – for None.

    A fourth decimal is added where three would not show on which side of 0.05 it lies.
    """
    if p is None:
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.4f}" if f"{p:.3f}" == "0.050" else f"{p:.3f}"


def p_equation(p: float | None) -> str:
    """Write `p = 0.314`, or `p < 0.001`."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def mean_std(method: Method, digits: int) -> str:
    """Write mean ± standard deviation; the mean alone for a single observation."""
    values = method.description
    if values.mean is None or values.std is None:
        return number(values.mean, digits)
    return f"{number(values.mean, digits)} ± {number(values.std, digits)}"


def observed(method: Method) -> str:
    """Write what a method's observations are: `5 seeds`, or `5 replicates of 1 set`."""
    if method.one_set:
        return "1 draw of 1 set" if method.n == 1 else f"{method.n} replicates of 1 set"
    text = f"{method.n} seed{'s' * (method.n != 1)}"
    return text + (f" × {method.n_draws / method.n:.3g}" if method.n_draws > method.n else "")


def counts(methods: Iterable[Method]) -> str:
    """Write what the observations of several methods are: `n = 5 seeds per method`."""
    parts = []
    for one_set, one, many in (
        (False, "1 seed per method", "seeds per method"),
        (True, "1 draw where a method has one set", "replicates where a method has one set"),
    ):
        several = sorted({m.n for m in methods if m.values and m.one_set == one_set})
        if several:
            text = f"{several[0]} to {several[-1]}" if len(several) > 1 else str(several[0])
            parts.append(one if several == [1] else f"{text} {many}")
    return "n = " + (" and ".join(parts) or "0")


def deciding(pair: Pair) -> str:
    """Write the interval that decided: `97.5 % CI [−0.3, +2.1]`; – for none."""
    if pair.decided is None:
        return NONE if pair.verdict == "undefined" else "no finite interval"
    limits, level = pair.decided
    return f"{100 * level:.4g} % CI {interval(limits, 2, sign=True)}"


def difference(pair: Pair) -> str:
    """Write the difference that decided, with its interval: `−1.39 %, 95 % CI [−3.67, +0.94]`."""
    return f"{percent(pair.percent)} {pair.unit}, {deciding(pair)}"


def p_decided(pair: Pair) -> float | None:
    """Return the adjusted p-value of what a verdict claims: of equivalence where that is shown."""
    j = pair.judgement
    return j.tost_p_adjusted if pair.verdict == "equivalent" else j.p_adjusted


def unit(summary: Summary) -> str:
    """Return the unit of differences: % of the second method's value, or percentage points."""
    return summary.pairs[0].unit if summary.pairs else "%"


def standing(rank: Rank) -> str:
    """Write how much worse a method is than the best one: `at most 1.2`, or `0.3 to 3.0`."""
    if rank.at_most is None:
        return NONE
    if not rank.at_least:
        return f"at most {number(rank.at_most, 1)}" if rank.at_most else "at most 0"
    return f"{number(rank.at_least, 1)} to {number(rank.at_most, 1)}"


def draws(value: int | None) -> str:
    """Write a number of seeds; `no number` for None."""
    return "no number" if value is None else f"{value:,}"


def versus(pair: Pair | ItemPair | Sharpness) -> str:
    """Name a comparison: `COLA-Zero vs Random`."""
    return f"{label(pair.a)} vs {label(pair.b)}"


class Table(NamedTuple):
    """Cells as text; the columns after the first `left` hold numbers and are right-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def markdown(table: Table) -> str:
    """Return an aligned markdown table."""
    cells = [[c.replace("|", "\\|") for c in row] for row in (table.header, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = ["-" * w if i < table.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def columns(summary: Summary) -> list[str]:
    """Return the headers that place a row: `model` if there are several, each differing setting."""
    several = len({summary.place(model).model for model in summary.models}) > 1
    return [*(["model"] if several else []), *summary.facets]


def place(summary: Summary, model: str) -> list[str]:
    """Return the cells under `columns` for a model."""
    known = summary.place(model)
    values = {"model": short(known.model), **known.setting}
    return [values[name] for name in columns(summary)]


def result_table(summary: Summary) -> Table:
    """Return the table of the methods: the unquantized model and controls first."""
    shared = any(m.overlap is not None for m in summary.methods)
    header = [
        *("method", "observations", f"{summary.metric_name} (mean ± std)"),
        *(f"worse than the best by, {unit(summary)}", "CV %"),
        *("change from unquantized %", "selection s", "quantization s"),
        *(["tokens shared by two sets %"] if shared else []),
    ]
    rows = []
    for model in summary.models:
        plain = summary.unquantized.get(model)
        own = []
        if plain is not None:
            own.append(["unquantized", "1 run", number(plain, 3), *[NONE] * 6])
        for control, row in summary.controls(model).items():
            value = row[summary.metric]
            change = percent(100 * (value / plain - 1)) if plain else NONE
            seconds = number(row["quant_time_sec"], 1)
            own.append(
                [control, "1 run", number(value, 3), NONE, NONE, change, NONE, seconds, NONE]
            )
        ranks = {rank.name: rank for rank in summary.ranks.get(model, ())}
        order = list(ranks)
        methods = [m for m in summary.methods if m.model == model]
        for m in sorted(methods, key=lambda m: order.index(m.name) if m.name in order else 99):
            own.append(
                [
                    *(m.name, observed(m), mean_std(m, 3)),
                    standing(ranks[m.name]) if m.name in ranks else NONE,
                    *(
                        number(m.description.cv_percent, 2),
                        percent(m.change_percent),
                        number(m.selection.mean, 2),
                    ),
                    number(m.quantization.mean, 1),
                    number(None if m.overlap is None else 100 * m.overlap, 1),
                ]
            )
        rows += [[*place(summary, model), *row[: len(header)]] for row in own]
    return Table([*columns(summary), *header], rows, left=2 + len(columns(summary)))


def comparison_table(summary: Summary, family: str) -> Table:
    """Return the table of a family's comparisons, each with the interval that decided."""
    header = ["comparison", "verdict", "decided by", f"difference, {unit(summary)}"]
    rows = [
        [
            *(*place(summary, p.model), versus(p), p.verdict, _rests_on(p)),
            *(percent(p.percent), deciding(p), p_text(p_decided(p))),
        ]
        for p in summary.pairs
        if p.family == family
    ]
    header += ["interval that decided", "p (Holm)"]
    return Table([*columns(summary), *header], rows, left=3 + len(columns(summary)))


def sizes_table(summary: Summary) -> Table:
    """Return each size of calibration set, with the largest of its group first."""
    header = ["model", "method", "windows", "seq_len", "tokens", summary.metric_name]
    header += ["worse than the largest by, %", "at most, %", "enough"]
    rows = [
        [
            *(group.model, label(group.method), f"{size.samples:,}", f"{size.seq_len:,}"),
            *(f"{size.tokens:,}", number(size.mean, 3), percent(size.worse_percent)),
            *(percent(size.at_most_percent), "yes" if size.enough else "not shown"),
        ]
        for group in summary.sizes
        for size in (replace(group.largest, enough=True), *reversed(group.sizes))
    ]
    return Table(header, rows, left=2)


def windows_table(summary: Summary) -> Table:
    """Return the tests over seeds on exactly these windows, which say nothing of other text."""
    header = [
        "comparison",
        f"difference, {unit(summary)}",
        "95 % CI",
        "p (Welch)",
        "p (Holm)",
        "d",
        "95 % CI of d",
    ]
    rows = [
        [
            *(*place(summary, p.model), versus(p), percent(p.seeds_percent)),
            interval(p.seeds_percent_ci95, 2, sign=True),
            *(p_text(p.seeds.p_value), p_text(p.seeds.p_adjusted)),
            *(number(p.seeds.cohens_d, 2), interval(p.seeds.cohens_d_ci95, 2)),
        ]
        for p in summary.pairs
        if p.seeds.diff is not None
    ]
    return Table([*columns(summary), *header], rows, left=1 + len(columns(summary)))


def _rests_on(pair: Pair) -> str:
    if pair.decided_by is None:
        return NONE
    lent = pair.text.lent if pair.decided_by == "seeds and text" and pair.text else pair.seeds.lent
    return pair.decided_by + (", lent variance" if lent else "")


def looks_table(summary: Summary) -> Table:
    """Return the table of the looks: a row per comparison and look."""
    header = ["comparison", "seeds", f"difference, {unit(summary)}", "repeated interval"]
    header += ["p", "level"]
    rows = []
    for one in summary.looks:
        for k, (n, pair) in enumerate(zip(one.ns, one.pairs, strict=True)):
            rows.append(
                [
                    *(*place(summary, pair.model), versus(pair), str(n), percent(pair.percent)),
                    interval(one.repeated(k), 2, sign=True),
                    p_text(None if pair.estimate is None else pair.estimate.p_value),
                    number(one.levels[k], 4) if one.levels else NONE,
                    number(100 * one.spent[k], 2) if one.spent else NONE,
                    one.judgement.verdict if k == one.decided else "",
                ]
            )
    header += ["α spent %", "verdict of all looks"]
    return Table([*columns(summary), *header], rows, left=1 + len(columns(summary)))


# The attribute of a budget, and its name.
SOURCES = (
    ("seed", "calibration set (seed)"),
    ("arithmetic", "arithmetic (order of a set)"),
    ("method_window", "method × window"),
    ("window", "window (shared by all methods)"),
)


def budget_table(summary: Summary) -> Table:
    """Return the variance budgets: a row per model, metric and source."""
    header = ["metric", "source of noise", "note", "σ of one draw, %", "share of the variance %"]
    rows = []
    for (metric, model), budget in summary.budgets.items():
        for key, name in SOURCES:
            source: Source = getattr(budget, key)
            share = number(None if source.share is None else 100 * source.share, 0)
            own = [source.reason or "", number(source.percent, 2), share]
            left = number(source.left_percent, 2)
            rows.append([*place(summary, model), metric, name, *own, left])
    header.append("standard error that any number of draws leaves, %")
    return Table([*columns(summary), *header], rows, left=3 + len(columns(summary)))


def metrics_table(summary: Summary) -> Table:
    """Return, for each metric of the runs, how far it tells the methods apart."""
    header = ["comparison", "metric", "difference %", "p (Welch)"]
    rows = [
        [
            *(*place(summary, s.model), versus(s), s.metric, percent(s.percent)),
            *(p_text(s.p_value), number(s.d, 2, sign=True), interval(s.d_ci95, 2, sign=True)),
        ]
        for s in summary.metrics
    ]
    header += ["in standard deviations of a seed", "95 % CI"]
    return Table([*columns(summary), *header], rows, left=2 + len(columns(summary)))


def seeds_table(summary: Summary) -> Table:
    """Return the metric of every cell: a row per seed and replicate, a column per method."""
    cells = summary.cells[summary.cells["kind"] == "cell"]
    key = ["model", "seed", *(["replicate"] if cells["replicate"].nunique() > 1 else [])]
    rows = []
    for names, own in cells.groupby(key, sort=False):
        values = {row["method"]: row[summary.metric] for _, row in own.iterrows()}
        known = [values.get(name, math.nan) for name in summary.names]
        shown = [*place(summary, str(names[0])), *map(str, names[1:])]
        rows.append([*shown, *(number(v if v == v else None, 3) for v in known)])
    heads = []
    for name in summary.names:
        several = [m for m in summary.methods if m.name == name and m.n_draws > 1]
        one = bool(several) and all(m.one_set for m in several)
        heads.append(label(name) + ": one set, in other orders" * one)
    head = [*columns(summary), *key[1:]]
    return Table([*head, *heads], rows, left=len(head))


# Logged measure of a calibration set → header, decimals, factor.
MEASURES: Mapping[str, tuple[str, int, float]] = {
    "selection.documents_used": ("documents used", 0, 1),
    "selection.documents_share": ("% of the corpus's", 2, 100),
    "selection.type_token_ratio": ("type-token ratio", 4, 1),
    "selection.entropy_bits": ("entropy, bits", 2, 1),
    "selection.kl_from_corpus_bits": ("KL from the corpus, bits", 3, 1),
    "selection.test_13gram_overlap": ("13-grams in the test split, %", 2, 100),
}


def measures_table(summary: Summary) -> Table:
    """Return the mean of each measure over a method's observations; no rows without any."""
    cells = summary.cells
    known = [c for c in MEASURES if c in cells.columns and cells[c].notna().any()]
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "")]
    means = observations(good).groupby(["model", "method"], sort=False)[known].mean()
    rows = []
    for row in means.reset_index().to_dict("records") if known else []:
        own = [
            number(None if pd.isna(row[c]) else factor * row[c], digits)
            for c in known
            for _, digits, factor in [MEASURES[c]]
        ]
        rows.append([*place(summary, row["model"]), row["method"], *own])
    header = [*columns(summary), "method", *(MEASURES[c][0] for c in known)]
    return Table(header, rows, left=1 + len(columns(summary)))


def item_table(pairs: Sequence[ItemPair]) -> Table:
    """Return the comparisons on the same downstream items; accuracies and limits in %."""
    several = len({pair.model for pair in pairs}) > 1
    header = [
        *(["model"] if several else []),
        *("comparison", "task", "metric", "items", "accuracy %", "only first", "only second"),
        *("difference (points)", "95 % CI", "p (McNemar)", "p (Holm)"),
    ]
    rows = []
    for p in pairs:
        r = p.result
        low, high = r.diff_ci95
        rows.append(
            [
                *([p.model] if several else []),
                *(versus(p), p.task, p.metric, f"{r.n_items:,}"),
                f"{number(100 * r.accuracy_a, 1)}, {number(100 * r.accuracy_b, 1)}",
                *(str(r.only_a), str(r.only_b), number(100 * r.diff, 1, sign=True)),
                interval((100 * low, 100 * high), 1, sign=True),
                *(p_text(r.p_value), p_text(p.p_adjusted) + stars(p.p_adjusted)),
            ]
        )
    return Table(header, rows, left=4 if several else 3)


def own_numbers(summary: Summary) -> dict[str, Any]:
    """Return model → method, or `A vs B` → the user's statistics by name."""
    methods, pairs = ([s for s in all_statistics() if s.of_pairs == of] for of in (False, True))
    found: dict[str, Any] = {}
    for model in summary.models:
        text = summary.texts.get(model)
        given: dict[str, dict[str, Any]] = {}
        for m in summary.of(model):
            seen = text.draws.get(m.name) if text is not None else None
            given[m.name] = {
                "values": m.values,
                "reference": summary.unquantized.get(model),
                "windows": None if seen is None else seen.rows,
                "tokens": None if text is None else text.tokens,
            }
        found[model] = {name: evaluate(methods, own) for name, own in given.items()}
        for p in (p for p in summary.pairs if p.model == model and pairs):
            a, b = (given.get(name, {"values": (), "windows": None}) for name in (p.a, p.b))
            both = {f"{k}_a": a[k] for k in ("values", "windows")}
            both |= {f"{k}_b": b[k] for k in ("values", "windows")}
            both |= {k: a.get(k, b.get(k)) for k in ("reference", "tokens")}
            found[model][p.name] = evaluate(pairs, both)
    return found


def own_table(summary: Summary) -> Table:
    """Return the user's statistics: a row per method or comparison, a column per statistic."""
    known = all_statistics()
    rows = []
    for model, found in own_numbers(summary).items():
        for name, values in found.items():
            shown = [values.get(one.name) for one in known]
            text = [v if isinstance(v, str) else number(v, 3) for v in shown]
            rows.append(
                [*place(summary, model), " vs ".join(map(label, name.split(" vs "))), *text]
            )
    header = [*columns(summary), "of", *(one.description for one in known)]
    return Table(header, rows, left=1 + len(columns(summary)))


def methods_csv(summary: Summary) -> str:
    """Return a row per method with unrounded numbers; seconds and per cent as named."""
    tests = {(p.model, p.b): p.judgement.p_adjusted for p in summary.pairs if p.family == "primary"}
    rows = []
    for m in summary.methods:
        d, where = m.description, summary.place(m.model)
        low, high = d.ci95 or (None, None)
        rows.append(
            {"model": where.model, **where.setting, "method": m.name, "n": m.n}
            | {"n_seeds": m.n_seeds, "n_draws": m.n_draws, "one_set": str(m.one_set).lower()}
            | {"mean": d.mean, "std": d.std, "cv_percent": d.cv_percent}
            | {"ci95_low": low, "ci95_high": high, "min": d.min, "max": d.max}
            | {"unquantized": summary.unquantized.get(m.model), "change_percent": m.change_percent}
            | {"selection_time_sec": m.selection.mean, "quant_time_sec": m.quantization.mean}
            | {"overlap": m.overlap, "p_holm_vs_primary": tests.get((m.model, m.name))}
        )
    return pd.DataFrame(rows, dtype=object).to_csv(index=False)
