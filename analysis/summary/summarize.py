"""The table of runs, summed up: every method on its own, and every comparison that is made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from scipy import special

from analysis.reading.checks import UNQUANTIZED, RunsError
from analysis.stats import (
    Comparison,
    Description,
    PooledModels,
    compare,
    compare_spread,
    describe,
    holm_family,
    log_difference,
    pool_models,
)
from analysis.stats.samples import Interval
from analysis.stats.spread import SpreadComparison

OURS = "cola_zero"
DEFAULT_BASELINE = "gptq_default"


@dataclass(frozen=True)
class Options:
    """What is compared and how strictly.

    baseline: the method every other is held against; None: gptq_default where the runs have it.
    metric: `perplexity`, `perplexity.CORPUS`, or a downstream metric such as `arc_easy.acc`.
    margin: largest difference that does not matter, % of the unquantized model's value.
    alpha: level of the tests, two-sided, over the family of comparisons.
    """

    baseline: str | None = None
    metric: str = "perplexity"
    margin: float = 1.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 100:
            raise RunsError(f"margin={self.margin:g}: must be a percentage above 0 and under 100.")
        if not 0 < self.alpha < 0.5:
            raise RunsError(f"alpha={self.alpha:g}: must lie between 0 and 0.5.")


@dataclass(frozen=True)
class Method:
    """One method on one model. Undefined numbers are None.

    values: the metric, one value an independent observation. n_seeds: finished cells.
    deterministic: several seeds gave one observation. change_percent: of the mean from the
    unquantized model. Times: seconds, mean over the observations.
    """

    model: str
    name: str
    values: tuple[float, ...]
    n_seeds: int
    deterministic: bool
    description: Description
    change_percent: float | None
    selection_time_sec: float | None
    quant_time_sec: float | None

    @property
    def n(self) -> int:
        """Independent observations."""
        return self.description.n

    @property
    def cv_ci95(self) -> Interval | None:
        """95 % limits of the CV in %: the χ² interval of the standard deviation, over the mean."""
        cv = self.description.cv_percent
        if cv is None or self.n < 2:
            return None
        df = self.n - 1
        low, high = (math.sqrt(df / special.chdtri(df, p)) for p in (0.025, 0.975))
        return cv * low, cv * high


@dataclass(frozen=True)
class Pair:
    """Method a against method b on one model.

    scale: value that differences are shown as a percentage of; the unquantized model's, or where
    that is unknown the mean of b.
    """

    model: str
    a: str
    b: str
    result: Comparison
    spread: SpreadComparison
    scale: float

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    def percent(self, value: float | None) -> float | None:
        """Turn a difference into % of `scale`."""
        return None if value is None else 100 * value / self.scale

    def percent_interval(self, limits: Interval | None) -> Interval | None:
        """Turn the limits of a difference into % of `scale`."""
        if limits is None:
            return None
        return 100 * limits[0] / self.scale, 100 * limits[1] / self.scale


@dataclass(frozen=True)
class Summary:
    """All that the report says, as numbers. `cells` is the table it was computed from."""

    options: Options
    metric: str
    baseline: str | None
    cells: pd.DataFrame
    unquantized: Mapping[str, float]
    methods: Sequence[Method]
    pairs: Sequence[Pair]
    pooled: Mapping[str, PooledModels] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """The models, in the order of the runs."""
        return list(dict.fromkeys(self.cells["model"]))

    @property
    def names(self) -> list[str]:
        """The methods, in the order of the runs."""
        return list(dict.fromkeys(m.name for m in self.methods))

    @property
    def metric_name(self) -> str:
        """The metric as a reader sees it."""
        return self.metric.removeprefix("downstream.")

    @property
    def lower_is_better(self) -> bool:
        """Whether a small value is the good one: so for perplexities, not for accuracies."""
        return any(word in self.metric for word in ("perplexity", "ppl", "bits_per_byte"))

    @property
    def failed(self) -> pd.DataFrame:
        """The rows without a result."""
        return self.cells[self.cells["error"] != ""]

    @property
    def family(self) -> int:
        """Number of defined tests that the p-values are adjusted over."""
        return sum(pair.result.p_value is not None for pair in self.pairs)

    def of(self, model: str) -> list[Method]:
        """The methods of a model that have a result."""
        return [m for m in self.methods if m.model == model and m.values]


def summarize(cells: pd.DataFrame, options: Options) -> Summary:
    """Describe each method and compare them, from a table as `analysis.runs` reads it.

    Compared, on each model: cola_zero with every other method, and every other method with the
    baseline; p-values are Holm-adjusted over all models and pairs. RunsError for a metric or a
    baseline that the runs do not have.
    """
    metric = column_of(options.metric, cells)
    names = list(dict.fromkeys(cells.loc[cells["kind"] == "cell", "method"]))
    baseline = _baseline(options.baseline, names)
    models = list(dict.fromkeys(cells["model"]))
    good = cells[(cells["error"] == "") & cells[metric].notna()]
    rows = good[good["method"] == UNQUANTIZED]
    plain = dict(zip(rows["model"], rows[metric], strict=True))
    methods = [_method(good, m, n, metric, plain.get(m)) for m in models for n in names]
    by_name = {(m.model, m.name): m for m in methods}
    pairs = [
        _pair(by_name[model, a], by_name[model, b], plain.get(model), options)
        for model in models
        for a, b in pairs_of(names, baseline)
    ]
    return Summary(
        options, metric, baseline, cells, plain, methods, _adjusted(pairs), _pooled(pairs, by_name)
    )


def controls_of(summary: Summary, model: str) -> dict[str, pd.Series[float]]:
    """Return the rows of what was run beside the grid, such as rounding (`rtn`), by name."""
    cells = summary.cells
    rows = cells[(cells["model"] == model) & (cells["kind"] == "control") & (cells["error"] == "")]
    rows = rows[rows[summary.metric].notna()]
    return {str(row["method"]): row for _, row in rows.iterrows()}


def column_of(metric: str, cells: pd.DataFrame) -> str:
    """Return the column that `metric` names; `arc_easy` is short for downstream.arc_easy.acc."""
    for name in (metric, f"downstream.{metric}", f"downstream.{metric}.acc"):
        if name in cells.columns and (name == "perplexity" or cells[name].notna().any()):
            return name
    known = [c for c in cells.columns if str(c).startswith(("perplexity", "downstream."))]
    raise RunsError(f"metric={metric!r} is in none of the runs. Allowed: {', '.join(known)}.")


def pairs_of(methods: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Return the comparisons: cola_zero with each method, then each other one with the baseline."""
    rest = [name for name in methods if name not in (OURS, baseline)]
    pairs = []
    if OURS in methods:
        pairs += [(OURS, name) for name in rest]
        pairs += [(OURS, baseline)] if baseline not in (None, OURS) else []
    return pairs + [(name, baseline) for name in rest if baseline not in (None, OURS)]


