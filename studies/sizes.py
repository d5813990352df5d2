"""Random sets of several sizes: what more and longer windows do, and what the noise is made of.

`studies/study.py --sweep` prints the tables and draws the figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.reading import load_suite, load_suites
from analysis.report.tables import (
    NONE,
    Table,
    interval,
    markdown,
    mean_std,
    number,
    observed,
    percent,
)
from analysis.stats.samples import Interval
from analysis.stats.text import compare_on_text
from analysis.summary import Options, Summary, summarize
from colazero.figures import page, styled

METRICS = ("perplexity", "kl_divergence")
SIZE = ("n_calibration_samples", "seq_len")
PARTS = (("sets", True), ("replicates", False))
"""The parts of a spread, and whether their marks are filled."""


@dataclass(frozen=True)
class Components:
    """Standard deviations of one draw, in the unit of the values; see `components`.

    sets: between sets, without their arithmetic; replicates: between replicates of a set.
    """

    n_sets: int
    n_replicates: int
    sets: float
    sets_ci95: Interval
    replicates: float
    replicates_ci95: Interval


def components(values: ArrayLike) -> Components:
    """Estimate both standard deviations of a balanced one-way random model by analysis of variance.

    values: shape [sets, replicates], both at least 2. Where sets differ by less than replicates
    let expect, `sets` is 0. Intervals: chi-squared for replicates; for sets that of Tukey (1951)
    and Williams (1962), which covers at least as often as it says (Burdick & Graybill 1992, ch. 3).
    Both take draws to be normal. Raises ValueError for another shape, for values that are not
    finite, and where the replicates of every set are equal.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"values have shape {x.shape}: need finite numbers [sets, replicates]")
    n, r = x.shape
    between, within = n - 1, n * (r - 1)
    mean_square = r * float(x.mean(axis=1).var(ddof=1))
    noise = float(x.var(axis=1, ddof=1).mean())
    if noise == 0:
        raise ValueError("the replicates of every set are equal: no arithmetic to tell apart")
    ratio = mean_square / noise

    def sets(tail: float) -> float:
        excess = max(0.0, 1 - stats.f.ppf(tail, between, within) / ratio) if ratio else 0.0
        return math.sqrt(between * mean_square * excess / (r * stats.chi2.ppf(tail, between)))

    low, high = (math.sqrt(within * noise / stats.chi2.ppf(p, within)) for p in (0.975, 0.025))
    return Components(
        n_sets=n,
        n_replicates=r,
        sets=math.sqrt(max(0.0, mean_square - noise) / r),
        sets_ci95=(sets(0.975), sets(0.025)),
        replicates=math.sqrt(noise),
        replicates_ci95=(low, high),
    )


class Noise(NamedTuple):
    """One metric at one size: `text` and `mean` over sets; the rest of log values.

    spread: standard deviation over sets, a set's replicates averaged. parts: by the set that was
    drawn and by its arithmetic; None where no set was quantized twice.
    """

    text: str
    mean: float
    spread: float
    parts: Components | None


class Size(NamedTuple):
    """What one size of calibration set gave, by metric.

    text: nats summed over each window [sets, W], replicates averaged, and the tokens predicted in
    each [W]; None where runs did not log them.
    """

    windows: int
    seq_len: int
    observations: str
    of: Mapping[str, Noise]
    text: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    @property
    def tokens(self) -> int:
        return self.windows * self.seq_len

    @property
    def name(self) -> str:
        return f"{self.windows} × {self.seq_len:,}"


def sizes(suites: Sequence[str]) -> tuple[list[Size], float]:
    """Return a size of calibration set each, small ones first, and the unquantized perplexity."""
    cells = load_suites(suites) if len(suites) > 1 else load_suite(suites[0])
    summaries = {metric: summarize(cells, Options(metric=metric)) for metric in METRICS}
    ppl = summaries[METRICS[0]]
    plain = next(iter(ppl.unquantized.values()))
    found = [_size(summaries, model) for model in ppl.models]
    return sorted(found, key=lambda s: (s.seq_len, s.windows)), plain


def _size(summaries: Mapping[str, Summary], model: str) -> Size:
    ppl = summaries[METRICS[0]]
    (method,) = ppl.of(model)
    cells = ppl.cells[(ppl.cells["model"] == model) & (ppl.cells["kind"] == "cell")]
    windows, seq_len = (int(cells[name].iloc[0]) for name in SIZE)
    of = {m: _noise(summary, model, method.name, cells) for m, summary in summaries.items()}
    text = ppl.texts.get(model)
    known = text is not None and method.name in text.draws
    rows = (text.draws[method.name].rows, text.tokens) if text is not None and known else None
    return Size(windows, seq_len, observed(method), of, rows)


