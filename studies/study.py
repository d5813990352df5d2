"""The tables and figures of docs/evidence/study.md, from the tracking store.

    python studies/study.py --suites=RUN_ID,RUN_ID [--sweep=RUN_ID,RUN_ID] [--out=docs]

`--suites`: a section each, of perplexity and of KL divergence: methods, verdicts (over text of the
kind, and next to them Welch's test over seeds on exactly these windows; n: observations of both
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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.reading import load_suite
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
)
from analysis.stats.power import seeds_for_difference, seeds_for_equivalence
from analysis.stats.text import stretch_labels
from analysis.summary import Options, Summary, summarize
from analysis.summary.pairs import design
from colazero.figures import label
from studies.sizes import METRICS, neighbours_table, size_table, sizes, sweep_figure

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
            *(p.verdict, percent(p.percent), deciding(p), percent(p.seeds_percent)),
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
