"""`table.tex`: the result as a booktabs table for a paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median_low

from analysis.report.tables import unit
from analysis.summary import Summary
from analysis.summary.pairs import BASES, Pair
from colazero.figures import label, short

# LaTeX's own characters.
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"}
SPECIAL |= {"−": "$-$", "–": "--", "±": r"$\pm$", "α": r"$\alpha$"}
WIDE_NAME = 22
"""Letters of the longest name that fits a column of a two-column page."""


def escape(text: str) -> str:
    """Escape what LaTeX reads as a command; letters that plain LaTeX lacks become `?`."""
    known = "".join(
        c if c in SPECIAL else c.encode("latin-1", "replace").decode("latin-1") for c in text
    )
    return "".join(SPECIAL.get(c, c) for c in known)


def digits_of(widths: Iterable[float | None]) -> int:
    """Return the decimals that give the median of these widths two digits."""
    known = [w for w in widths if w is not None and math.isfinite(w) and w > 0]
    return min(6, max(0, 1 - math.floor(math.log10(median_low(known))))) if known else 2


def latex_table(summary: Summary) -> str:
    """Return a table environment that needs `\\usepackage{booktabs}` and nothing else.

    A row per method: mean ± standard deviation, its difference from the primary method (or the
    first one) with the interval that decided, and the verdict. Up to two models fit a column of a
    two-column `article`; with more, or with long names, the table is as wide as the page.
    """
    blocks = [_latex_rows(summary, model) for model in summary.models if summary.of(model)]
    longest = max((len(_name(summary, m.name)) for m in summary.methods), default=0)
    halves = len(blocks) > 2
    half = math.ceil(len(blocks) / 2) if halves else len(blocks)
    head = rf"Method & {escape(summary.metric_name)} & difference, {_unit(summary)} & verdict \\"
    body = []
    for part in (blocks[:half], blocks[half:]) if halves else (blocks,):
        body += [r"\begin{tabular}[t]{@{}lrrl@{}}", r"\toprule", head, r"\midrule"]
        body += [row for block in part for row in block]
        body += [r"\bottomrule", r"\end{tabular}", r"\hfill"]
    table = "table*" if halves or longest > WIDE_NAME else "table"
    size = "scriptsize" if halves else "footnotesize"
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            rf"\begin{{{table}}}",
            rf"\centering\{size}\setlength{{\tabcolsep}}{{2pt}}",
            rf"\caption{{{_caption(summary)}}}",
            *body[:-1],
            rf"\end{{{table}}}",
            "",
        ]
    )


def _latex_rows(summary: Summary, model: str) -> list[str]:
    methods = summary.of(model)
    first = _first(summary, [m.name for m in methods])
    digits = digits_of(m.description.std for m in methods)
    rows = []
    if len(summary.models) > 1:
        rows.append(rf"\multicolumn{{4}}{{@{{}}l}}{{{escape(short(model))}}} \\")
    if model in summary.unquantized:
        rows.append(rf"unquantized & ${summary.unquantized[model]:.{digits}f}$ &  &  \\")
    pairs = {p.b: p for p in summary.pairs if (p.model, p.a) == (model, first)}
    for m in sorted(methods, key=lambda m: m.name != first):
        d = m.description
        value = f"{d.mean:.{digits}f}"
        if d.std is not None:
            value += rf" {{\pm}} {d.std:.{digits}f}" + r"^{\dagger}" * m.one_set
        name = escape(_name(summary, m.name))
        rows.append(rf"{name} & ${value}$ & {_latex_pair(pairs.get(m.name))} \\")
    return rows


def _name(summary: Summary, method: str) -> str:
    return summary.options.names.get(method) or label(method)


def _first(summary: Summary, methods: Sequence[str]) -> str:
    """Return the method that differences are of: it stands first in all of its comparisons."""
    if summary.primary in methods and summary.primary is not None:
        return summary.primary
    return next((name for name in methods if name != summary.baseline), methods[0])


def _latex_pair(pair: Pair | None) -> str:
    """Write `difference & verdict` of the first method against another, % of the other."""
    if pair is None or pair.percent is None:
        return " & "
    if pair.decided is None:
        return rf"${pair.percent:+.1f}$ & no test"
    (low, high), _ = pair.decided
    digits = min(3, digits_of([(high - low) / 2]))
    what = f"{pair.percent:+.{digits}f}$ $[{low:.{digits}f}, {high:.{digits}f}]"
    return f"${what}$ & {pair.verdict}"


def _unit(summary: Summary) -> str:
    return unit(summary).replace("%", r"\%")


def _caption(summary: Summary) -> str:
    ns = sorted({m.n for m in summary.methods if m.n > 1 and not m.one_set}) or [1]
    n = str(ns[0]) if len(ns) == 1 else rf"{ns[0]}\text{{--}}{ns[-1]}"
    n = n.replace(r"\text{--}", r"\mbox{--}")
    one = any(m.one_set and m.n > 1 for m in summary.methods)
    dagger = r" $^{\dagger}$Replicates of one calibration set." if one else ""
    first = _name(summary, summary.primary) if summary.primary else "the first method"
    levels = sorted({f"{100 * p.decided[1]:.4g}" for p in summary.pairs if p.decided})
    sure = rf"{levels[0]} to {levels[-1]}\,\%" if len(levels) > 1 else "".join(levels) + r"\,\%"
    within = "model and setting" if summary.facets else "model"
    late = ""
    if summary.options.post_hoc:
        late = f" Chosen after the runs: {escape(', '.join(summary.options.post_hoc))}."
    family = [p for p in summary.pairs if p.family == "primary"] or summary.pairs
    bases = dict.fromkeys(BASES[p.decided_by] for p in family if p.decided_by)
    per = "in percentage points" if unit(summary) == "points" else r"in \% of the method"
    return (
        f"{escape(summary.metric_name).capitalize()}: mean $\\pm$ standard deviation over "
        f"$n = {n}$ seeds; without $\\pm$ one observation.{dagger} Difference: {escape(first)} "
        f"minus the method, {per}, with the {sure} interval that decided, "
        f"{' or '.join(bases)}; Holm-adjusted within a {within}. Equivalent: within "
        f"$\\pm{summary.options.margin:g}$ {_unit(summary)}.{late}"
    )
