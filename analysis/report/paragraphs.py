"""What the runs say about one comparison, in sentences made from a result and nothing else."""

from __future__ import annotations

from analysis.report.numbers import (
    NONE,
    confidence,
    decided,
    draws,
    interval,
    mean_std,
    number,
    observed,
    p_equation,
    percent,
)
from analysis.summary import Pair, Summary
from analysis.summary.pairs import BASES, text_percent
from colazero.figures import label


def paragraphs(summary: Summary, pair: Pair) -> list[str]:
    """Return the verdict, what it rests on, what more seeds would show, and the spread."""
    found = [
        " ".join(
            s for s in (_means(summary, pair), settled(summary, pair), verdict(summary, pair)) if s
        ),
        one_set(pair),
        _on_text(pair),
        _on_windows(pair),
        _planning(pair),
        _spread(summary, pair),
    ]
    return [text for text in found if text]


def _means(summary: Summary, pair: Pair) -> str:
    a, b = (summary.method(pair.model, name) for name in (pair.a, pair.b))
    text = [f"{mean_std(m, 3)} with {label(m.name)} ({observed(m)})" for m in (a, b)]
    return f"Mean {summary.metric_name} was {text[0]} and {text[1]}."


def settled(summary: Summary, pair: Pair) -> str:
    """Say on what a comparison was judged, where one of its methods has had more seeds since."""
    seen = pair.seeds.n_a, pair.seeds.n_b
    now = tuple(summary.method(pair.model, name).n for name in (pair.a, pair.b))
    if seen == now:
        return ""
    how = "settled" if pair.verdict in ("different", "equivalent") else "judged"
    return (
        f"It was {how} at an earlier look, on {seen[0]} and {seen[1]} observations; test and "
        "intervals are of these."
    )


def verdict(summary: Summary, pair: Pair) -> str:
    """Return the verdict with the interval that decided it."""
    j, margin = pair.judgement, f"±{pair.margin:g} %"
    known = f"{percent(pair.percent)} %, {decided(pair)} %"
    p = f"{p_equation(j.p_adjusted)} after Holm over {pair.tests}"
    if pair.verdict == "different" and pair.percent is not None:
        good = (pair.percent < 0) == summary.lower_is_better
        first, second = (pair.a, pair.b) if good else (pair.b, pair.a)
        small = f" The difference is also shown to lie within {margin}." if j.reason else ""
        return (
            f"**Different:** {label(first)} did better than {label(second)} ({known}, {p}).{small}"
        )
    if pair.verdict == "equivalent":
        return (
            f"**Equivalent within {margin}:** {known} lies within it "
            f"({p_equation(j.tost_p_adjusted)} after Holm over {pair.tests}, two one-sided tests), "
            f"and no difference is shown ({p_equation(j.p_adjusted)})."
        )
    if pair.verdict == "open":
        return (
            f"**Open:** {known} ({p}). Neither a difference nor equivalence within {margin} is "
            "shown so far, and seeds are left."
        )
    if pair.verdict == "inconclusive":
        return (
            f"**Inconclusive:** {known} ({p}). No difference is shown, and neither is one smaller "
            f"than {margin}.{_alone(pair)}"
        )
    return f"**No test applies:** {reason(pair)}"


def _alone(pair: Pair) -> str:
    p = pair.judgement.p_value
    if p is None or p >= pair.seeds.alpha:
        return ""
    return f" Alone it would count as a difference ({p_equation(p)}); as one of {pair.tests} not."


def reason(pair: Pair) -> str:
    """Say why there is no test. The statistics say a and b; a reader knows the methods by name."""
    r = pair.seeds
    names = {"a": label(pair.a), "b": label(pair.b)}
    if not r.n_a or not r.n_b:
        return "a method has no result."
    if r.diff is None and r.reason:
        return f"{r.reason}."
    single = [names[k] for k, n in (("a", r.n_a), ("b", r.n_b)) if n == 1]
    if single:
        return (
            f"one draw of unknown noise with {' and '.join(single)}, and no set of this model was "
            "quantized twice. Replicates (replicates=5) would tell."
        )
    return f"{r.reason}." if r.reason else "no error can be estimated."


def one_set(pair: Pair) -> str:
    """Say what the result is about where a method is one calibration set."""
    names = [label(n) for n, one in ((pair.a, pair.one_set_a), (pair.b, pair.one_set_b)) if one]
    if not names or pair.decided_by is None:
        return ""
    who = " and ".join(names)
    text = f"{who} each have" if len(names) > 1 else f"{who} has"
    found = (
        f"{text} one calibration set in all these runs. What is said is about "
        f"{'these very sets' if len(names) > 1 else 'this one set'}: replicates carry the noise "
        "of the arithmetic, and what the method would choose from another corpus is not in them."
    )
    lent = pair.seeds.lent if pair.decided_by == "seeds" else pair.text and pair.text.lent
    if lent:
        found += (
            " It was quantized once: the noise of one draw is taken from the replicates of other "
            "sets of this model."
        )
    return found


