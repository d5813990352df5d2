"""The tables and figures of docs/evidence/study.md, from the tracking store.

    python studies/study.py --suites=RUN_ID,RUN_ID [--sweep=RUN_ID,RUN_ID] [--out=docs]

`--suites`: a section each, of perplexity and of KL divergence: methods, verdicts (over text of the
kind, and next to them Welch's test over seeds on exactly these windows; n: observations of both
methods at the look that decided), where in the text methods differ, variance budget, and what a
claim of a difference would need. --out gets `images/study-perplexity.png`, every value, and
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.reading import load_suite, load_suites
from analysis.reading.looks import read_course
from analysis.report.plots import seeds, shown, windows
from analysis.report.tables import (
    Table,
    budget_table,
    columns,
    deciding,
    draws,
    interval,
    markdown,
    mean_std,
    number,
    observed,
    p_text,
    percent,
    place,
    versus,
)
from analysis.stats import compare_on_text, seeds_for_difference, seeds_for_equivalence
from analysis.stats.samples import Interval
from analysis.stats.text import stretch_labels
from analysis.summary import Options, Summary, summarize
from analysis.summary.methods import Method
from analysis.summary.pairs import design
from colazero.errors import UserError
from colazero.figures import label, page, styled

METRICS = {"perplexity": 3, "kl_divergence": 4}
"""Metric → the decimals that are shown of it."""
CLAIMS = (0.5, 1.0, 2.0, 4.3)
"""Differences of perplexity to be found, %; the last is what cola_zero's README claims."""
MORE_TEXT = (1, 4, 16)
"""Times the windows that were evaluated."""


def read(suite: str) -> list[Summary]:
    """Return the summaries of a suite, one a metric."""
    cells = load_suite(suite, allow_failed=True)
    course = read_course(suite, cells)
    return [summarize(cells, Options(metric=metric), course) for metric in METRICS]


def section(ppl: Summary, kl: Summary) -> Iterator[str]:
    """Yield the tables of a suite; those without a row are left out."""
    rows = []
    for model in ppl.models:
        where, plain = place(ppl, model), ppl.unquantized.get(model)
        rows.append([*where, "unquantized", "1 run", number(plain, 3), number(0.0, 4)])
        for one in ppl.of(model):
            values = mean_std(one, 3), mean_std(kl.method(model, one.name), 4)
            rows.append([*where, label(one.name), observed(one), *values])
    models = columns(ppl)
    yield markdown(Table([*models, "method", "observations", *METRICS], rows, 2 + len(models)))
    rows = [
        [
            *(metric, *place(ppl, p.model), versus(p), p.family),
            f"{p.seeds.n_a}, {p.seeds.n_b}",
            *(p.verdict, percent(p.percent), deciding(p), percent(p.seeds_percent)),
            *(interval(p.seeds_percent_ci95, 2, True), p_text(p.seeds.p_adjusted)),
        ]
        for metric, summary in zip(METRICS, (ppl, kl), strict=True)
        for p in sorted(summary.pairs, key=lambda p: p.family != "primary")
    ]
    head = ["metric", *models, "comparison", "family", "n", "verdict", "difference %", "interval"]
    head += ["on these windows %", "95 % CI", "p (Holm)"]
    if rows:
        yield markdown(Table(head, rows, 5 + len(models)))
        yield markdown(stretches_table(ppl))
    yield markdown(budget_table(ppl))
    claims = claims_table(ppl)
    if claims.rows:
        yield markdown(claims)


