"""The first part of a report: which method to use, one line per verdict, and the caveats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from analysis.reading.table import names_of
from analysis.report.tables import difference, interval, number, p_decided, p_equation, versus
from analysis.report.tables import percent as signed
from analysis.stats.verdicts import Verdict
from analysis.summary.looks import Rank
from analysis.summary.pairs import BASES, Pair
from analysis.summary.sizes import Size, Sizes
from analysis.summary.summarize import Summary
from colazero.figures import label

WORDS: tuple[Verdict, ...] = ("different", "equivalent", "open", "inconclusive", "undefined")


def answer(summary: Summary) -> list[str]:
    """Say how much text is enough, if the runs tell, and which method to use: paragraphs."""
    best = [
        named(summary, model, text) for model in summary.models if (text := _best(summary, model))
    ]
    return [*(enough(summary, sizes) for sizes in summary.sizes), *best]


def enough(summary: Summary, sizes: Sizes) -> str:
    """Say which size of calibration set is enough: the least within the margin of the largest."""
    metric, largest, least = summary.metric_name, _size(sizes.largest), sizes.least
    best = sizes.best
    # Of each length the largest is tested first, and no smaller one if it fails: the bound of one
    # that was not tested would contradict "not shown".
    tested = {size.seq_len: size for size in sizes.sizes}.values()
    known = [size for size in tested if size.at_most_percent is not None]
    lower = f"{number(-(best.worse_percent or 0.0), 1)} %"
    text = f"{label(sizes.method)} on {sizes.model}: "
    bound = best.at_most_percent or 0.0
    poor = bound < 0
    if poor:  # first, so that nobody takes "enough" for "good"
        text += (
            f"the largest size, {largest}, is not the best. With {_size(best)}, mean {metric} is "
            f"{lower} lower (at least {number(-bound, 2)} %). "
        )
    if least and poor:
        text += f"To match the largest, {_size(least)} are enough."
    elif least:
        text += f"{_size(least)} are enough. Their {metric} is {_above(least)} {largest}."
    elif known:
        closest = min(known, key=lambda size: size.at_most_percent or 0.0)
        text += (
            f"no smaller size is shown to be within {summary.options.margin:g} % of {largest}. "
            f"{_size(closest)} come closest: their {metric} is {_above(closest)} the largest. "
            "Fewer windows are tested only once more windows of their length have passed."
        )
    else:
        return (
            f"{text}these runs do not show how much text is enough. That takes several seeds "
            "per size, evaluated on the same windows."
        )
    if best is not sizes.largest and not poor:
        text += f" The lowest mean is that of {_size(best)}, {lower} below the largest."
    level = f"{100 * sizes.level:.4g} %"
    return f"{text} (One-sided bounds, {level} confidence, {BASES['seeds and text']}.)"


def _above(size: Size) -> str:
    most = size.at_most_percent or 0.0
    return f"at most {_bound(most)} % above that of" if most > 0 else "below that of"


def _size(size: Size) -> str:
    return f"{size.samples:,} × {size.seq_len:,} tokens"


def _best(summary: Summary, model: str) -> str:
    """Rank the methods: the most that each can be worse than the best one (Hsu 1984)."""
    ranks = list(summary.ranks.get(model, ()))
    if not ranks:
        known = summary.of(model)
        if not known or summary.facets:  # one method in several settings: the table shows them
            return ""
        return f"{label(known[0].name)} is the only method with a result: there is no choice."
    ranked = sorted((r for r in ranks if r.at_most is not None), key=lambda r: r.at_most or 0.0)
    left = [rank for rank in ranks if rank.at_most is None]
    why = "one draw has unknown noise"
    if ranks[0].basis == "seeds at any time":
        why = "the test that holds at any look needs more seeds"
    if not ranked:
        return (
            f"These runs do not show which method is best: {why}. The best mean "
            f"{summary.metric_name} is that of {_name(summary, model, ranks[0])}."
        )
    text = _ranked(summary, model, ranked, "the best of those ranked" if left else "the best")
    if left:
        text.append(f"{_and([_name(summary, model, r) for r in left])} cannot be ranked: {why}.")
    sure = f"{100 * (1 - summary.options.alpha):.4g} %"
    basis = f", {BASES[ranked[0].basis]}" if ranked[0].basis else ""
    return f"{' '.join(text)} (All bounds together: {sure} confidence{basis}.)"


def _ranked(summary: Summary, model: str, ranked: Sequence[Rank], best: str) -> list[str]:
    """Return the sentences about methods with a bound, the smallest bound first."""
    first, margin = ranked[0], summary.options.margin
    within = [r for r in ranked if not r.at_least and (r.at_most or 0.0) < margin]
    rest = [r for r in ranked[1:] if not r.at_least]
    name = _name(summary, model, first)
    if len(within) > 1:
        names = _and([_name(summary, model, r) for r in within], "or")
        most = _bound(max(r.at_most or 0.0 for r in within))
        text = [f"Use {names}: each is at most {most} {first.unit} worse than {best}."]
        rest = [r for r in rest if r not in within]
    elif not first.at_most and _differs(summary, model, ranked):
        text = [f"Use {name}: it is {best if ' ' in best[4:] else 'the best of these methods'}."]
    elif first in within:
        text = [f"Use {name}: it is {_worse(first)} worse than {best}."]
    else:
        text = [
            f"These runs do not show which method is best. The safest choice is {name}: it is "
            f"{_worse(first)} worse than {best}."
        ]
    for group in (rest, [r for r in ranked if r.at_least]):
        words = [f"{_name(summary, model, r)} is {_worse(r)}" for r in group]
        text += [f"{', '.join(words)} worse."] if words else []
    return text


def _differs(summary: Summary, model: str, ranked: Sequence[Rank]) -> bool:
    """Return True if the first method's comparison with each other one says `different`.

    Bounds on "worse than the best" are one-sided: a bound of 0 alone would name a best method where
    the two-sided comparison below it is inconclusive.
    """
    others = {rank.name for rank in ranked[1:]}
    pairs = [p for p in summary.pairs if p.model == model and ranked[0].name in (p.a, p.b)]
    return all(p.verdict == "different" for p in pairs if {p.a, p.b} & others)


def _name(summary: Summary, model: str, rank: Rank) -> str:
    one = summary.method(model, rank.name).one_set
    return label(rank.name) + (" (its one set)" if one else "")


def _worse(rank: Rank) -> str:
    most = f"at most {_bound(rank.at_most)} {rank.unit}"
    return f"at least {number(rank.at_least, 1)} and {most}" if rank.at_least else most


def _bound(value: float | None) -> str:
    """Write a bound with one decimal; a small one is not rounded to 0."""
    return number(max(0.1, value or 0.0), 1)


def _and(names: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def named(summary: Summary, model: str, text: str) -> str:
    """Return `text` with the model before it, where there are several."""
    return f"{model}: {text}" if len(summary.models) > 1 else text


def key_lines(summary: Summary) -> list[str]:
    """Return the lines for a terminal: the verdicts counted, then one per primary comparison.

    Without a primary method there is a line for each comparison with the baseline, without either
    for each comparison.
    """
    lines = [count(summary, "primary")] if summary.primary else []
    for pair in summary.pairs:
        instead = not summary.primary and summary.baseline in (None, pair.b)
        if pair.family == "primary" or instead:
            text = f"{versus(pair)}: {brief(pair)} {judged_earlier(summary, pair)}"
            lines.append(named(summary, pair.model, text.rstrip()))
    if any(pair.family == "exploratory" for pair in summary.pairs):
        lines.append(count(summary, "exploratory"))
    lines += look_lines(summary)
    if summary.facets:
        lines.append(f"Each setting on its own: {settings(summary)}.")
    return [*lines, *post_hoc(summary), *without_result(summary)]


def count(summary: Summary, family: str) -> str:
    """Count the verdicts of a family over all models."""
    pairs = [p for p in summary.pairs if p.family == family]
    by_verdict = Counter(p.verdict for p in pairs)
    words = ", ".join(f"{by_verdict[word]} {word}" for word in WORDS if by_verdict[word])
    what = f"exploratory, all {'other ' * bool(summary.primary)}pairs"
    if family == "primary" and summary.primary:
        what = f"{label(summary.primary)} against each other method"
    return f"{len(pairs)} comparison{'s' * (len(pairs) != 1)} ({what}): {words or 'none'}."


def brief(pair: Pair) -> str:
    """Return a verdict in one line, with the interval that decided."""
    if pair.verdict == "undefined":
        change = "" if pair.percent is None else f" ({signed(pair.percent)} {pair.unit})"
        return f"no test applies{change}: {reason(pair)}"
    p = p_decided(pair)
    known = f", {p_equation(p)} after Holm" if p is not None else ""
    about = " This holds for the one set only." if pair.one_sets else ""
    return f"{pair.verdict} ({difference(pair)}{known}).{about}"


def judged_earlier(summary: Summary, pair: Pair) -> str:
    """Say which observations a verdict rests on, where a method has had more since."""
    seen = pair.seeds.n_a, pair.seeds.n_b
    if seen == tuple(summary.method(pair.model, name).n for name in (pair.a, pair.b)):
        return ""
    how = "settled" if pair.verdict in ("different", "equivalent") else "judged"
    return (
        f"It was {how} at an earlier look, on {seen[0]} and {seen[1]} observations; the test and "
        "the intervals are of these."
    )


def reason(pair: Pair) -> str:
    """Return why there is no test, with the methods' names instead of a and b."""
    r = pair.seeds
    if not r.n_a or not r.n_b:
        return "a method has no result."
    if r.diff is None and r.reason:
        return f"{r.reason}."
    single = [label(name) for name, n in ((pair.a, r.n_a), (pair.b, r.n_b)) if n == 1]
    if single:
        have = "have one draw each" if len(single) > 1 else "has one draw"
        return (
            f"{_and(single)} {have} of unknown noise, and no set of this model was quantized "
            "twice. Run more seeds, or replicates=5."
        )
    known = r.reason or (pair.at_any_time and pair.at_any_time.reason)
    return f"{known}." if known else "no error can be estimated."