def _on_text(pair: Pair) -> str:
    text = pair.text
    if pair.decided_by == "seeds at any time":
        return f"The verdict is {BASES[pair.decided_by]}: the looks were not declared beforehand."
    if pair.decided_by == "seeds":
        why = "these runs have no per-window sums of it" if text is None else text.reason
        return f"The verdict is about exactly these windows, over seeds alone: {why}."
    if text is None or text.estimate is None:
        return ""
    unit = {"documents": "documents", "windows": "windows (the runs logged no documents)"}
    return (
        f"The verdict is over seeds and text together: {text.n_windows} windows "
        f"({text.n_tokens:,.0f} tokens) in {text.n_parts} {unit.get(text.unit, text.unit)}, "
        f"{number(text.df, 1)} degrees of freedom. It holds for other seeds (of one set: other "
        f"replicates) and for other documents of this mix of kinds and periods.{_eras(pair)}"
        f"{_trend(pair)}"
    )


def _eras(pair: Pair) -> str:
    """Give the interval for periods drawn anew; it never decides."""
    if pair.eras is None or pair.eras.ci is None:
        return ""
    limits = text_percent(pair.eras, pair.scale, pair.log)
    return (
        f" If whole periods of the text were drawn anew: {confidence(1 - pair.eras.alpha)} CI "
        f"{interval(limits, 2, sign=True)} %."
    )


def _trend(pair: Pair) -> str:
    """Say where in the text the difference is, if it changes along it."""
    trend = pair.text and pair.text.trend
    if not trend or trend.p_value >= pair.seeds.alpha or not pair.log:
        return ""
    return (
        f" The difference changes along the text: {percent(trend.first_percent)} % in its first "
        f"quarter, {percent(trend.last_percent)} % in its last (Spearman's ρ = "
        f"{number(trend.rho, 2)}, {p_equation(trend.p_value)}, not adjusted)."
    )


def _on_windows(pair: Pair) -> str:
    r = pair.seeds
    if r.test is None or r.t_stat is None:
        return ""
    name = "Welch's" if r.test == "welch" else "with lent variance,"
    start = "On exactly these windows" if pair.decided_by == "seeds and text" else "The test"
    return (
        f"{start}: {percent(pair.seeds_percent)} %, 95 % CI "
        f"{interval(pair.seeds_percent_ci95, 2, sign=True)} %, {name} t({number(r.df, 1)}) = "
        f"{number(r.t_stat, 3)}, {p_equation(r.p_value)} ({p_equation(r.p_adjusted)} after Holm); "
        f"Cohen's d = {number(r.cohens_d, 2)}, 95 % CI {interval(r.cohens_d_ci95, 2)}."
    )


def _planning(pair: Pair) -> str:
    """Say what more seeds would show, planned for the margin."""
    plan = pair.plan
    if plan is None:
        return ""
    unit = "seeds a method"
    if pair.one_set_a or pair.one_set_b:
        both = pair.one_set_a and pair.one_set_b
        unit = "replicates a set" if both else "seeds, and as many replicates of the one set,"
    margin = f"{pair.margin:g} %"
    first = (
        f"{draws(plan.difference)} {unit} would find a difference of {margin} in four suites of "
        "five"
        if plan.difference is not None
        else f"No number of {unit} would find a difference of {margin} in four suites of five"
    )
    second = (
        f"{draws(plan.equivalence)} would show equivalence within ±{margin} if there is none"
        if plan.equivalence is not None
        else f"no number would show equivalence within ±{margin} if there is none"
    )
    left = (
        f" More seeds leave a standard error of {number(plan.text_error_percent, 2)} % that the "
        "text makes; more windows would lower it."
        if plan.difference is None or plan.equivalence is None
        else ""
    )
    return (
        f"{first}; {second} (by the test that decides, at Holm's first step of {plan.tests}, if "
        f"the noise is what it was here).{left}"
    )


def _spread(summary: Summary, pair: Pair) -> str:
    a, b = (summary.method(pair.model, name) for name in (pair.a, pair.b))
    if a.one_set or b.one_set:
        return ""
    cvs = []
    for m in (a, b):
        cv = m.description.cv_percent
        cvs.append(f"{NONE if cv is None else number(cv, 2) + ' %'} ({label(m.name)})")
    text = f"Coefficients of variation over seeds: {cvs[0]}, {cvs[1]}"
    s = pair.spread
    if s.test is None:
        return f"{text}; their spread cannot be compared."
    smaller = s.p_value is not None and s.p_value < pair.seeds.alpha
    word = "a difference in spread (not adjusted)" if smaller else "no difference is shown"
    known = "" if s.sd_ratio_ci95 is None else f", {confidence(0.95)} CI {_limits(s.sd_ratio_ci95)}"
    look = " at that look" if settled(summary, pair) else ""  # of fewer seeds than the coefficients
    return (
        f"{text}; ratio of spreads{look} {number(s.sd_ratio, 2)}{known} (Bonett), Brown–Forsythe "
        f"{p_equation(s.p_value)}: {word}. Seeing one spread at half of the other takes "
        f"{s.n_for_halving} seeds a method."
    )


def _limits(limits: tuple[float, float]) -> str:
    return interval(limits, 2)
