"""The report's sections: each comparison, the noise, what the verdicts rest on, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from analysis.reading.table import BASE, mixed_devices, names_of, setting_of
from analysis.report.answer import (
    answer,
    brief,
    count,
    look_lines,
    named,
    post_hoc,
    settings,
    without_result,
)
from analysis.report.paragraphs import paragraphs
from analysis.report.tables import (
    SOURCES,
    interval,
    markdown,
    number,
    percent,
    result_table,
    unit,
    versus,
)
from analysis.stats.pooling import PooledModels
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
    texts = {
        m: f"{len(t.tokens)} windows of {t.corpus}, {t.tokens.sum():,.0f} predicted tokens"
        for m, t in summary.texts.items()
    }
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
