"""From the table of runs to numbers: methods, comparisons, variance budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.reading.looks import Course
from analysis.reading.table import BASE, UNQUANTIZED, facets, setting, setting_of
from analysis.stats.budget import Source, VarianceBudget, variance_budget
from analysis.stats.pooling import PooledModels, log_difference, pool_models
from analysis.stats.samples import Interval
from analysis.stats.text import TextComparison
from analysis.summary.looks import Rank, Tracked, after_looks, ranking, track
from analysis.summary.methods import (
    Key,
    Method,
    Text,
    methods_of,
    overlaps,
    read_windows_of,
    texts_of,
)
from analysis.summary.options import (
    DEFAULT_BASELINE,
    LISTED,
    OURS,
    Known,
    Options,
    about,
    chosen,
    column_of,
    corpora_of,
    present,
)
from analysis.summary.pairs import Frame, Pair, compared, judged, leading, pairs_of
from analysis.summary.sizes import Sizes, between, sizes_of


@dataclass(frozen=True)
class Sharpness:
    """One metric on one comparison, on exactly these windows; p_value by Welch's test.

    d, d_ci95: the difference in standard deviations of a seed (Cohen's d).
    """

    metric: str
    model: str
    a: str
    b: str
    percent: float
    p_value: float
    d: float | None
    d_ci95: Interval | None


class Place(NamedTuple):
    """A model, and the values of the settings in which the runs differ."""

    model: str
    setting: Mapping[str, str]


@dataclass(frozen=True)
class Summary:
    """All numbers of the report. `cells` is the table they were computed from.

    Where its runs differ in settings, `model` means a model in one setting; `place` splits the two.

    texts: by model, the windows of the metric. budgets: by metric and model. metrics: how sharp
    each metric of the runs is in the primary comparisons. looks: what each look at them showed,
    where there was more than one or a maximum was declared. ranks: by model, its methods with the
    most that each can be worse than the best. sizes: each size of calibration set against the
    largest, where the runs have several.
    """

    options: Options
    metric: str
    known: Known
    primary: str | None
    baseline: str | None
    cells: pd.DataFrame
    unquantized: Mapping[str, float]
    methods: Sequence[Method]
    pairs: Sequence[Pair]
    texts: Mapping[str, Text] = field(default_factory=dict)
    budgets: Mapping[tuple[str, str], VarianceBudget] = field(default_factory=dict)
    metrics: Sequence[Sharpness] = ()
    pooled: Mapping[str, PooledModels] = field(default_factory=dict)
    looks: Sequence[Tracked] = ()
    ranks: Mapping[str, Sequence[Rank]] = field(default_factory=dict)
    sizes: Sequence[Sizes] = ()

    @property
    def models(self) -> list[str]:
        """Return the models, in the order of the rows."""
        return list(dict.fromkeys(self.cells["model"]))

    @property
    def facets(self) -> list[str]:
        """Return the settings in which the runs differ; each is analysed on its own."""
        return facets(self.cells)

    def place(self, model: str) -> Place:
        """Split a model's name into the model alone and the setting's values."""
        rows = self.cells[self.cells["model"] == model]
        row = rows.loc[(rows["kind"] != "cell").sort_values(kind="stable").index[0]]
        return Place(str(row[BASE]), setting(row, self.facets))

    @property
    def names(self) -> list[str]:
        """Return the methods, in the order of the rows."""
        return list(dict.fromkeys(m.name for m in self.methods))

    @property
    def metric_name(self) -> str:
        """Return the metric's name for readers."""
        return self.metric.removeprefix("downstream.")

    @property
    def lower_is_better(self) -> bool:
        """Return True if a smaller value is better."""
        return self.known.lower

    @property
    def failed(self) -> pd.DataFrame:
        """Return the rows without a result."""
        return self.cells[self.cells["error"] != ""]

    def of(self, model: str) -> list[Method]:
        """Return the methods of a model that have a result."""
        return [m for m in self.methods if m.model == model and m.values]

    def between(self, a: tuple[str, str], b: tuple[str, str]) -> TextComparison | None:
        """Compare two results over seeds and text, each a (model with its setting, method).

        This compares two settings of one model. None if they were not evaluated on the same
        windows, or without sums per window.
        """
        return between(self.texts, self.known, self.options, a, b)

    def controls(self, model: str) -> dict[str, pd.Series[float]]:
        """Return the rows of runs outside the grid, such as rounding (`rtn`), by name."""
        rows = self.cells[(self.cells["model"] == model) & (self.cells["kind"] == "control")]
        rows = rows[(rows["error"] == "") & rows[self.metric].notna()]
        return {str(row["method"]): row for _, row in rows.iterrows()}

    def method(self, model: str, name: str) -> Method:
        return next(m for m in self.methods if (m.model, m.name) == (model, name))


def summarize(cells: pd.DataFrame, options: Options, course: Course | None = None) -> Summary:
    """Describe each method and compare them, from a table as `analysis.reading` gives it.

    Sums per window and the runs' calibration sets are read from artifacts. Runs without sums per
    window are judged over seeds alone.

    Primary, on each model: the primary method against each other one; all other pairs are
    exploratory. p-values are Holm-adjusted over a family of a model. RunsError for a metric, a
    primary method or a baseline that the runs do not have. course: when the runs were looked at;
    None: once, with all of them there.
    """
    metric = column_of(options.metric, cells)
    known = about(metric, cells, options.direction)
    names = list(dict.fromkeys(cells.loc[cells["kind"] == "cell", "method"]))
    primary = chosen("primary", options.primary, OURS, names)
    baseline = chosen("baseline", options.baseline, DEFAULT_BASELINE, names)
    for name in options.names:
        chosen("names", name, "", names)
    models = list(dict.fromkeys(cells["model"]))
    there = set(zip(cells["model"], cells["method"], strict=True))
    keys = [(model, name) for model in models for name in names if (model, name) in there]
    frame = Frame(options, metric, known, keys, pairs_of(names, primary, baseline))
    read = read_windows_of(cells, corpora_of(metric, cells))

    def texts_in(rows: pd.DataFrame) -> dict[str, Text]:
        return {} if known.windows is None else texts_of(rows, read, known.windows)

    good = cells[(cells["error"] == "") & cells[metric].notna()]
    rows = good[good["method"] == UNQUANTIZED]
    plain = dict(zip(rows["model"], rows[metric], strict=True))
    methods, texts = methods_of(good, metric, keys, plain, overlaps(good)), texts_in(good)
    both = compared(methods, good, texts, frame)
    pairs = judged([one.pair for one in both], texts, options.alpha)
    looks = track(good, course, frame, texts_in, pairs) if course is not None else []
    ranks = {
        model: ranking(
            [p for p in pairs if p.model == model],
            [m for m in methods.values() if m.model == model],
            [t for t in looks if t.pair.model == model],
            options.alpha,
            known.lower,
        )
        for model in models
    }
    pairs = after_looks(pairs, looks)
    budgets = {(metric, model): b for model, b in _budgets(texts, known.log).items()}
    if known.log:
        name = metric.replace("perplexity", "kl_divergence")
        of_kl = _budgets(texts_of(good, read, "kl"), log=False)
        budgets |= {(name, model): b for model, b in of_kl.items()}
    return Summary(
        options=options,
        metric=metric,
        known=known,
        primary=primary,
        baseline=baseline,
        cells=cells,
        unquantized=plain,
        methods=list(methods.values()),
        pairs=pairs,
        texts=texts,
        budgets=budgets,
        metrics=_metrics(good, pairs, frame),
        pooled=_pooled(pairs, methods),
        looks=looks,
        ranks=ranks,
        sizes=sizes_of(good, list(methods.values()), texts, known, options),
    )


def _budgets(texts: Mapping[str, Text], log: bool) -> dict[str, VarianceBudget]:
    """Return by model its budget; percentages of the metric (`log`: of perplexity)."""
    found = {}
    for model, text in texts.items():
        budget = variance_budget(
            {m: list(d.sets) for m, d in text.draws.items()},
            text.tokens,
            documents=text.documents,
            available=text.available,
        )
        level = np.mean([d.rows.mean(axis=0).sum() for d in text.draws.values()])
        mean = float(level / text.tokens.sum())
        if log or mean > 0:
            found[model] = budget if log else _of_mean(budget, mean)
    return found


def _of_mean(budget: VarianceBudget, mean: float) -> VarianceBudget:
    """Turn % of an exponential into % of a mean per token."""

    def turned(percent: float | None) -> float | None:
        return None if percent is None else 100 * math.log1p(percent / 100) / mean

    sources: dict[str, Any] = {
        name: replace(one, percent=turned(one.percent), left_percent=turned(one.left_percent))
        for name, one in vars(budget).items()
        if isinstance(one, Source)
    }
    return replace(
        budget,
        **sources,
        std_error_percent=turned(budget.std_error_percent),
        at_best_percent=turned(budget.at_best_percent),
    )


def _metrics(good: pd.DataFrame, pairs: Sequence[Pair], frame: Frame) -> list[Sharpness]:
    """Return the sharpness of each metric in the primary comparisons (all if none is primary)."""
    if frame.metric not in LISTED:
        return []
    of_model = [[p for p in pairs if p.model == m] for m in dict.fromkeys(p.model for p in pairs)]
    wanted = [p for own in of_model for p in leading(own) if p.percent is not None]
    names = {(p.a, p.b) for p in wanted}
    grid = [one for one in frame.grid if one[:2] in names]
    by_metric = {}
    for metric in present(good):
        rows = good[good[metric].notna()]
        own = replace(frame, metric=metric, known=about(metric, good), grid=grid)
        both = compared(methods_of(rows, metric, frame.keys), rows, {}, own)
        by_metric[metric] = {(one.pair.model, one.pair.name): one.pair for one in both}
    found = []
    for p in wanted:
        for metric, known in by_metric.items():
            pair = known[p.model, p.name]
            s, percent = pair.seeds, pair.seeds_percent
            if percent is not None and s.p_value is not None:
                d = s.cohens_d, s.cohens_d_ci95
                found.append(Sharpness(metric, p.model, p.a, p.b, percent, s.p_value, *d))
    return found


def _pooled(pairs: Sequence[Pair], methods: Mapping[Key, Method]) -> dict[str, PooledModels]:
    """Average each comparison over the models of a setting, where two or more can be compared.

    Named as in `random vs cola_zero` or `random vs cola_zero [quant_bits=3]`.
    """
    ratios: dict[str, list[tuple[float, float]]] = {}
    for p in pairs:
        a, b = methods[p.model, p.a].values, methods[p.model, p.b].values
        comparable = p.percent is not None and min((*a, *b), default=0) > 0
        found = log_difference(a, b) if comparable else None
        if found is not None:
            ratios.setdefault(p.name + setting_of(p.model), []).append(found)
    return {
        name: pool_models([r for r, _ in found], [e for _, e in found])
        for name, found in ratios.items()
        if len(found) > 1
    }