def look_lines(summary: Summary) -> list[str]:
    """Say which look this is and how the error rate is kept; nothing of a single planned look."""
    if not summary.looks:
        return []
    longest = max(summary.looks, key=lambda one: len(one.ns))
    before, n = ", ".join(map(str, longest.ns[:-1])), longest.ns[-1]
    unequal = any(p.seeds.n_a != p.seeds.n_b for one in summary.looks for p in one.pairs[-1:])
    start = f"This is look {len(longest.ns)}, at {'up to ' * unequal}{n} seeds per method"
    start += f" (earlier: {before})" if before else ""
    if longest.maximum is not None:
        early = [
            f"{named(summary, one.pair.model, versus(one.pair))} {signed(value)} {one.pair.unit}"
            for one in summary.looks
            if (value := one.unbiased) is not None
        ]
        text = (
            f"{start}, of at most {longest.maximum}. Intervals and p-values of the primary "
            f"comparisons hold over all looks: α = {summary.options.alpha:g} is spent over them "
            "(Hwang, Shih & DeCani, γ = −2). Those of other pairs do not count the looks."
        )
        if early:
            text += f" An early stop overstates; median-unbiased estimates: {'; '.join(early)}."
        return [text]
    why = f"{start}. No maximum was declared before the first look."
    if not before:
        why = (
            "A suite with these cells was interrupted after it showed values, and it had planned "
            f"another number of seeds than the {n} here: these values may have chosen it."
        )
    nominal = [
        named(
            summary,
            one.pair.model,
            f"{versus(one.pair)} {interval(one.nominal, 2, sign=True)} {one.pair.unit}",
        )
        for one in summary.looks
    ]
    return [
        f"{why} So the primary verdicts rest on a test that holds at any number of looks "
        "(t e-process). It is over seeds, on exactly these windows. Intervals of a single planned "
        f"look, not valid here: {'; '.join(nominal)}. Those of other pairs do not count the looks."
    ]


def without_result(summary: Summary) -> list[str]:
    """Name the runs without a result; nothing where there is none."""
    failed = summary.failed
    if not len(failed):
        return []
    fewer = (failed["kind"] == "cell").any()
    rest = " The comparisons rest on fewer runs than planned." if fewer else ""
    have = "has no result and is" if len(failed) == 1 else "have no result and are"
    return [
        f"{len(failed)} of {len(summary.cells)} runs {have} left out: {names_of(failed)}.{rest}"
    ]


def post_hoc(summary: Summary) -> list[str]:
    """Name the options that are not the suite's own; nothing where there is none."""
    changed = summary.options.post_hoc
    if not changed:
        return []
    return [
        f"Post hoc: {', '.join(changed)}. The suite's own analysis uses another, and this one was "
        "chosen when the results were known."
    ]


def settings(summary: Summary) -> str:
    """Name the settings that differ with their values, as in `quant_bits (3, 4)`."""
    places = [summary.place(model).setting for model in summary.models]
    values = {name: dict.fromkeys(place[name] for place in places) for name in summary.facets}
    return ", ".join(f"{name} ({', '.join(known)})" for name, known in values.items())
