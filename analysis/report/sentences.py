"""What the runs show, in sentences: the verdicts counted, then each, then what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from analysis.reading.checks import mixed_devices, names_of
from analysis.reading.settings import setting_of
from analysis.report.budget import budget_sentence
from analysis.report.looks import look_lines
from analysis.report.numbers import decided, draws, interval, p_equation, percent
from analysis.report.paragraphs import paragraphs, reason, settled
from analysis.stats import PooledModels, Verdict
from analysis.summary import Pair, Summary
from colazero.figures import label

WORDS: tuple[Verdict, ...] = ("different", "equivalent", "open", "inconclusive", "undefined")


class Section(NamedTuple):
    """A heading and its paragraphs; `**` marks what is bold."""

    title: str
    paragraphs: list[str]


def key_lines(summary: Summary) -> str:
    """Return the report in a terminal: the verdicts counted, a line a primary comparison.

    Without a primary method there is a line for each comparison with the baseline, without either
    for each comparison.
    """
    several = len(summary.models) > 1
    lines = [count(summary, "primary")] if summary.primary else []
    for pair in summary.pairs:
        instead = not summary.primary and summary.baseline in (None, pair.b)
        if pair.family == "primary" or instead:
            where = f"{pair.model}: " if several else ""
            line = f"{where}{label(pair.a)} vs {label(pair.b)}: {_key(pair)}"
            lines.append(f"{line} {settled(summary, pair)}".rstrip())
    if any(pair.family == "exploratory" for pair in summary.pairs):
        lines.append(count(summary, "exploratory"))
    lines += look_lines(summary)
    if summary.facets:
        lines.append(f"Each within its own setting: {settings(summary)}.")
    if len(summary.failed):
        lines.append(_failed(summary))
    return "\n".join(f"- {line}" for line in lines)


def count(summary: Summary, family: str) -> str:
    """Count the verdicts of a family over all models."""
    pairs = [p for p in summary.pairs if p.family == family]
    found = Counter(p.verdict for p in pairs)
    words = ", ".join(f"{found[word]} {word}" for word in WORDS if found[word])
    what = (
        f"{label(summary.primary)} against each other method"
        if family == "primary" and summary.primary
        else f"exploratory, all {'other ' * bool(summary.primary)}pairs"
    )
    n = len(pairs)
    return f"{n} comparison{'s' * (n != 1)} ({what}): {words or 'none'}."


def _key(pair: Pair) -> str:
    if pair.decided is None:
        change = "" if pair.percent is None else f" ({percent(pair.percent)} %)"
        return f"no test applies{change}: {reason(pair)}"
    p = pair.judgement.p_adjusted
    if pair.verdict == "equivalent":
        p = pair.judgement.tost_p_adjusted
    about = " About this one set." if pair.one_set_a or pair.one_set_b else ""
    return (
        f"{pair.verdict} ({percent(pair.percent)} %, {decided(pair)}, {p_equation(p)} after Holm)."
        f"{about}{_planned(pair)}"
    )


def _planned(pair: Pair) -> str:
    plan = pair.plan
    if plan is None:
        return ""
    what = "Seeds"
    if pair.one_set_a or pair.one_set_b:
        both = pair.one_set_a and pair.one_set_b
        what = "Replicates of each set" if both else "Seeds, and replicates of the one set,"
    return (
        f" {what} that a margin of {pair.margin:g} % takes: {draws(plan.difference)} for a "
        f"difference, {draws(plan.equivalence)} for equivalence."
    )


def _failed(summary: Summary) -> str:
    failed = summary.failed
    return (
        f"{len(failed)} of {len(summary.cells)} runs have no result and are left out: "
        f"{names_of(failed)}. The comparisons rest on fewer runs than planned."
    )


def sections(summary: Summary) -> list[Section]:
    """Return the results: scope, noise, a primary comparison a section, the others, what failed."""
    found = [Section("Scope", _scope(summary))]
    noise = [_of(model, budget_sentence(summary, model), summary) for model in summary.models]
    if any(noise):
        found.append(Section("Where the noise comes from", [text for text in noise if text]))
    for pair in summary.pairs:
        if pair.family == "primary":
            found.append(Section(_title(summary, pair), paragraphs(summary, pair)))
    others = [p for p in summary.pairs if p.family == "exploratory"]
    if others:
        lines = [f"{_title(summary, p)}: {_key(p)}" for p in others]
        found.append(
            Section("Exploratory: all other pairs", [count(summary, "exploratory"), *lines])
        )
    if summary.pooled:
        pooled = [_pooled(name, values) for name, values in summary.pooled.items()]
        found.append(Section("Over all models (exploratory)", pooled))
    failed = summary.failed
    if len(failed):
        reasons = [
            f"{names_of(failed.iloc[[i]])}: {error}" for i, error in enumerate(failed["error"])
        ]
        found.append(Section("Runs without a result", [_failed(summary), *reasons]))
    return found


def results_markdown(found: Sequence[Section]) -> str:
    """Return the sections as markdown."""
    parts = ["# Results", *(f"## {s.title}\n\n" + "\n\n".join(s.paragraphs) for s in found)]
    return "\n\n".join(parts) + "\n"


def _title(summary: Summary, pair: Pair) -> str:
    where = f" on {pair.model}" if len(summary.models) > 1 else ""
    return f"{label(pair.a)} vs {label(pair.b)}{where}"


def _of(model: str, text: str, summary: Summary) -> str:
    return f"{model}: {text}" if text and len(summary.models) > 1 else text


def _scope(summary: Summary) -> list[str]:
    options = summary.options
    better = "lower" if summary.lower_is_better else "higher"
    late = (
        f" Not the suite's own: {', '.join(options.post_hoc)}. What is said with it is post "
        "hoc: it was chosen when the runs were known."
        if options.post_hoc
        else ""
    )
    families = (
        f"The primary family, a model, is {label(summary.primary)} against each other method; all "
        "other pairs are a second, exploratory family."
        if summary.primary
        else "No primary method was named and cola_zero is not among the runs: all is exploratory."
    )
    return [
        f"Metric: {summary.metric_name} ({better} is better). Differences are in % of the second "
        f"method's value; differences within ±{options.margin:g} % are taken not to matter.{late}",
        f"{families} Tests are two-sided at α = {options.alpha:g}; differences and equivalences "
        "are each Holm-adjusted over a family. The interval beside a verdict is the one that "
        "decided.",
        "An observation is a calibration set that a seed drew (its replicates averaged); of a "
        "method whose seeds all have one set, a replicate of this set. What is said holds for "
        "these models and settings.",
        *_facets(summary),
        *look_lines(summary),
        *_evaluated(summary),
        *filter(None, [mixed_devices(summary.cells)]),
    ]


def _facets(summary: Summary) -> list[str]:
    """Say which settings the runs differ in, and that nothing compares them."""
    if not summary.facets:
        return []
    return [
        f"The runs differ in {settings(summary)}. Each setting is analysed within itself, as each "
        "model is, with families of its own; no test compares two settings."
    ]


def settings(summary: Summary) -> str:
    """Name the settings that differ with their values, as in `quant_bits (3, 4)`."""
    places = [summary.place(model).setting for model in summary.models]
    values = {name: dict.fromkeys(place[name] for place in places) for name in summary.facets}
    return ", ".join(f"{name} ({', '.join(found)})" for name, found in values.items())


def _evaluated(summary: Summary) -> list[str]:
    """Say on what text the metric was taken: once where all models have the same."""
    found = {
        m: f"{len(t.tokens)} windows of {t.corpus}, {t.tokens.sum():,.0f} predicted tokens"
        for m, t in summary.texts.items()
    }
    if len(set(found.values())) == 1 and set(found) == set(summary.models):
        return [f"Evaluated on {next(iter(found.values()))}."]
    return [f"{model} was evaluated on {what}." for model, what in found.items()]


def _pooled(name: str, pooled: PooledModels) -> str:
    name, setting = name.removesuffix(setting_of(name)), setting_of(name)
    first, _, second = name.partition(" vs ")
    limits = interval(pooled.percent_ci95, 2, sign=True)
    return (
        f"{label(first)} vs {label(second)}{setting}: {percent(pooled.percent)} % on average over "
        f"{pooled.n_models} models on exactly these windows, 95 % CI {limits} % (random effects, "
        "Hartung–Knapp–Sidik–Jonkman). The models are no sample of all models."
    )
