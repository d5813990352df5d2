"""The tables and figures of docs/study.md, from the tracking store.

    python benchmarks/study.py --suites=RUN_ID,RUN_ID [--sweep=RUN_ID,RUN_ID] [--out=docs]

`--suites`: a section each, of perplexity and of KL divergence: methods, verdicts (over text of the
kind, and beside them Welch's test over seeds on exactly these windows; n: observations of both
methods at the look that decided), where in the text methods differ, variance budget, and what a
claim of a difference would need. --out gets `study-perplexity.png`, every value, and
`study-windows.png`, where in the text methods differ; of the second suite `study-perplexity-2.png`,
and so on; of a suite of one method neither.
`--sweep`: suites of one method over sizes of the calibration set, taken together: a row a metric
and size, with what the set and the arithmetic add to the spread, and what more and longer windows
do; --out also gets `study-sweep.png`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.reading import load_suite, load_suites
from analysis.reading.looks import read_course
from analysis.report.budget import budget_table
from analysis.report.comparison_plots import shown, windows
from analysis.report.method_plots import seeds
from analysis.report.numbers import (
    NONE,
    decided,
    draws,
    interval,
    mean_std,
    number,
    observed,
    p_text,
    percent,
)
from analysis.report.places import columns, place
from analysis.report.style import label, page, styled
from analysis.report.tables import Table, markdown
from analysis.stats import (
    Components,
    compare_on_text,
    components,
    seeds_for_difference,
    seeds_for_equivalence,
)
from analysis.stats.stretches import stretch_labels
from analysis.summary import Options, Summary, summarize
from analysis.summary.planning import design

METRICS = ("perplexity", "kl_divergence")
SIZE = ("n_calibration_samples", "seq_len")
CLAIMS = (0.5, 1.0, 2.0, 4.3)
"""Differences of perplexity to be found, %; the last is what cola_zero's README claims."""
MORE_TEXT = (1, 4, 16)
"""Times the windows that were evaluated."""
PARTS = (("sets", True), ("replicates", False))
"""The parts of a spread, and whether their marks are filled."""


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


def read(suite: str) -> list[Summary]:
    """Return the summaries of a suite, one a metric."""
    cells = load_suite(suite, allow_failed=True)
    course = read_course(suite, cells)
    return [summarize(cells, Options(metric=metric), course) for metric in METRICS]


def section(ppl: Summary, kl: Summary) -> Iterator[str]:
    """Yield the tables of a suite; those without a row are left out."""
    rows = []
    for model in ppl.models:
        plain = ppl.unquantized.get(model)
        where = place(ppl, model)
        rows.append([*where, "unquantized", "1 run", number(plain, 3), number(0.0, 4)])
        for one in ppl.of(model):
            other = kl.method(model, one.name)
            values = mean_std(one, 3), mean_std(other, 4)
            rows.append([*where, label(one.name), observed(one), *values])
    models = columns(ppl)
    left = 2 + len(models)
    yield markdown(Table([*models, "method", "observations", *METRICS], rows, left=left))
    rows = [
        [
            *(metric, *place(ppl, p.model), f"{label(p.a)} vs {label(p.b)}", p.family),
            f"{p.seeds.n_a}, {p.seeds.n_b}",
            *(p.verdict, percent(p.percent), decided(p), percent(p.seeds_percent)),
            *(interval(p.seeds_percent_ci95, 2, True), p_text(p.seeds.p_adjusted)),
        ]
        for metric, summary in zip(METRICS, (ppl, kl), strict=True)
        for p in sorted(summary.pairs, key=lambda p: p.family != "primary")
    ]
    head = ["metric", *models, "comparison", "family", "n", "verdict", "difference %", "interval"]
    head += ["on these windows %", "95 % CI", "p (Holm)"]
    if rows:
        yield markdown(Table(head, rows, left=5 + len(models)))
        yield markdown(stretches_table(ppl))
    yield markdown(budget_table(ppl))
    claims = claims_table(ppl)
    if claims.rows:
        yield markdown(claims)


def stretches_table(summary: Summary) -> Table:
    """Return where in the text methods differ, %: a row a primary comparison, a column a stretch.

    The stretches are those that count as independent, in the order of the text.
    """
    rows = []
    for model, text in summary.texts.items():
        stretch = stretch_labels(None, text.tokens.size)
        for pair in shown(summary, model):
            delta = text.profile(pair.a, pair.b)
            means = [
                np.average(delta[stretch == k], weights=text.tokens[stretch == k])
                for k in range(stretch.max() + 1)
            ]
            name = f"{label(pair.a)} vs {label(pair.b)}"
            rows.append([*place(summary, model), name, *map(percent, 100 * np.expm1(means))])
    where = columns(summary)
    numbers = [f"stretch {k}" for k in range(1, len(rows[0]) - len(where))] if rows else []
    return Table([*where, "difference of perplexity, %", *numbers], rows, left=1 + len(where))


def claims_table(summary: Summary) -> Table:
    """Return the seeds a method that a primary comparison needs, by text and by what is claimed.

    80 % power at Holm's first step, by the rule that decides: the noise of seeds as it was seen,
    that of method x window falling with the windows evaluated.
    """
    header = ["comparison", "windows", *(f"a difference of {d:g} %" for d in CLAIMS)]
    header.append(f"equivalence within {summary.options.margin:g} %")
    rows = []
    for pair in (p for p in summary.pairs if p.family == "primary"):
        text = summary.texts.get(pair.model)
        known = design(pair, text)
        if known is None or text is None or pair.decided_by != "seeds and text":
            continue
        for more in MORE_TEXT:
            planned = replace(known, text_error=known.text_error / math.sqrt(more))
            needs = [seeds_for_difference(math.log1p(d / 100), planned) for d in CLAIMS]
            needs.append(seeds_for_equivalence(pair.margin_of_estimate, planned))
            name = f"{label(pair.a)} vs {label(pair.b)}"
            rows.append([name, f"{more * text.tokens.size:,}", *map(draws, needs)])
    return Table(header, rows, left=1)


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
        components(logs) if logs.shape[1] > 1 else None,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--suites", default="", help="run ids of suites, comma separated")
    parser.add_argument("--sweep", default="", help="run ids of the sweep's suites")
    parser.add_argument("--out", type=Path, help="folder for the figure")
    options = parser.parse_args()
    if not options.suites and not options.sweep:
        parser.error("name suites with --suites=RUN_ID,… or --sweep=RUN_ID,…")
    for k, suite in enumerate(filter(None, options.suites.split(","))):
        ppl, kl = read(suite)
        print(f"### Suite `{suite}`", *section(ppl, kl), sep="\n\n", end="\n\n")
        if options.out and ppl.pairs:
            nth = f"-{k + 1}" if k else ""
            for name, draw in (("perplexity", seeds), ("windows", windows)):
                picture = draw(ppl, ppl.models[0])
                picture.savefig(options.out / f"study-{name}{nth}.png", dpi=150)
    if options.sweep:
        found, plain = sizes(options.sweep.split(","))
        print(size_table(found), markdown(neighbours_table(found)), sep="\n\n")
        if options.out:
            sweep_figure(found, plain).savefig(options.out / "study-sweep.png", dpi=150)


if __name__ == "__main__":
    main()