def stretches_table(summary: Summary) -> Table:
    """Return where in the text methods differ, %: a row a primary comparison, a column a stretch.

    The stretches are contiguous, in the order of the text.
    """
    rows = []
    for model, text in summary.texts.items():
        stretch = stretch_labels(text.tokens.size)
        for pair in shown(summary, model):
            delta = text.profile(pair.a, pair.b)
            means = [
                np.average(delta[stretch == k], weights=text.tokens[stretch == k])
                for k in range(stretch.max() + 1)
            ]
            changes = map(percent, 100 * np.expm1(means))
            rows.append([*place(summary, model), versus(pair), *changes])
    where = columns(summary)
    numbers = [f"stretch {k}" for k in range(1, len(rows[0]) - len(where))] if rows else []
    return Table([*where, "difference of perplexity, %", *numbers], rows, 1 + len(where))


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
            rows.append([versus(pair), f"{more * text.tokens.size:,}", *map(draws, needs)])
    return Table(header, rows)


class Components(NamedTuple):
    """Standard deviations of one draw, in the unit of the values; see `components`.

    sets: between sets, without their arithmetic; replicates: between replicates of a set.
    """

    sets: float
    sets_ci95: Interval
    replicates: float
    replicates_ci95: Interval


def components(values: ArrayLike) -> Components | None:
    """Estimate both standard deviations of a balanced one-way random model by analysis of variance.

    values: shape [sets, replicates]; None if either is under 2. Where sets differ by less than
    replicates let expect, `sets` is 0. Intervals: chi-squared for replicates; for sets that of
    Tukey (1951) and Williams (1962), which covers at least as often as it says (Burdick & Graybill
    1992, ch. 3). Both take draws to be normal.
    """
    x = np.asarray(values, dtype=np.float64)
    n, r = x.shape
    if min(n, r) < 2:
        return None
    between, within = n - 1, n * (r - 1)
    mean_square = r * float(x.mean(axis=1).var(ddof=1))
    noise = float(x.var(axis=1, ddof=1).mean())

    def sets(tail: float) -> float:
        expected = stats.f.ppf(tail, between, within) * noise
        excess = max(0.0, 1 - expected / mean_square) if mean_square else 0.0
        return math.sqrt(between * mean_square * excess / (r * stats.chi2.ppf(tail, between)))

    low, high = (math.sqrt(within * noise / stats.chi2.ppf(p, within)) for p in (0.975, 0.025))
    of_sets = math.sqrt(max(0.0, mean_square - noise) / r)
    return Components(of_sets, (sets(0.975), sets(0.025)), math.sqrt(noise), (low, high))


class Size(NamedTuple):
    """One size of calibration set, of a summary for each metric.

    parts: by metric, of the log values; None where no set was quantized twice.
    """

    windows: int
    seq_len: int
    model: str
    methods: Mapping[str, Method]
    parts: Mapping[str, Components | None]

    @property
    def tokens(self) -> int:
        return self.windows * self.seq_len

    @property
    def name(self) -> str:
        return f"{self.windows} × {self.seq_len:,}"


def sizes(suites: Sequence[str]) -> tuple[list[Size], Summary]:
    """Return a size of calibration set each, small ones first, and the summary of perplexity."""
    cells = load_suites(suites) if len(suites) > 1 else load_suite(suites[0])
    summaries = [summarize(cells, Options(metric=metric)) for metric in METRICS]
    found = []
    for model in summaries[0].models:
        own = cells[(cells["model"] == model) & (cells["kind"] == "cell")]
        logs = [
            np.log(own.pivot(index="observation", columns="replicate", values=metric).dropna())
            for metric in METRICS
        ]
        methods = [summary.of(model)[0] for summary in summaries]
        size = (int(own[name].iloc[0]) for name in ("n_calibration_samples", "seq_len"))
        parts = dict(zip(METRICS, map(components, logs), strict=True))
        found.append(Size(*size, model, dict(zip(METRICS, methods, strict=True)), parts))
    return sorted(found, key=lambda s: (s.seq_len, s.windows)), summaries[0]


