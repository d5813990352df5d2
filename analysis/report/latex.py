"""`table.tex`: the result as a booktabs table for a paper."""

from __future__ import annotations

from analysis.report.numbers import p_text
from analysis.stats import stars
from analysis.summary import DEFAULT_BASELINE, OURS, Method, Summary
from colazero.figures import label, short

MOST_COLUMNS = 3
FIRST = (OURS, "random", DEFAULT_BASELINE)
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"}


def latex_table(summary: Summary) -> str:
    """Return a table environment that needs `\\usepackage{booktabs}`, and nothing else.

    Up to three methods: Model and each method, and below it p of the first one against it; it fits
    a column of a two-column `article` at 10 pt. More methods: a row a method, two columns a model;
    three models fit the text of a one-column `article`.
    """
    methods = [m for m in FIRST if m in summary.names]
    methods += [m for m in summary.names if m not in FIRST]
    first = summary.primary or (methods[0] if methods else None)
    methods.sort(key=lambda name: name != first)
    if len(methods) <= MOST_COLUMNS:
        head = ["Model", *map(_head, methods)]
        rows = []
        for model in summary.models:
            rows.append([escape(short(model)), *(_cell(summary, model, m) for m in methods)])
            p_values = [_p_value(summary, model, first, m) for m in methods[1:]]
            rows += [["$p$", "", *p_values]] if p_values else []
    else:
        head = ["Method", *(c for m in summary.models for c in (escape(short(m)), "$p$"))]
        rows = [[_head(m), *_cells(summary, first, m)] for m in methods]
    lines = [" & ".join(row) + r" \\" for row in (head, *rows)]
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs}.",
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_caption(summary, first)}}}",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (len(head) - 1)}@{{}}}}",
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


def _head(method: str) -> str:
    return escape(label(method))


def _cells(summary: Summary, first: str | None, name: str) -> list[str]:
    return [
        cell
        for model in summary.models
        for cell in (_cell(summary, model, name), _p_value(summary, model, first, name, mark=False))
    ]


def escape(text: str) -> str:
    """Escape what LaTeX reads as a command; letters that plain LaTeX lacks become `?`."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return "".join(SPECIAL.get(c, c) for c in plain)


def _cell(summary: Summary, model: str, name: str) -> str:
    found = next((m for m in summary.of(model) if m.name == name), None)
    return "--" if found is None else _mean_std(found)


def _mean_std(method: Method) -> str:
    d = method.description
    if d.std is None:
        return f"${d.mean:.2f}$"
    mark = r"^{\dagger}" if method.one_set else ""
    return rf"${d.mean:.2f} \pm {d.std:.2f}{mark}$"


def _p_value(summary: Summary, model: str, first: str | None, name: str, mark: bool = True) -> str:
    found = [p for p in summary.pairs if p.model == model and {p.a, p.b} == {first, name}]
    p = found[0].judgement.p_adjusted if found else None
    if p is None:
        return "--"
    shown = stars(p) if mark else ""
    text = p_text(p).replace(" ", "")
    return f"${text}^{{{shown}}}$" if shown else f"${text}$"


def _caption(summary: Summary, first: str | None) -> str:
    ns = sorted({m.n for m in summary.methods if m.n > 1 and not m.one_set}) or [1]
    n = str(ns[0]) if len(ns) == 1 else f"{ns[0]}--{ns[-1]}"
    on_text = any(p.decided_by == "seeds and text" for p in summary.pairs)
    basis = "over seeds and evaluation windows together" if on_text else "(Welch) over seeds"
    if any(p.decided_by == "seeds at any time" for p in summary.pairs):
        basis = "over seeds, valid at any look"
    one = [m.n for m in summary.methods if m.one_set and m.n > 1]
    dagger = r" $^{\dagger}$Replicates of one calibration set." if one else ""
    starred = len(summary.names) <= MOST_COLUMNS
    legend = " $^{*}p<0.05$, $^{**}p<0.01$, $^{***}p<0.001$." if starred else ""
    against = f"of {escape(label(first))} against the method" if first else "of each pair"
    unit = "model and setting" if summary.facets else "model"
    return (
        f"{escape(summary.metric_name).capitalize()}: mean $\\pm$ standard deviation over "
        f"$n = {n}$ seeds; without $\\pm$ one observation.{dagger} $p$ {against}, {basis}, "
        f"Holm-adjusted within a {unit}.{legend}"
    )
