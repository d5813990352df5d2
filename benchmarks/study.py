"""The tables and figures of docs/study.md, from the tracking store.

    python benchmarks/study.py --suites=RUN_ID,RUN_ID [--sweep=RUN_ID,RUN_ID] [--out=docs]

`--suites`: a section each, of perplexity and of KL divergence: methods, verdicts (over text of the
kind, and beside them Welch's test over seeds on exactly these windows; n: observations of both
methods at the look that decided), variance budget, and what a claim of a difference would need.
--out gets `study-perplexity.png`, every value of the first of them, and `study-windows.png`, where
in the text its methods differ.
`--sweep`: suites of one method over sizes of the calibration set, taken together: a row a size,
with what the set and the arithmetic add to the spread; --out also gets `study-sweep.png`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.reading import load_suite, load_suites
from analysis.reading.looks import read_course
from analysis.report.budget import budget_table
from analysis.report.comparison_plots import windows
from analysis.report.method_plots import seeds
from analysis.report.numbers import (
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
from analysis.stats import pooled_variance, seeds_for_difference, seeds_for_equivalence
from analysis.summary import Options, Summary, summarize
from analysis.summary.planning import design

METRICS = ("perplexity", "kl_divergence")
SIZE = ("n_calibration_samples", "seq_len")
CLAIMS = (0.5, 1.0, 2.0, 4.3)
"""Differences of perplexity to be found, %; the last is what cola_zero's README claims."""
MORE_TEXT = (1, 4, 16)
"""Times the windows that were evaluated."""


class Size(NamedTuple):
    """What one size of calibration set gave: means over sets, and standard deviations in %.

    arithmetic: of one order of a set; sets: of one draw of a set beside that, 0 where the draws
    spread no more than the orders; None where no set was quantized twice.
    """

    windows: int
    seq_len: int
    observations: str
    perplexity: str
    divergence: str
    mean: float
    spread: float
    arithmetic: float | None
    sets: float | None


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
    yield markdown(budget_table(ppl))
    claims = claims_table(ppl)
    if claims.rows:
        yield markdown(claims)


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
    """Return a row a size of calibration set, small ones first, and the unquantized perplexity."""
    cells = load_suites(suites) if len(suites) > 1 else load_suite(suites[0])
    ppl, kl = (summarize(cells, Options(metric=metric)) for metric in METRICS)
    found = [_size(ppl, kl, model) for model in ppl.models]
    plain = next(iter(ppl.unquantized.values()))
    return sorted(found, key=lambda s: (s.seq_len, s.windows)), plain


def _size(ppl: Summary, kl: Summary, model: str) -> Size:
    (method,) = ppl.of(model)
    of_model = ppl.cells[(ppl.cells["model"] == model) & (ppl.cells["kind"] == "cell")]
    windows, seq_len = (int(of_model[name].iloc[0]) for name in SIZE)
    orders = pooled_variance(
        np.log(group.to_numpy()) for _, group in of_model.groupby("observation")["perplexity"]
    )
    a_set = len(of_model) / of_model["observation"].nunique()
    spread = float(np.log(method.values).std(ddof=1))
    arithmetic = None if orders is None else orders.variance
    sets = None if arithmetic is None else max(0.0, spread**2 - arithmetic / a_set)
    mean = float(np.mean(method.values))
    return Size(
        windows,
        seq_len,
        observed(method),
        mean_std(method, 3),
        mean_std(kl.method(model, method.name), 4),
        mean,
        100 * spread,
        None if arithmetic is None else 100 * arithmetic**0.5,
        None if sets is None else 100 * sets**0.5,
    )


def size_table(found: Sequence[Size]) -> str:
    """Return the sweep as a markdown table."""
    header = ["windows", "tokens each", "tokens", "observations", *METRICS]
    header += ["σ of values %", "σ of orders %", "σ of sets %"]
    rows = [
        [
            *(f"{n:,}" for n in (s.windows, s.seq_len, s.windows * s.seq_len)),
            *(s.observations, s.perplexity, s.divergence),
            *(number(x, 2) for x in (s.spread, s.arithmetic, s.sets)),
        ]
        for s in found
    ]
    return markdown(Table(header, rows, left=0))


@styled
def sweep_figure(found: Sequence[Size], plain: float) -> Figure:
    """Perplexity and its two noises over the tokens of the calibration set."""
    caption = (
        "Left: perplexity of each size of calibration set drawn at random, mean and standard "
        f"deviation over sets; unquantized: {plain:.2f}. Right: σ of one value in % of perplexity "
        "by what it comes from: the set that was drawn, or the order of its windows. Lower is "
        "better."
    )
    figure, (left, right) = page(1, 2, 2.6, caption)
    for number_, length in enumerate(sorted({s.seq_len for s in found})):
        own = [s for s in found if s.seq_len == length]
        tokens = [s.windows * s.seq_len for s in own]
        colour, marker = f"C{number_}", "os^"[number_ % 3]
        error = [s.mean * s.spread / 100 for s in own]
        name = f"windows of {length:,}"
        left.errorbar(tokens, [s.mean for s in own], error, fmt=f"{marker}-", c=colour, label=name)
        for what, style in (("sets", "-"), ("arithmetic", ":")):
            values = [getattr(s, what) for s in own]
            right.plot(tokens, values, f"{marker}{style}", c=colour, label=f"{what}, {length:,}")
    for axis, title in ((left, "perplexity"), (right, "σ, %")):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("calibration tokens")
        axis.set_ylabel(title)
        axis.legend(fontsize=8, frameon=False)
    right.set_ylim(bottom=0)
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
        if options.out and k == 0:
            for name, draw in (("perplexity", seeds), ("windows", windows)):
                picture = draw(ppl, ppl.models[0])
                picture.savefig(options.out / f"study-{name}.png", dpi=150)
    if options.sweep:
        found, plain = sizes(options.sweep.split(","))
        print(size_table(found))
        if options.out:
            sweep_figure(found, plain).savefig(options.out / "study-sweep.png", dpi=150)


if __name__ == "__main__":
    main()
