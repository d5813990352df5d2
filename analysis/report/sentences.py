"""Every sentence of the report: the answer, each comparison, what it rests on, what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from analysis.reading.table import BASE, mixed_devices, names_of, setting_of
from analysis.report.tables import (
    SOURCES,
    deciding,
    draws,
    interval,
    markdown,
    mean_std,
    number,
    observed,
    p_decided,
    p_equation,
    percent,
    result_table,
    unit,
    versus,
)
from analysis.stats import PooledModels, Verdict
from analysis.summary import Method, Pair, Summary
from analysis.summary.looks import Rank
from analysis.summary.pairs import BASES, text_percent
from colazero.figures import label

WORDS: tuple[Verdict, ...] = ("different", "equivalent", "open", "inconclusive", "undefined")


class Section(NamedTuple):
    """A heading and its paragraphs; `**` marks what is bold."""

    title: str
    paragraphs: list[str]


def answer(summary: Summary) -> list[str]:
    """Say which method to use and how sure that is: one paragraph per model (and setting)."""
    return [
        _named(summary, model, text) for model in summary.models if (text := _best(summary, model))
    ]


def _best(summary: Summary, model: str) -> str:
    """Rank the methods: the most that each can be worse than the best one (Hsu 1984)."""
    ranks = list(summary.ranks.get(model, ()))
    if not ranks:
        known = summary.of(model)
        name = label(known[0].name) if known else ""
        return f"{name} is the only method with a result: there is no choice." if known else ""
    ranked = [rank for rank in ranks if rank.at_most is not None]
    if not ranked:
        return (
            f"{_name(summary, model, ranks[0])} has the best mean {summary.metric_name}, but no "
            "test applies: one draw has unknown noise."
        )
    ranked.sort(key=lambda rank: rank.at_most or 0.0)
    first, margin = ranked[0], summary.options.margin
    within = [r for r in ranked if not r.at_least and (r.at_most or 0.0) < margin]
    rest = [r for r in ranked[1:] if not r.at_least]
    name = _name(summary, model, first)
    if len(within) > 1:
        names = _and([_name(summary, model, r) for r in within])
        most = number(max(r.at_most or 0.0 for r in within), 1)
        text = [f"Use any of {names}: each is at most {most} {first.unit} worse than the best."]
        rest = [r for r in rest if r not in within]
    elif not first.at_most:
        text = [f"Use {name}: it is the best of these methods."]
    elif first in within:
        text = [f"Use {name}: it is {_worse(first)} worse than the best."]
    else:
        text = [
            f"These runs do not show which method is best. The safest choice is {name}: it is "
            f"{_worse(first)} worse than the best."
        ]
    for group in (rest, [r for r in ranked if r.at_least]):
        words = [f"{_name(summary, model, r)} is {_worse(r)}" for r in group]
        text += [f"{', '.join(words)} worse."] if words else []
    left = [_name(summary, model, rank) for rank in ranks if rank.at_most is None]
    if left:
        text.append(f"{_and(left)} cannot be ranked: one draw has unknown noise.")
    sure = f"{100 * (1 - summary.options.alpha):.4g} %"
    basis = f", {BASES[first.basis]}" if first.basis else ""
    return f"{' '.join(text)} (All bounds together: {sure} confidence{basis}.)"


def _name(summary: Summary, model: str, rank: Rank) -> str:
    one = summary.method(model, rank.name).one_set
    return label(rank.name) + (" (its one set)" if one else "")


def _worse(rank: Rank) -> str:
    most = f"at most {number(rank.at_most, 1)} {rank.unit}"
    return f"at least {number(rank.at_least, 1)} and {most}" if rank.at_least else most


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _named(summary: Summary, model: str, text: str) -> str:
    return f"{model}: {text}" if len(summary.models) > 1 else text


def key_lines(summary: Summary) -> list[str]:
    """Return the report in a terminal: the verdicts counted, a line per primary comparison.

    Without a primary method there is a line for each comparison with the baseline, without either
    for each comparison.
    """
    lines = [count(summary, "primary")] if summary.primary else []
    for pair in summary.pairs:
        instead = not summary.primary and summary.baseline in (None, pair.b)
        if pair.family == "primary" or instead:
            text = f"{versus(pair)}: {brief(summary, pair)} {judged_earlier(summary, pair)}"
            lines.append(_named(summary, pair.model, text.rstrip()))
    if any(pair.family == "exploratory" for pair in summary.pairs):
        lines.append(count(summary, "exploratory"))
    lines += look_lines(summary)
    if summary.facets:
        lines.append(f"Each setting on its own: {settings(summary)}.")
    lines += _post_hoc(summary)
    return [*lines, *_failed(summary)]


def count(summary: Summary, family: str) -> str:
    """Count the verdicts of a family over all models."""
    pairs = [p for p in summary.pairs if p.family == family]
    by_verdict = Counter(p.verdict for p in pairs)
    words = ", ".join(f"{by_verdict[word]} {word}" for word in WORDS if by_verdict[word])
    what = f"exploratory, all {'other ' * bool(summary.primary)}pairs"
    if family == "primary" and summary.primary:
        what = f"{label(summary.primary)} against each other method"
    return f"{len(pairs)} comparison{'s' * (len(pairs) != 1)} ({what}): {words or 'none'}."


def brief(summary: Summary, pair: Pair) -> str:
    """Return a verdict in one line, with the interval that decided."""
    if pair.decided is None:
        change = "" if pair.percent is None else f" ({percent(pair.percent)} {pair.unit})"
        return f"no test applies{change}: {reason(pair)}"
    p = p_decided(pair)
    known = f", {p_equation(p)} after Holm" if p is not None else ""
    about = " This holds for the one set only." if pair.one_set_a or pair.one_set_b else ""
    return f"{pair.verdict} ({percent(pair.percent)} {pair.unit}, {deciding(pair)}{known}).{about}"


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
        return (
            f"{' and '.join(single)} has one draw of unknown noise, and no set of this model was "
            "quantized twice. Run replicates (replicates=5) to get a test."
        )
    return f"{r.reason}." if r.reason else "no error can be estimated."


def look_lines(summary: Summary) -> list[str]:
    """Say which look this is and how the error rate is kept; nothing of a single look."""
    if not summary.looks:
        return []
    longest = max(summary.looks, key=lambda one: len(one.ns))
    before, n = ", ".join(map(str, longest.ns[:-1])), longest.ns[-1]
    start = f"This is look {len(longest.ns)}, at {n} seeds per method"
    start += f", after looks at {before}" if before else ""
    if longest.maximum is not None:
        early = [
            f"{_named(summary, one.pair.model, versus(one.pair))} {percent(value)} {one.pair.unit}"
            for one in summary.looks
            if (value := one.unbiased) is not None
        ]
        text = (
            f"{start}, of at most {longest.maximum}. Intervals and p-values of the primary "
            f"comparisons hold over all looks: α = {summary.options.alpha:g} is spent over them "
            "(Hwang, Shih & DeCani, γ = −2)."
        )
        if early:
            text += f" An early stop overstates; median-unbiased estimates: {'; '.join(early)}."
        return [text]
    nominal = [
        _named(
            summary,
            one.pair.model,
            f"{versus(one.pair)} {interval(one.nominal, 2, sign=True)} {one.pair.unit}",
        )
        for one in summary.looks
    ]
    return [
        f"{start}. No maximum was declared before the first look. So the primary verdicts rest on "
        "a test that holds at any number of looks (t e-process). It is over seeds, on exactly "
        f"these windows. Intervals of a single look, not valid here: {'; '.join(nominal)}."
    ]


def _failed(summary: Summary) -> list[str]:
    failed = summary.failed
    if not len(failed):
        return []
    fewer = (failed["kind"] == "cell").any()
    rest = " The comparisons rest on fewer runs than planned." if fewer else ""
    return [
        f"{len(failed)} of {len(summary.cells)} runs have no result and are left out: "
        f"{names_of(failed)}.{rest}"
    ]


def _post_hoc(summary: Summary) -> list[str]:
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


def sections(summary: Summary) -> list[Section]:
    """Return a section per primary comparison, the other pairs, what they rest on, what failed."""
    parts = []
    for pair in summary.pairs:
        if pair.family == "primary":
            where = f" on {pair.model}" if len(summary.models) > 1 else ""
            parts.append(Section(versus(pair) + where, paragraphs(summary, pair)))
    others = [p for p in summary.pairs if p.family == "exploratory"]
    if others:
        several = len(summary.models) > 1
        lines = [f"{versus(p)}{f' on {p.model}' * several}: {brief(summary, p)}" for p in others]
        title = "Exploratory: all other pairs" if summary.primary else "Exploratory: all pairs"
        parts.append(Section(title, [count(summary, "exploratory"), *lines]))
    if summary.pooled:
        pooled = [_pooled(name, values) for name, values in summary.pooled.items()]
        parts.append(Section("Over all models (exploratory)", pooled))
    noise = [
        _named(summary, model, text)
        for model in summary.models
        if (text := budget_sentence(summary, model))
    ]
    if noise:
        parts.append(Section("Where the noise comes from", noise))
    parts.append(Section("What this rests on", _scope(summary)))
    failed = summary.failed
    if len(failed):
        reasons = [
            f"{names_of(failed.iloc[[i]])}: {error}" for i, error in enumerate(failed["error"])
        ]
        parts.append(Section("Runs without a result", [*_failed(summary), *reasons]))
    return parts


def results_markdown(summary: Summary, parts: Sequence[Section]) -> str:
    """Return the report in words: the answer, the table, then the sections."""
    table = markdown(result_table(summary))
    text = [f"## {s.title}\n\n" + "\n\n".join(s.paragraphs) for s in parts]
    return "\n\n".join(["# Results", *answer(summary), table, *text]) + "\n"


def paragraphs(summary: Summary, pair: Pair) -> list[str]:
    """Return the verdict, what it rests on, what more seeds would show, and the spread."""
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
        _on_windows(pair),
        _planning(pair),
        _spread(summary, pair, a, b),
    ]
    return [text for text in parts if text]


def _verdict(summary: Summary, pair: Pair) -> str:
    j, margin = pair.judgement, f"±{pair.margin:g} {pair.unit}"
    known = f"{percent(pair.percent)} {pair.unit}, {deciding(pair)} {pair.unit}"
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
        shown = shown if tost is not None else ""
        return (
            f"**Equivalent within {margin}:** {known} lies within it{shown}, and no difference is "
            f"shown{no}."
        )
    if pair.verdict == "open":
        return (
            f"**Open:** {known}{p}. Neither a difference nor equivalence within {margin} is shown "
            "so far. Seeds are left."
        )
    if pair.verdict == "inconclusive":
        alone = (
            f" Alone it would count as a difference ({p_equation(j.p_value)}); as one of "
            f"{pair.tests} it does not."
            if j.p_value is not None and j.p_value < pair.seeds.alpha
            else ""
        )
        return (
            f"**Inconclusive:** {known}{p}. Neither a difference nor equivalence within {margin} "
            f"is shown.{alone}"
        )
    return f"**No test applies:** {reason(pair)}"


def one_set(pair: Pair) -> str:
    """Say what the result is about where a method has one calibration set."""
    names = [label(n) for n, one in ((pair.a, pair.one_set_a), (pair.b, pair.one_set_b)) if one]
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
        return f"The verdict is {BASES[pair.decided_by]}. It says nothing about other text."
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
    limits = interval(text_percent(pair.eras, pair.scale, pair.log), 2, sign=True)
    level = f"{100 * (1 - pair.eras.alpha):.4g} %"
    return f" If whole periods of the text were drawn anew: {level} CI {limits} %."


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
    return (
        f"On exactly these windows: {percent(pair.seeds_percent)} {pair.unit}, 95 % CI "
        f"{interval(pair.seeds_percent_ci95, 2, sign=True)} {pair.unit}, {name} "
        f"t({number(r.df, 1)}) = {number(r.t_stat, 3)}, {p_equation(r.p_value)} "
        f"({p_equation(r.p_adjusted)} after Holm); Cohen's d = "
        f"{number(r.cohens_d, 2)}, 95 % CI {interval(r.cohens_d_ci95, 2)}."
    )


def _planning(pair: Pair) -> str:
    """Say how many seeds would settle what is not settled, planned for the margin."""
    plan = pair.plan
    if plan is None or pair.verdict in ("different", "equivalent"):
        return ""
    unit = "Seeds per method"
    if pair.one_set_a or pair.one_set_b:
        both = pair.one_set_a and pair.one_set_b
        unit = "Replicates per set" if both else "Seeds, and replicates of the one set,"
    text = (
        f"{unit} needed to resolve {pair.margin:g} {pair.unit}: {draws(plan.difference)} to show a "
        f"difference, {draws(plan.equivalence)} to show equivalence (80 % power, with the noise "
        f"of these runs, as one of {plan.tests})."
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


def budget_sentence(summary: Summary, model: str) -> str:
    """Say what most of the noise of a difference comes from."""
    budget = summary.budgets.get((summary.metric, model))
    if budget is None or budget.std_error_percent is None:
        return ""
    shares = [(getattr(budget, key).share or 0.0, name) for key, name, _ in SOURCES[:3]]
    share, name = max(shares)
    text = (
        f"On average over the methods, a difference has a standard error of "
        f"{number(budget.std_error_percent, 2)} %. {number(100 * share, 0)} % of its variance "
        f"comes from: {name}."
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
    families = (
        "No primary method was named, and cola_zero is not among the runs: all pairs are "
        "exploratory."
    )
    if summary.primary:
        families = (
            f"For each model, the primary comparisons are {label(summary.primary)} against every "
            "other method. All other pairs are a second, exploratory family."
        )
    texts = {
        m: f"{len(t.tokens)} windows of {t.corpus}, {t.tokens.sum():,.0f} predicted tokens"
        for m, t in summary.texts.items()
    }
    evaluated = [f"{model} was evaluated on {what}." for model, what in texts.items()]
    if len(set(texts.values())) == 1 and set(texts) == set(summary.models):
        evaluated = [f"Evaluated on {next(iter(texts.values()))}."]
    facets = [
        f"The runs differ in {settings(summary)}. Each setting is analysed on its own, as each "
        "model is: no test compares two settings."
    ]
    return [
        f"Metric: {summary.metric_name} ({better} is better). {per} Differences within "
        f"±{options.margin:g} {unit(summary)} do not matter."
        + "".join(f" {line}" for line in _post_hoc(summary)),
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
    ]


def _pooled(name: str, pooled: PooledModels) -> str:
    name, setting = name.removesuffix(setting_of(name)), setting_of(name)
    names = " vs ".join(map(label, name.split(" vs ")))
    limits = interval(pooled.percent_ci95, 2, sign=True)
    return (
        f"{names}{setting}: {percent(pooled.percent)} % on average over {pooled.n_models} models "
        f"on exactly these windows, 95 % CI {limits} % (random effects, "
        "Hartung–Knapp–Sidik–Jonkman). The models are not a sample of all models."
    )