def size_table(found: Sequence[Size]) -> str:
    """Return the sweep as a markdown table: a row a metric and size."""
    header = ["metric", "windows", "tokens each", "tokens", "observations", "mean ± sd of sets"]
    for what in ("sets", "orders"):
        header += [f"σ of {what} %", "95 % CI"]
    rows = []
    for metric, digits in METRICS.items():
        for s in found:
            method, p = s.methods[metric], s.parts[metric]
            size = (f"{n:,}" for n in (s.windows, s.seq_len, s.tokens))
            row = [metric, *size, observed(method), mean_std(method, digits)]
            for part in ("sets", "replicates"):
                limits = p and [100 * x for x in getattr(p, f"{part}_ci95")]
                row += [number(p and 100 * getattr(p, part), 2), interval(limits, 2)]
            rows.append(row)
    return markdown(Table(header, rows))


def neighbours_table(found: Sequence[Size], ppl: Summary) -> Table:
    """Return what more windows of one length, and longer ones of as many tokens, do to perplexity.

    Over sets and text of the kind, each comparison by itself: nothing is adjusted for their number.
    """
    header = ["comparison", "n", "difference of perplexity %", "95 % CI", "windows where worse"]
    rows = []
    for k, later in enumerate(found):
        same_length = [s for s in found[:k] if s.seq_len == later.seq_len][-1:]
        as_many = [s for s in found[:k] if s.seq_len < later.seq_len and s.tokens == later.tokens]
        for earlier in (*same_length, *as_many):
            texts = [ppl.texts.get(s.model) for s in (later, earlier)]
            if None in texts:
                continue
            (a,), (b,) = ([d.rows for d in text.draws.values()] for text in texts)
            if min(len(a), len(b)) < 2:
                continue
            tokens = texts[0].tokens
            result = compare_on_text(a, b, tokens)
            worse = int((a.mean(axis=0) > b.mean(axis=0)).sum())
            change = percent(result.percent), interval(result.percent_ci, 2, True)
            name = f"{later.name} vs {earlier.name}"
            rows.append([name, f"{len(a)}, {len(b)}", *change, f"{worse} of {tokens.size}"])
    return Table(header, rows)


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
            values = [np.array(s.methods[metric].values) for s in own]
            style = {"c": f"C{k}", "marker": "os^"[k % 3], "capsize": 2, "lw": 1}
            means = [np.mean(v) for v in values]
            error = [np.mean(v) * np.log(v).std(ddof=1) for v in values]
            tokens = [s.tokens for s in own]
            left.errorbar(tokens, means, error, label=f"windows of {length:,}", **style)
            known = [(s.tokens, s.parts[metric]) for s in own if s.parts[metric]]
            if not known:
                continue
            for line, part in (("-", "sets"), (":", "replicates")):
                sigma = 100 * np.array([getattr(p, part) for _, p in known])
                limits = 100 * np.array([getattr(p, f"{part}_ci95") for _, p in known])
                # A little aside, or the bars of one size would hide each other.
                aside = 1.06 ** (2 * k + (line == ":") - len(lengths) + 0.5)
                at = [n * aside for n, _ in known]
                face = style["c"] if part == "sets" else "none"
                right.errorbar(at, sigma, np.abs(limits.T - sigma), ls=line, mfc=face, **style)
        left.set_ylabel(metric.replace("_", " ").replace("kl", "KL"))
        right.set_ylabel("σ, %")
        right.set_ylim(bottom=-0.03 * right.get_ylim()[1])  # marks at 0 are seen whole
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
            axis.minorticks_off()
            axis.set_xlabel("calibration tokens" if metric == "kl_divergence" else "")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--suites", default="", help="run ids of suites, comma separated")
    parser.add_argument("--sweep", default="", help="run ids of the sweep's suites")
    parser.add_argument("--out", type=Path, help="folder; figures go to its images/")
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
                picture.savefig(options.out / "images" / f"study-{name}{nth}.png", dpi=150)
    if options.sweep:
        found, ppl = sizes(options.sweep.split(","))
        print(size_table(found), markdown(neighbours_table(found, ppl)), sep="\n\n")
        if options.out:
            plain = next(iter(ppl.unquantized.values()))
            picture = sweep_figure(found, plain)
            picture.savefig(options.out / "images" / "study-sweep.png", dpi=150)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
