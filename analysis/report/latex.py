"""`table.tex`: the result as a booktabs table for a paper."""

from __future__ import annotations

from analysis.report.numbers import p_text
from analysis.report.style import label
from analysis.stats import stars
from analysis.summary import DEFAULT_BASELINE, OURS, Method, Summary

FIRST = (OURS, "random", DEFAULT_BASELINE)
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"}


def latex_table(summary: Summary) -> str:
    """Return a table environment: Model, the methods, and p of each comparison with the first.

    It needs `\\usepackage{booktabs}`, and nothing else.
    """
    methods = [m for m in FIRST if m in summary.names]
    methods += [m for m in summary.names if m not in FIRST]
    against = [p for p in dict.fromkeys((p.a, p.b) for p in summary.pairs) if p[0] == methods[0]]
    heads = [escape(label(m)) for m in methods]
    tests = [rf"$p$ vs.\ {escape(label(b))}" for _, b in against]
    if len(against) == 1:
        tests = ["$p$"]
    rows = [
        [escape(model), *(_cell(summary, model, m) for m in methods)]
        + [_p_value(summary, model, *pair) for pair in against]
        for model in summary.models
    ]
    columns = "l" + "r" * (len(heads) + len(tests))
    lines = [" & ".join(row) + r" \\" for row in (["Model", *heads, *tests], *rows)]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_caption(summary)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Escape what LaTeX reads as a command; letters that plain LaTeX lacks become `?`."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return "".join(SPECIAL.get(c, c) for c in plain)


def _cell(summary: Summary, model: str, name: str) -> str:
    found = next((m for m in summary.of(model) if m.name == name), None)
    return "--" if found is None else _mean_std(found)


def _mean_std(method: Method) -> str:
    d = method.description
    if method.n < 2 or d.std is None:
        return f"${d.mean:.3f}$"
    return rf"${d.mean:.3f} \pm {d.std:.3f}$"


def _p_value(summary: Summary, model: str, a: str, b: str) -> str:
    pair = next(p for p in summary.pairs if (p.model, p.a, p.b) == (model, a, b))
    p = pair.result.p_adjusted
    if p is None:
        return "--"
    mark = stars(p)
    text = p_text(p).replace(" ", "")
    return f"${text}^{{{mark}}}$" if mark else f"${text}$"


def _caption(summary: Summary) -> str:
    counts = sorted({m.n for m in summary.methods if m.n > 1}) or [1]
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}--{counts[-1]}"
    return (
        f"{escape(summary.metric_name).capitalize()}: mean $\\pm$ standard deviation over "
        f"$n = {n}$ seeds; a value without $\\pm$ is one observation. Two-sided $p$ of Welch's "
        f"$t$-test, Holm-adjusted over {summary.family} tests. "
        "$^{*}p<0.05$, $^{**}p<0.01$, $^{***}p<0.001$."
    )
