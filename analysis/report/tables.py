"""Numbers as text, and every table of the report as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from analysis.custom import all_statistics, evaluate
from analysis.reading.table import finished, observations
from analysis.stats.budget import Source
from analysis.stats.samples import Interval
from analysis.stats.verdicts import stars
from analysis.summary import Summary
from analysis.summary.items import ItemPair
from analysis.summary.looks import Rank
from analysis.summary.methods import Method, Text
from analysis.summary.pairs import Pair
from analysis.summary.summarize import Sharpness
from colazero.figures import label, short

NONE = "–"


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """Write a number with `digits` decimals and a real minus sign; – for None and NaN."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


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


def evaluation_text(text: Text) -> str:
    """Write what a model was evaluated on."""
    return f"{len(text.tokens)} windows of {text.corpus}, {text.tokens.sum():,.0f} predicted tokens"


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


def placed(summary: Summary, rows: Sequence[tuple[str, Mapping[str, str]]], left: int) -> Table:
    """Return a table of rows (model, header → cell), each with its place before it."""
    where = columns(summary)
    header = rows[0][1] if rows else ()
    cells = [[*place(summary, model), *row.values()] for model, row in rows]
    return Table([*where, *header], cells, left=len(where) + left)


Row = TypeVar("Row", Pair, Sharpness)
Cells = dict[str, Callable[[Row], str]]
"""Header → what a row has there."""


def listed(summary: Summary, found: Sequence[Row], cells: Cells[Row], left: int) -> Table:
    """Return a table with a row for each of `found`."""
    rows = [(one.model, {head: cell(one) for head, cell in cells.items()}) for one in found]
    return placed(summary, rows, left)


def result_table(summary: Summary) -> Table:
    """Return the table of the methods: the unquantized model and controls first."""
    value, worse = f"{summary.metric_name} (mean ± std)", f"worse than the best by, {unit(summary)}"
    change, shared = "change from unquantized %", "tokens shared by two sets %"
    header = ["method", "observations", value, worse, "CV %", change]
    header += ["selection s", "quantization s"]
    header += [shared] if any(m.overlap is not None for m in summary.methods) else []
    empty = dict.fromkeys(header, NONE) | {"observations": "1 run"}
    rows = []
    for model in summary.models:
        plain = summary.unquantized.get(model)
        if plain is not None:
            rows.append((model, empty | {"method": "unquantized", value: number(plain, 3)}))
        for name, control in summary.controls(model).items():
            row = {"method": name, value: number(control[summary.metric], 3)}
            row |= {"quantization s": number(control["quant_time_sec"], 1)}
            if plain:
                row[change] = percent(100 * (control[summary.metric] / plain - 1))
            rows.append((model, empty | row))
        ranks = {rank.name: rank for rank in summary.ranks.get(model, ())}
        order = list(ranks)
        methods = [m for m in summary.methods if m.model == model]
        for m in sorted(methods, key=lambda m: order.index(m.name) if m.name in order else 99):
            row = {
                "method": m.name,
                "observations": observed(m),
                value: mean_std(m, 3),
                worse: standing(ranks[m.name]) if m.name in ranks else NONE,
                "CV %": number(m.description.cv_percent, 2),
                change: percent(m.change_percent),
                "selection s": number(m.selection.mean, 2),
                "quantization s": number(m.quantization.mean, 1),
            }
            if shared in header and m.overlap is not None:
                row[shared] = number(100 * m.overlap, 1)
            rows.append((model, empty | row))
    return placed(summary, rows, left=2)


def comparison_table(summary: Summary, family: str) -> Table:
    """Return the table of a family's comparisons, each with the interval that decided."""
    cells: Cells[Pair] = {
        "comparison": versus,
        "verdict": lambda p: p.verdict,
        "decided by": _rests_on,
        f"difference, {unit(summary)}": lambda p: percent(p.percent),
        "interval that decided": deciding,
        "p (Holm)": lambda p: p_text(p_decided(p)),
    }
    return listed(summary, [p for p in summary.pairs if p.family == family], cells, 3)


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
    cells: Cells[Pair] = {
        "comparison": versus,
        f"difference, {unit(summary)}": lambda p: percent(p.seeds_percent),
        "95 % CI": lambda p: interval(p.seeds_percent_ci95, 2, sign=True),
        "p (Welch)": lambda p: p_text(p.seeds.p_value),
        "p (Holm)": lambda p: p_text(p.seeds.p_adjusted),
        "d": lambda p: number(p.seeds.cohens_d, 2),
        "95 % CI of d": lambda p: interval(p.seeds.cohens_d_ci95, 2),
    }
    return listed(summary, [p for p in summary.pairs if p.seeds.diff is not None], cells, 1)


def _rests_on(pair: Pair) -> str:
    if pair.decided_by is None:
        return NONE
    lent = pair.text.lent if pair.decided_by == "seeds and text" and pair.text else pair.seeds.lent
    return pair.decided_by + (", lent variance" if lent else "")


def looks_table(summary: Summary) -> Table:
    """Return the table of the looks: a row per comparison and look."""
    rows = []
    for one in summary.looks:
        for k, (n, pair) in enumerate(zip(one.ns, one.pairs, strict=True)):
            row = {
                "comparison": versus(pair),
                "seeds": str(n),
                f"difference, {unit(summary)}": percent(pair.percent),
                "repeated interval": interval(one.repeated(k), 2, sign=True),
                "p": p_text(None if pair.estimate is None else pair.estimate.p_value),
                "level": number(one.levels[k], 4) if one.levels else NONE,
                "α spent %": number(100 * one.spent[k], 2) if one.spent else NONE,
                "verdict of all looks": one.judgement.verdict if k == one.decided else "",
            }
            rows.append((pair.model, row))
    return placed(summary, rows, left=1)