def _noise(summary: Summary, model: str, name: str, cells: pd.DataFrame) -> Noise:
    method = summary.method(model, name)
    by_set = cells.pivot(index="observation", columns="replicate", values=summary.metric)
    logs = np.log(by_set.dropna().to_numpy())
    return Noise(
        mean_std(method, 3 if summary.metric == METRICS[0] else 4),
        float(np.mean(method.values)),
        float(np.log(method.values).std(ddof=1)),
        components(logs) if min(logs.shape) > 1 else None,
    )


def size_table(found: Sequence[Size]) -> str:
    """Return the sweep as a markdown table: a row a metric and size."""
    header = ["metric", "windows", "tokens each", "tokens", "observations", "mean ± sd of sets"]
    for what in ("sets", "orders"):
        header += [f"σ of {what} %", "95 % CI"]
    rows = []
    for metric in METRICS:
        for s in found:
            noise = s.of[metric]
            size = (f"{n:,}" for n in (s.windows, s.seq_len, s.tokens))
            parts = [(NONE, NONE)] * 2
            if noise.parts:
                p = noise.parts
                sigmas = (p.sets, p.sets_ci95), (p.replicates, p.replicates_ci95)
                parts = [
                    (number(100 * x, 2), interval((100 * low, 100 * high), 2))
                    for x, (low, high) in sigmas
                ]
            rows.append([metric, *size, s.observations, noise.text, *chain(*parts)])
    return markdown(Table(header, rows, left=1))


def neighbours_table(found: Sequence[Size]) -> Table:
    """Return what more windows of one length, and longer ones of as many tokens, do to perplexity.

    Over sets and text of the kind, each comparison by itself: nothing is adjusted for their number.
    """
    header = ["comparison", "n", "difference of perplexity %", "95 % CI", "windows where worse"]
    rows = []
    for k, later in enumerate(found):
        same_length = [s for s in found[:k] if s.seq_len == later.seq_len][-1:]
        as_many = [s for s in found[:k] if s.seq_len < later.seq_len and s.tokens == later.tokens]
        for earlier in (*same_length, *as_many):
            if later.text is None or earlier.text is None:
                continue
            (a, tokens), (b, _) = later.text, earlier.text
            if min(len(a), len(b)) < 2:
                continue
            result = compare_on_text(a, b, tokens)
            worse = int((a.mean(axis=0) > b.mean(axis=0)).sum())
            change = percent(result.percent), interval(result.percent_ci, 2, True)
            name = f"{later.name} vs {earlier.name}"
            rows.append([name, f"{len(a)}, {len(b)}", *change, f"{worse} of {tokens.size}"])
    return Table(header, rows, left=1)


@styled
def sweep_figure(found: Sequence[Size], plain: float) -> Figure:
    """Each metric, and its two noises, over the tokens of the calibration set."""
    caption = (
        "Left: each size of calibration set drawn at random, mean and standard deviation over "
        f"sets; perplexity of the unquantized model: {plain:.2f}. Right: σ of one draw in % of the "
        "metric, filled: of the set; hollow: of the order of its windows, which is arithmetic "
        "alone; bars: 95 % intervals. Lower is better."
    )
    figure, axes = page(2, 2, 4.6, caption)
    lengths = sorted({s.seq_len for s in found})
    ticks = sorted({s.tokens for s in found})
    for metric, left, right in zip(METRICS, axes[::2], axes[1::2], strict=True):
        for k, length in enumerate(lengths):
            own = [s for s in found if s.seq_len == length]
            tokens = np.array([s.tokens for s in own])
            noises = [s.of[metric] for s in own]
            style = {"c": f"C{k}", "marker": "os^"[k % 3], "capsize": 2, "lw": 1}
            error = [noise.mean * noise.spread for noise in noises]
            means = [noise.mean for noise in noises]
            left.errorbar(tokens, means, error, label=f"windows of {length:,}", **style)
            for line, (part, filled) in zip("-:", PARTS, strict=True):
                known = [(n, noise.parts) for n, noise in zip(tokens, noises, strict=True)]
                points = [(n, 100 * getattr(p, part), p) for n, p in known if p]
                if not points:
                    continue
                limits = np.array([getattr(p, f"{part}_ci95") for *_, p in points])
                at, values = np.array([point[:2] for point in points]).T
                bars = np.abs(100 * limits.T - values)
                # A little aside, or the bars of one size would hide each other.
                at = at * 1.06 ** (2 * k + (line == ":") - len(lengths) + 0.5)
                face = style["c"] if filled else "none"
                right.errorbar(at, values, bars, ls=line, mfc=face, **style)
        left.set_ylabel(metric.replace("_", " ").replace("kl", "KL"))
        right.set_ylabel("σ, %")
        right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # marks at 0 are seen whole
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
            axis.minorticks_off()
            axis.set_xlabel("calibration tokens" if metric == METRICS[-1] else "")
    axes[0].legend(fontsize=8, frameon=False)
    return figure
