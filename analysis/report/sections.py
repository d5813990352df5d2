"""The report in words: each comparison, the noise, what the verdicts rest on, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from analysis.reading.table import BASE, mixed_devices, names_of, setting_of
from analysis.report.answer import (
    answer,
    brief,
    count,
    judged_earlier,
    look_lines,
    named,
    post_hoc,
    reason,
    settings,
    without_result,
)
from analysis.report.tables import (
    SOURCES,
    difference,
    draws,
    evaluation_text,
    interval,
    markdown,
    mean_std,
    number,
    observed,
    p_equation,
    percent,
    result_table,
    unit,
    versus,
)
from analysis.stats.pooling import PooledModels
from analysis.summary.methods import Method
from analysis.summary.pairs import BASES, Pair
from analysis.summary.summarize import Summary
from colazero.figures import label


class Section(NamedTuple):
    """A heading and its paragraphs; `**` marks what is bold."""

    title: str
    paragraphs: list[str]


def sections(summary: Summary) -> list[Section]:
    """Return a section per primary comparison, the other pairs, what they rest on, what failed."""
    several = len(summary.models) > 1
    parts = [
        Section(versus(p) + f" on {p.model}" * several, paragraphs(summary, p))
        for p in summary.pairs
        if p.family == "primary"
    ]
    others = [p for p in summary.pairs if p.family == "exploratory"]
    if others:
        lines = [f"{versus(p)}{f' on {p.model}' * several}: {brief(p)}" for p in others]
        title = "Exploratory: all other pairs" if summary.primary else "Exploratory: all pairs"
        parts.append(Section(title, [count(summary, "exploratory"), *lines]))
    if summary.pooled:
        pooled = [_pooled(name, values) for name, values in summary.pooled.items()]
        parts.append(Section("Over all models (exploratory)", pooled))
    noise = [
        named(summary, model, text) for model in summary.models if (text := _noise(summary, model))
    ]
    if noise:
        parts.append(Section("Where the noise comes from", noise))
    parts.append(Section("What this rests on", _scope(summary)))
    failed = summary.failed
    if len(failed):
        reasons = [
            f"{names_of(failed.iloc[[i]])}: {error}" for i, error in enumerate(failed["error"])
        ]
        parts.append(Section("Runs without a result", [*without_result(summary), *reasons]))
    return parts


def results_markdown(summary: Summary, parts: Sequence[Section]) -> str:
    """Return the report in words: the answer, the table, then the sections."""
    table = markdown(result_table(summary))
    text = [f"## {s.title}\n\n" + "\n\n".join(s.paragraphs) for s in parts]
    return "\n\n".join(["# Results", *answer(summary), table, *text]) + "\n"


def paragraphs(summary: Summary, pair: Pair) -> list[str]:
    """Return the paragraphs of a primary comparison."""
    a, b = (summary.method(pair.model, name) for name in (pair.a, pair.b))
    means = [f"{mean_std(m, 3)} with {label(m.name)} ({observed(m)})" for m in (a, b)]
    first = [
        _verdict(summary, pair),
        f"Mean {summary.metric_name} was {means[0]} and {means[1]}.",
        judged_earlier(summary, pair),
    ]
    parts = [
        " ".join(filter(None, first)),
        one_set(pair),
        _rests_on(pair),
        _on_windows(summary, pair),
        _planning(pair),
        _spread(summary, pair, a, b),
    ]
    return [text for text in parts if text]


def _verdict(summary: Summary, pair: Pair) -> str:
    j, margin, known = pair.judgement, f"±{pair.margin:g} {pair.unit}", difference(pair)
    p = "" if j.p_adjusted is None else f", {p_equation(j.p_adjusted)} after Holm over {pair.tests}"
    if pair.verdict == "different" and pair.percent is not None:
        good = (pair.percent < 0) == summary.lower_is_better
        first, second = (pair.a, pair.b) if good else (pair.b, pair.a)
        small = f" The difference is also shown to lie within {margin}." if j.reason else ""
        return f"**Different:** {label(first)} did better than {label(second)} ({known}{p}).{small}"
    if pair.verdict == "equivalent":
        tost = j.tost_p_adjusted
        shown = f" ({p_equation(tost)} after Holm over {pair.tests}, two one-sided tests)"
        no = f" ({p_equation(j.p_adjusted)})" if j.p_adjusted is not None else ""
        return (
            f"**Equivalent within {margin}:** {known}{shown if tost is not None else ''}. No "
            f"difference is shown{no}."
        )
    if pair.verdict == "undefined":
        return f"**No test applies:** {reason(pair)}"
    text = f"{known}{p}. Neither a difference nor equivalence within {margin} is shown"
    if pair.verdict == "open":
        return f"**Open:** {text} so far. Seeds are left."
    alone = j.p_value is not None and j.p_value < pair.seeds.alpha
    why = (
        f" Alone it would count as a difference ({p_equation(j.p_value)}); as one of {pair.tests} "
        "it does not."
    )
    return f"**Inconclusive:** {text}.{why * alone}"


def one_set(pair: Pair) -> str:
    """Say what the result is about where a method has one calibration set."""
    names = [label(name) for name in pair.one_sets]
    if not names or pair.decided_by is None:
        return ""
    several = len(names) > 1
    text = (
        f"{' and '.join(names)} {'each have' if several else 'has'} one calibration set in all "
        f"these runs. The result holds for {'these sets' if several else 'this one set'} only: "
        "replicates measure rounding noise, not what the method would choose from another corpus."
    )
    lent = pair.seeds.lent if pair.decided_by == "seeds" else pair.text and pair.text.lent
    if lent:
        text += (
            " It was quantized once: its noise is taken from the replicates of this model's other "
            "sets."
        )
    return text


def _rests_on(pair: Pair) -> str:
    text = pair.text
    if pair.decided_by == "seeds at any time":
        said = f"The verdict is {BASES[pair.decided_by]}. It says nothing about other text."
        used = pair.at_any_time
        if used and used.n < max(used.n_a, used.n_b):
            said += (
                f" It rests on the first {used.n} observations of each method; the others are not "
                "used."
            )
        return said
    if pair.decided_by == "seeds":
        why = "these runs have no per-window sums of it" if text is None else text.reason
        return f"The verdict is over seeds alone, on exactly these windows: {why}."
    if text is None or text.estimate is None:
        return ""
    parts = f" in {text.n_parts} documents"
    if text.unit != "documents":
        parts = ", each taken as a document"
    return (
        f"The verdict is over seeds and text together: {text.n_windows} windows "
        f"({text.n_tokens:,.0f} tokens){parts}; {number(text.df, 1)} degrees of freedom. It "
        "holds for other seeds (of one set: other replicates) and for other documents of this mix "
        f"of kinds and periods.{_eras(pair)}{_trend(pair)}"
    )


def _eras(pair: Pair) -> str:
    """Give the interval for periods drawn anew; it never decides."""
    if pair.eras is None or pair.eras.ci is None:
        return ""
    limits = interval(pair.eras.percent_ci, 2, sign=True)
    level = f"{100 * (1 - pair.eras.alpha):.4g} %"
    return f" If whole periods of the text were drawn anew: {level} CI {limits} %."


def _trend(pair: Pair) -> str:
    """Say where in the text the difference is, if it changes along it."""
    trend = pair.text and pair.text.trend
    if not trend or trend.p_value >= pair.seeds.alpha:
        return ""
    return (
        f" The difference changes along the text: {percent(trend.first_percent)} % in its first "
        f"quarter, {percent(trend.last_percent)} % in its last (Spearman's ρ = "
        f"{number(trend.rho, 2)}, {p_equation(trend.p_value)}, not adjusted)."
    )


def _on_windows(summary: Summary, pair: Pair) -> str:
    r = pair.seeds
    if r.test is None or r.t_stat is None:
        return ""
    name = "Welch's" if r.test == "welch" else "with lent variance,"
    looked = any(
        (one.pair.model, one.pair.name) == (pair.model, pair.name) for one in summary.looks
    )
    return (
        f"On exactly these windows: {percent(pair.seeds_percent)} {pair.unit}, 95 % CI "
        f"{interval(pair.seeds_percent_ci95, 2, sign=True)}, {name} "
        f"t({number(r.df, 1)}) = {number(r.t_stat, 3)}, {p_equation(r.p_value)} "
        f"({p_equation(r.p_adjusted)} after Holm); Cohen's d = "
        f"{number(r.cohens_d, 2)}, 95 % CI {interval(r.cohens_d_ci95, 2)}."
        f"{' This test does not count the looks.' * looked}"
    )


def _planning(pair: Pair) -> str:
    """Say how many seeds would settle an open comparison, planned for the margin."""
    plan = pair.plan
    if plan is None or pair.verdict in ("different", "equivalent"):
        return ""
    unit = "Seeds per method"
    if pair.one_sets:
        both = len(pair.one_sets) == 2
        unit = "Replicates per set" if both else "Seeds, and replicates of the one set,"
    family = f", as one of {plan.tests} comparisons" if plan.tests > 1 else ""
    text = (
        f"{unit} needed to resolve {pair.margin:g} {pair.unit}: {draws(plan.difference)} to show a "
        f"difference, {draws(plan.equivalence)} to show equivalence (80 % power, with the noise "
        f"of these runs{family})."
    )
    if plan.difference is None or plan.equivalence is None:
        left = number(plan.text_error_percent, 2)
        text += f" The text leaves a standard error of {left} {pair.unit} that seeds do not reduce."
    return text


def _spread(summary: Summary, pair: Pair, a: Method, b: Method) -> str:
    if a.one_set or b.one_set:
        return ""
    known = [
        f"{number(cv, 2)} % ({label(m.name)})" if cv is not None else f"– ({label(m.name)})"
        for m in (a, b)
        for cv in [m.description.cv_percent]
    ]
    text = f"Coefficients of variation over seeds: {known[0]}, {known[1]}"
    s = pair.spread
    if s.test is None:
        return f"{text}; the spreads cannot be compared."
    shown = s.p_value is not None and s.p_value < pair.seeds.alpha
    word = "a difference in spread (not adjusted)" if shown else "no difference in spread is shown"
    limits = "" if s.sd_ratio_ci95 is None else f", 95 % CI {interval(s.sd_ratio_ci95, 2)}"
    look = " at that look" if judged_earlier(summary, pair) else ""
    return (
        f"{text}; ratio of spreads{look} {number(s.sd_ratio, 2)}{limits} (Bonett), Brown–Forsythe "
        f"{p_equation(s.p_value)}: {word}. Seeing one spread at half of the other takes "
        f"{s.n_for_halving} seeds per method."
    )


def _pooled(name: str, pooled: PooledModels) -> str:
    name, setting = name.removesuffix(setting_of(name)), setting_of(name)
    names = " vs ".join(map(label, name.split(" vs ")))
    limits = interval(pooled.percent_ci95, 2, sign=True)
    return (
        f"{names}{setting}: {percent(pooled.percent)} % on average over {pooled.n_models} models "
        f"on exactly these windows, 95 % CI {limits} % (random effects, "
        "Hartung–Knapp–Sidik–Jonkman). The models are not a sample of all models."
    )


def _noise(summary: Summary, model: str) -> str:
    """Say what most of the noise of a difference comes from."""
    budget = summary.budgets.get((summary.metric, model))
    if budget is None or budget.std_error_percent is None:
        return ""
    share, name = max((getattr(budget, key).share or 0.0, name) for key, name in SOURCES[:3])
    text = (
        f"On average over the methods, a difference has a standard error of "
        f"{number(budget.std_error_percent, 2)} %. {number(100 * share, 0)} % of its variance "
        f"comes from: {name}."
    )
    if budget.at_best_percent is not None and (budget.available or 0) > budget.n_windows:
        text += (
            f" With all {budget.available:,} windows of this text it would be "
            f"{number(budget.at_best_percent, 2)} %. Below that only more seeds or other text help."
        )
    if budget.arithmetic.percent is None and budget.seed.percent is not None:
        text += " Without replicates, arithmetic noise is counted with the calibration set."
    return text


def _scope(summary: Summary) -> list[str]:
    options = summary.options
    better = "lower" if summary.lower_is_better else "higher"
    per = "Differences are in % of the second method's value."
    if unit(summary) == "points":
        per = "Differences are in percentage points."
    elif summary.known.kind == "logarithm":
        per = "Differences are in % of the second method's perplexity."
    families = (
        "No primary method was named, and cola_zero is not among the runs: all pairs are "
        "exploratory."
    )
    if summary.primary:
        families = (
            f"For each model, the primary comparisons are {label(summary.primary)} against every "
            "other method. All other pairs are a second, exploratory family."
        )
    texts = {model: evaluation_text(text) for model, text in summary.texts.items()}
    evaluated = [f"{model} was evaluated on {what}." for model, what in texts.items()]
    if len(set(texts.values())) == 1 and set(texts) == set(summary.models):
        evaluated = [f"Evaluated on {next(iter(texts.values()))}."]
    facets = [
        f"The runs differ in {settings(summary)}. Each setting is analysed on its own, as each "
        "model is. Only sizes of calibration sets are compared with each other."
    ]
    return [
        f"Metric: {summary.metric_name} ({better} is better). {per} The margin is "
        f"±{options.margin:g} {unit(summary)}: smaller differences are taken not to matter."
        + "".join(f" {line}" for line in post_hoc(summary)),
        f"{families} Tests are two-sided at α = {options.alpha:g}, Holm-adjusted within a family: "
        "differences and equivalences each. The interval with a verdict is the one that decided.",
        "An observation is a calibration set that a seed drew, its replicates averaged. Where all "
        "seeds of a method have one set, an observation is a replicate of that set. The results "
        "hold for these models and settings.",
        *(facets if summary.facets else []),
        *look_lines(summary),
        *evaluated,
        *_base_models(summary),
        *filter(None, [mixed_devices(summary.cells)]),
    ]


def _base_models(summary: Summary) -> list[str]:
    """Name the types of the weights of each model that comes from a GGUF file."""
    stored = summary.cells[[BASE, "stored_as"]].dropna().drop_duplicates()
    several = summary.cells[BASE].nunique() > 1
    return [
        f"Base model{f' of {model}' * several}: {types}"
        + (
            ". Its weights had been rounded before, so levels and KL divergences are of a "
            "re-quantized model. Comparisons between methods should not depend on that."
            if "dequantized" in types
            else "."
        )
        for model, types in stored.itertuples(index=False)
        if types
    ]