def _baseline(wanted: str | None, methods: Sequence[str]) -> str | None:
    if wanted is None:
        return DEFAULT_BASELINE if DEFAULT_BASELINE in methods else None
    if wanted not in methods:
        raise RunsError(
            f"baseline={wanted!r} is no method of these runs. Allowed: {', '.join(methods)}."
        )
    return wanted


def _method(
    good: pd.DataFrame, model: str, name: str, metric: str, unquantized: float | None
) -> Method:
    rows = good[(good["model"] == model) & (good["method"] == name)]
    columns = list(dict.fromkeys((metric, "selection_time_sec", "quant_time_sec")))
    once = rows.groupby("observation", sort=False)[columns].mean()
    values = tuple(float(v) for v in once[metric])
    description = describe(values)
    mean = description.mean
    change = None if mean is None or not unquantized else 100 * (mean / unquantized - 1)
    return Method(
        model=model,
        name=name,
        values=values,
        n_seeds=len(rows),
        deterministic=len(rows) > 1 and len(values) == 1,
        description=description,
        change_percent=change,
        selection_time_sec=_mean(once["selection_time_sec"]),
        quant_time_sec=_mean(once["quant_time_sec"]),
    )


def _mean(values: Iterable[float]) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return math.fsum(known) / len(known) if known else None


def _pair(a: Method, b: Method, unquantized: float | None, options: Options) -> Pair:
    scale = abs(unquantized or b.description.mean or a.description.mean or 1.0)
    margin = options.margin / 100 * scale
    result = compare(a.values, b.values, margin=margin, alpha=options.alpha)
    positive = min((*a.values, *b.values), default=1.0) > 0
    spread = (
        compare_spread(a.values, b.values, alpha=options.alpha)
        if positive
        else SpreadComparison(None, a.n, b.n, "a value of 0 has no logarithm")
    )
    return Pair(a.model, a.name, b.name, result, spread, scale)


def _adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    results = holm_family([pair.result for pair in pairs])
    return [replace(pair, result=r) for pair, r in zip(pairs, results, strict=True)]


def _pooled(
    pairs: Sequence[Pair], methods: Mapping[tuple[str, str], Method]
) -> dict[str, PooledModels]:
    """Average each comparison over the models, where two or more can be compared."""
    ratios: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        a, b = methods[pair.model, pair.a].values, methods[pair.model, pair.b].values
        found = log_difference(a, b) if min((*a, *b), default=0) > 0 else None
        if found is not None:
            ratios.setdefault(pair.name, []).append(found)
    return {
        name: pool_models([r for r, _ in found], [e for _, e in found])
        for name, found in ratios.items()
        if len(found) > 1
    }
