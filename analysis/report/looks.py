"""Looks at a suite: a line and numbers for each comparison, the table and the sentences of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.reading.looks import read_course
from analysis.reading.runs import load_suite, named_by, seeds_of
from analysis.report.numbers import NONE, decided, interval, number, p_equation, p_text, percent
from analysis.report.places import columns, place
from analysis.report.tables import Table
from analysis.stats import LookJudgement
from analysis.stats.sequential import expected_share
from analysis.summary import Options, Summary
from analysis.summary.looks import Tracked, track
from colazero.figures import label

CODES = {"open": 0, "different": 1, "equivalent": 2, "inconclusive": 3, "undefined": 4}
"""The verdict as a metric of MLflow's, which are numbers."""


ASSUMED = {"where nothing differs": 0.0, "where one method differs by 1 sd of a seed": 1.0}
"""What a plan assumes: words → true difference, in standard deviations of a seed."""


def expect(methods: int, looks: Sequence[int]) -> dict[str, float]:
    """Return the shares of its cells that a suite is expected to do until all is settled."""
    return {what: expected_share(methods, looks, effect) for what, effect in ASSUMED.items()}


@dataclass(frozen=True)
class Finding:
    """What a look says of two methods of a model; numbers: what is logged of it."""

    model: str
    a: str
    b: str
    verdict: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


def judge(suite_run_id: str, seeds: int) -> list[Finding]:
    """Look at the first `seeds` seeds of a suite: the primary comparisons of each model.

    It reads the store and nothing else. RunsError where nothing can be read yet.
    """
    first, options = seeds_of(suite_run_id)[:seeds], Options().or_else(named_by(suite_run_id))
    cells = load_suite(suite_run_id, allow_failed=True)
    cells = cells[cells["seed"].isna() | cells["seed"].isin(first)]
    tracked = track(cells, options, read_course(suite_run_id, cells))
    several = cells["model"].nunique() > 1
    return [_finding(one, several) for one in tracked]


def _finding(one: Tracked, several: bool) -> Finding:
    pair = one.pair
    where = f"{pair.model}: " if several else ""
    text = f"{where}{label(pair.a)} vs {label(pair.b)}: {pair.verdict}{_at(one)}; {_shown(one)}"
    return Finding(pair.model, pair.a, pair.b, pair.verdict, text, _numbers(one))


def _at(one: Tracked) -> str:
    settled = isinstance(one.judgement, LookJudgement) and one.judgement.decided_at
    return f" since {settled} seeds" if settled and settled < one.ns[-1] else ""


def _shown(one: Tracked) -> str:
    pair = one.pair
    return f"{percent(pair.percent)} %, {decided(pair)}{_p_at_level(one)}{_outlook(one)}"


def _p_at_level(one: Tracked) -> str:
    """The p of the look that decided, beside its level: of two one-sided tests if they decided."""
    pair, j = one.pair, one.judgement
    if not one.levels or pair.estimate is None:
        return ""
    if pair.verdict == "equivalent" and j.equivalence_ci_level is not None:
        p = pair.estimate.tost_p_value(pair.margin_of_estimate)
        level = (1 - j.equivalence_ci_level) / 2
        return f", {p_equation(p)} at a level of {level:.4f}, two one-sided tests"
    return f", {p_equation(pair.estimate.p_value)} at a level of {one.levels[one.decided]:.4f}"


def _outlook(one: Tracked) -> str:
    j = one.judgement
    if not isinstance(j, LookJudgement) or j.p_different is None or j.p_equivalent is None:
        return ""
    futile = " More seeds will hardly settle it." if j.futile else ""
    return (
        f"; as things stand {one.maximum} seeds show a difference with a chance of "
        f"{100 * j.p_different:.0f} %, equivalence with {100 * j.p_equivalent:.0f} %.{futile}"
    )


def _numbers(one: Tracked) -> dict[str, float]:
    """The last look's numbers; percentages of the second method's value."""
    k = len(one.ns) - 1
    last = one.pairs[k]
    found: dict[str, float | None] = {
        "verdict": CODES[one.judgement.verdict],
        "seeds": one.ns[k],
        "difference_percent": last.percent,
        "p_value": one.judgement.p_value if not one.levels else None,
        "p_over_looks": one.judgement.p_adjusted,
    }
    limits = one.repeated(k) if one.levels else last_interval(one)
    if one.levels and last.estimate is not None:
        found |= {"p_value": last.estimate.p_value}
        found |= {"level": one.levels[k], "alpha_spent": one.spent[k]}
    if limits is not None:
        found |= {"low_percent": limits[0], "high_percent": limits[1]}
    return {name: float(value) for name, value in found.items() if value is not None}


def last_interval(one: Tracked) -> tuple[float, float] | None:
    """The interval that holds at any time, % of the second method's value."""
    return one.pair.decided[0] if one.pair.decided else None


def looks_table(summary: Summary) -> Table:
    """Return the table of the looks: a row a comparison and look."""
    header = [*columns(summary), "comparison", "seeds", "difference %"]
    header += ["repeated interval %", "p", "level", "α spent %", "verdict of all looks"]
    rows = []
    for one in summary.looks:
        for k, (n, pair) in enumerate(zip(one.ns, one.pairs, strict=True)):
            p = None if pair.estimate is None else pair.estimate.p_value
            rows.append(
                [
                    *place(summary, pair.model),
                    f"{label(pair.a)} vs {label(pair.b)}",
                    str(n),
                    percent(pair.percent),
                    interval(one.repeated(k), 2, sign=True),
                    p_text(p),
                    number(one.levels[k], 4) if one.levels else NONE,
                    number(100 * one.spent[k], 2) if one.spent else NONE,
                    one.judgement.verdict if k == one.decided else "",
                ]
            )
    return Table(header, rows, left=1 + len(columns(summary)))


def look_lines(summary: Summary) -> list[str]:
    """Say which look this is and what it spends, for the whole suite; nothing of a single look."""
    if not summary.looks:
        return []
    longest = max(summary.looks, key=lambda one: len(one.ns))
    before, n = ", ".join(map(str, longest.ns[:-1])), longest.ns[-1]
    again = f", after looks at {before}" if before else ""
    start = f"This is look {len(longest.ns)}, at {n} seeds a method{again}"
    if longest.maximum is not None:
        return [
            f"{start}, of at most {longest.maximum}. The intervals and p-values of the primary "
            f"comparisons hold over all looks: α = {summary.options.alpha:g} is spent over them "
            "by Hwang, Shih & DeCani, γ = −2."
        ]
    return [
        f"{start}. No maximum was declared before the first, so that the verdicts of the primary "
        "comparisons rest on what holds whenever one looks (t e-process, over seeds, on exactly "
        f"these windows).{_nominal(summary.looks)}"
    ]


def _nominal(looks: Sequence[Tracked]) -> str:
    """The intervals that would hold had this been the only look."""
    texts = []
    for one in looks:
        last = one.pairs[-1]
        limits = one.nominal
        texts.append(f"{label(last.a)} vs {label(last.b)} {interval(limits, 2, sign=True)} %")
    return f" Not valid here, as of a single look: {'; '.join(texts)}."
