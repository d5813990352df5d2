"""What the runs show, in sentences: a null is reported as a null, with what could have been found.

Numbers are written by `analysis.numbers`; every sentence is made from a result and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis.reading.checks import names_of
from analysis.report.numbers import NONE, interval, mean_std, number, p_equation, percent
from analysis.report.style import label
from analysis.stats import Comparison, PooledModels
from analysis.summary import Method, Pair, Summary
from analysis.summary.windows import Key, WindowPair


class Section(NamedTuple):
    """A heading and its paragraphs; `**` marks what is bold."""

    title: str
    paragraphs: list[str]


def key_lines(summary: Summary) -> str:
    """Return one line a comparison, and one for what failed: the report in a terminal."""
    several = len(summary.models) > 1
    lines = []
    for pair in summary.pairs:
        where = f"{pair.model}: " if several else ""
        lines.append(f"- {where}{label(pair.a)} vs {label(pair.b)}: {_key(pair, summary.family)}")
    if len(summary.failed):
        lines.append(f"- {_failed(summary)}")
    return "\n".join(lines)


def _key(pair: Pair, family: int) -> str:
    result = pair.result
    if result.test is None:
        change = "" if result.diff is None else f" ({percent(pair.percent(result.diff))} %)"
        return f"no test applies{change}. {_reason(pair)}"
    limits = interval(pair.percent_interval(result.diff_ci95), 2, sign=True)
    return (
        f"{result.verdict} ({percent(pair.percent(result.diff))} %, 95 % CI {limits}, "
        f"{p_equation(result.p_adjusted)} after Holm). {power(pair)}"
    )


def _failed(summary: Summary) -> str:
    failed = summary.failed
    return (
        f"{len(failed)} of {len(summary.cells)} runs have no result and are left out: "
        f"{names_of(failed)}. The comparisons rest on fewer seeds than planned."
    )


def sections(summary: Summary, windows: Mapping[Key, WindowPair]) -> list[Section]:
    """Return the results: the scope, a comparison a section, pooling, and what failed."""
    found = [Section("Scope", [_scope(summary)])]
    for pair in summary.pairs:
        title = f"{label(pair.a)} vs {label(pair.b)}"
        title += f" on {pair.model}" if len(summary.models) > 1 else ""
        text = paragraphs(summary, pair, windows.get((pair.model, pair.a, pair.b)))
        found.append(Section(title, text))
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


def _scope(summary: Summary) -> str:
    options = summary.options
    of = "the unquantized model's" if summary.unquantized else "the second method's mean"
    better = "lower" if summary.lower_is_better else "higher"
    return (
        f"Metric: {summary.metric_name} ({better} is better). Differences are in % of {of}; "
        f"differences within ±{options.margin:g} % are taken not to matter. Tests are two-sided at "
        f"α = {options.alpha:g}, Holm-adjusted over {summary.family} of them. n counts independent "
        "observations: seeds with one calibration set are one. Power is that of Holm's first step. "
        "What is said holds for these models, settings and evaluation texts."
    )


def paragraphs(summary: Summary, pair: Pair, windows: WindowPair | None = None) -> list[str]:
    """Return what the runs say about one comparison: the test, power, spread, the windows."""
    by_name = {m.name: m for m in summary.methods if m.model == pair.model}
    a, b = by_name[pair.a], by_name[pair.b]
    first = (_means(summary, pair, a, b), _test(pair), _verdict(summary, pair))
    tested = " ".join(sentence for sentence in first if sentence)
    found = [tested, power(pair), _spread(pair, a, b), _windows(pair, windows)]
    return [text for text in found if text]


def _means(summary: Summary, pair: Pair, a: Method, b: Method) -> str:
    text = [f"{mean_std(m, 3)} with {label(m.name)} ({_n(m)})" for m in (a, b)]
    sentence = f"Mean {summary.metric_name} was {text[0]} and {text[1]}"
    if pair.result.diff is None:
        return sentence + "."
    limits = pair.percent_interval(pair.result.diff_ci95)
    known = "" if limits is None else f", 95 % CI {interval(limits, 2, sign=True)} %"
    change = percent(pair.percent(pair.result.diff))
    return (
        f"{sentence}: a difference of {number(pair.result.diff, 3, sign=True)} ({change} %{known})."
    )


def _n(method: Method) -> str:
    if method.deterministic:
        return f"deterministic: {method.n_seeds} seeds, one observation"
    return f"n = {method.n}"


def _test(pair: Pair) -> str:
    r = pair.result
    if r.test is None or r.t_stat is None:
        return ""
    name = "Welch's" if r.test == "welch" else "Lent-variance"
    return (
        f"{name} t({number(r.df, 1)}) = {number(r.t_stat, 3)}, {p_equation(r.p_value)} "
        f"({p_equation(r.p_adjusted)} after Holm); Cohen's d = {number(r.cohens_d, 2)}, "
        f"95 % CI {interval(r.cohens_d_ci95, 2)}."
    )


def _verdict(summary: Summary, pair: Pair) -> str:
    r, margin = pair.result, f"±{summary.options.margin:g} %"
    if r.verdict == "different" and r.diff is not None:
        good = (r.diff < 0) == summary.lower_is_better
        first, second = (pair.a, pair.b) if good else (pair.b, pair.a)
        small = f" The difference is also shown to lie within {margin}." if r.reason else ""
        return f"**Different:** {label(first)} did better than {label(second)}.{small}"
    if r.verdict == "equivalent":
        limits = interval(pair.percent_interval(r.diff_ci90), 2, sign=True)
        return (
            f"**Equivalent:** the 90 % CI {limits} % lies within {margin} "
            f"({p_equation(r.tost_p_value)}, two one-sided tests), and no difference is shown."
        )
    if r.verdict == "inconclusive":
        alone = r.p_value is not None and r.p_value < r.alpha
        why = (
            f" On its own this test would count as a difference ({p_equation(r.p_value)}); as one "
            f"of {summary.family} it does not."
        )
        return (
            "**Inconclusive:** these runs show no difference, and they do not show either that the "
            f"methods are equal within {margin}.{why if alone else ''}"
        )
    return f"**No test applies.** {_reason(pair)}"


def _reason(pair: Pair) -> str:
    """The statistics call the groups a and b; a reader knows them by name."""
    r = pair.result
    counts = f"{label(pair.a)} has {r.n_a}, {label(pair.b)} has {r.n_b}"
    if r.n_a == r.n_b == 1:
        return "Each method gave one observation: the difference is what these runs gave."
    return (
        f"Independent observations: {counts}. A test needs two of each method: one draw is of "
        "unknown noise."
    )


def power(pair: Pair) -> str:
    """Return what these seeds could have found."""
    r = pair.result
    if r.test is None or r.mde80 is None or r.cohens_d is None:
        return ""
    size = percent(pair.percent(r.mde80_diff)).lstrip("+")
    found = f"With {_planned(r)} you could have found d ≥ {number(r.mde80, 1)} (here {size} %)"
    found += " with 80 % power"
    if r.verdict == "different":
        return f"{found}; the d seen here is {number(r.cohens_d, 2)}."
    return f"{found}."


def _planned(r: Comparison) -> str:
    if r.test == "welch" and r.n_a != r.n_b:
        return f"{r.n_a} and {r.n_b} seeds"
    return f"{max(r.n_a, r.n_b)} seeds"


def _spread(pair: Pair, a: Method, b: Method) -> str:
    cvs = []
    for m in (a, b):
        cv = None if m.n < 2 else m.description.cv_percent
        cvs.append(f"{NONE if cv is None else number(cv, 2) + ' %'} ({label(m.name)})")
    text = f"Coefficients of variation: {cvs[0]}, {cvs[1]}"
    s = pair.spread
    if s.test is None:
        return f"{text}; their spread cannot be compared."
    smaller = s.p_value is not None and s.p_value < pair.result.alpha
    verdict = "a difference in spread" if smaller else "no difference in spread is shown"
    return (
        f"{text}; ratio of spreads {number(s.sd_ratio, 2)}, 95 % CI "
        f"{interval(s.sd_ratio_ci95, 2)}, Brown–Forsythe {p_equation(s.p_value)}: {verdict} "
        f"(one half of the other would take {s.n_for_halving} seeds a method to find)."
    )


def _windows(pair: Pair, found: WindowPair | None) -> str:
    if found is None:
        return ""
    r = found.result
    known = "" if r.diff_nll_se is None else f" ± {number(r.diff_nll_se, 4)} (standard error)"
    limits = (
        f", 95 % CI {interval(r.ppl_percent_ci95, 2, sign=True)} %" if r.ppl_percent_ci95 else ""
    )
    return (
        f"On the same {r.n_windows} evaluation windows the checkpoints of {label(pair.a)} differ "
        f"from those of {label(pair.b)} by {number(r.diff_nll, 4, sign=True)}{known} nats a token, "
        f"{percent(r.ppl_percent)} % of perplexity{limits}; this is about these checkpoints, and "
        "leaves out what other seeds would give."
    )


def _pooled(name: str, pooled: PooledModels) -> str:
    first, _, second = name.partition(" vs ")
    limits = interval(pooled.percent_ci95, 2, sign=True)
    return (
        f"{label(first)} vs {label(second)}: {percent(pooled.percent)} % on average over "
        f"{pooled.n_models} models, 95 % CI {limits} % (random effects, "
        "Hartung–Knapp–Sidik–Jonkman). The models are no sample of all models."
    )