# The attribute of a budget, and its name.
SOURCES = (
    ("seed", "calibration set (seed)"),
    ("arithmetic", "arithmetic (order of a set)"),
    ("method_window", "method × window"),
    ("window", "window (shared by all methods)"),
)


def budget_table(summary: Summary) -> Table:
    """Return the variance budgets: a row per model, metric and source."""
    rows = []
    for (metric, model), budget in summary.budgets.items():
        for key, name in SOURCES:
            source: Source = getattr(budget, key)
            share = None if source.share is None else 100 * source.share
            row = {
                "metric": metric,
                "source of noise": name,
                "note": source.reason or "",
                "σ of one draw, %": number(source.percent, 2),
                "share of the variance %": number(share, 0),
                "standard error that any number of draws leaves, %": number(source.left_percent, 2),
            }
            rows.append((model, row))
    return placed(summary, rows, left=3)


def metrics_table(summary: Summary) -> Table:
    """Return, for each metric of the runs, how far it tells the methods apart."""
    cells: Cells[Sharpness] = {
        "comparison": versus,
        "metric": lambda s: s.metric,
        "difference %": lambda s: percent(s.percent),
        "p (Welch)": lambda s: p_text(s.p_value),
        "in standard deviations of a seed": lambda s: number(s.d, 2, sign=True),
        "95 % CI": lambda s: interval(s.d_ci95, 2, sign=True),
    }
    return listed(summary, summary.metrics, cells, 2)


def seeds_table(summary: Summary) -> Table:
    """Return the metric of every cell: a row per seed and replicate, a column per method."""
    cells = summary.cells[summary.cells["kind"] == "cell"]
    key = ["model", "seed", *(["replicate"] if cells["replicate"].nunique() > 1 else [])]
    heads = {}
    for name in summary.names:
        several = [m for m in summary.methods if m.name == name and m.n_draws > 1]
        one = bool(several) and all(m.one_set for m in several)
        heads[name] = label(name) + ": one set, in other orders" * one
    rows = []
    for names, own in cells.groupby(key, sort=False):
        values = dict(zip(own["method"], own[summary.metric], strict=True))
        row = dict(zip(key[1:], map(str, names[1:]), strict=True))
        rows.append((str(names[0]), row | {heads[n]: number(values.get(n), 3) for n in heads}))
    return placed(summary, rows, left=len(key) - 1)


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
    means = observations(finished(cells)).groupby(["model", "method"], sort=False)[known].mean()
    rows = []
    for found in means.reset_index().to_dict("records") if known else []:
        row = {"method": found["method"]}
        for column in known:
            head, digits, factor = MEASURES[column]
            row[head] = number(factor * found[column], digits)
        rows.append((found["model"], row))
    return placed(summary, rows, left=1)


def item_table(pairs: Sequence[ItemPair]) -> Table:
    """Return the comparisons on the same downstream items; accuracies and limits in %."""
    several = len({pair.model for pair in pairs}) > 1
    rows = []
    for p in pairs:
        r = p.result
        low, high = r.diff_ci95
        row = {"model": p.model} if several else {}
        row |= {
            "comparison": versus(p),
            "task": p.task,
            "metric": p.metric,
            "items": f"{r.n_items:,}",
            "accuracy %": f"{number(100 * r.accuracy_a, 1)}, {number(100 * r.accuracy_b, 1)}",
            "only first": str(r.only_a),
            "only second": str(r.only_b),
            "difference (points)": number(100 * r.diff, 1, sign=True),
            "95 % CI": interval((100 * low, 100 * high), 1, sign=True),
            "p (McNemar)": p_text(r.p_value),
            "p (Holm)": p_text(p.p_adjusted) + stars(p.p_adjusted),
        }
        rows.append(row)
    header = list(rows[0]) if rows else []
    return Table(header, [list(row.values()) for row in rows], left=4 if several else 3)


def own_numbers(summary: Summary) -> dict[str, Any]:
    """Return model → method, or `A vs B` → the user's statistics by name."""
    methods, pairs = ([s for s in all_statistics() if s.of_pairs == of] for of in (False, True))
    found: dict[str, Any] = {}
    for model in summary.models:
        text = summary.texts.get(model)
        shared = {
            "reference": summary.unquantized.get(model),
            "tokens": None if text is None else text.tokens,
        }
        given: dict[str, dict[str, Any]] = {}
        for m in (m for m in summary.methods if m.model == model):
            seen = text.draws.get(m.name) if text is not None else None
            given[m.name] = {"values": m.values, "windows": None if seen is None else seen.rows}
        own = found[model] = {
            m.name: evaluate(methods, given[m.name] | shared) for m in summary.of(model)
        }
        for p in (p for p in summary.pairs if p.model == model and pairs):
            both = {
                f"{name}_{arm}": value
                for arm, method in (("a", p.a), ("b", p.b))
                for name, value in given[method].items()
            }
            own[p.name] = evaluate(pairs, both | shared)
    return found


def own_table(summary: Summary) -> Table:
    """Return the user's statistics: a row per method or comparison, a column per statistic."""
    known = all_statistics()
    rows = []
    for model, found in own_numbers(summary).items():
        for name, values in found.items():
            shown = [values.get(one.name) for one in known]
            text = [v if isinstance(v, str) else number(v, 3) for v in shown]
            names = " vs ".join(map(label, name.split(" vs ")))
            rows.append([*place(summary, model), names, *text])
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
