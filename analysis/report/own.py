"""The user's own statistics, of every method and of every comparison."""

from __future__ import annotations

from typing import Any

from analysis.custom import all_statistics, evaluate
from analysis.report.numbers import number
from analysis.report.places import columns, place
from analysis.report.tables import Table
from analysis.summary import Method, Pair, Summary
from colazero.figures import label


def own_numbers(summary: Summary) -> dict[str, Any]:
    """Return model → method, or `A vs B` → name → number, None or an error's text."""
    methods, pairs = ([s for s in all_statistics() if s.of_pairs == of] for of in (False, True))
    return {
        model: {
            **{m.name: evaluate(methods, _of_method(summary, m)) for m in summary.of(model)},
            **{
                p.name: evaluate(pairs, _of_pair(summary, p))
                for p in summary.pairs
                if p.model == model and pairs
            },
        }
        for model in summary.models
    }


def own_table(summary: Summary) -> Table:
    """Return them as a table: a row a method or comparison, a column a statistic."""
    known = all_statistics()
    header = [*columns(summary), "of", *(one.description for one in known)]
    rows = [
        [*place(summary, model), _label(name), *(_text(values.get(one.name)) for one in known)]
        for model, found in own_numbers(summary).items()
        for name, values in found.items()
    ]
    return Table(header, rows, left=1 + len(columns(summary)))


def _label(name: str) -> str:
    return " vs ".join(map(label, name.split(" vs ")))


def _of_method(summary: Summary, method: Method) -> dict[str, Any]:
    text = summary.texts.get(method.model)
    draws = text.draws.get(method.name) if text is not None else None
    return {
        "values": method.values,
        "reference": summary.unquantized.get(method.model),
        "windows": None if draws is None else draws.rows,
        "tokens": None if text is None else text.tokens,
    }


def _of_pair(summary: Summary, pair: Pair) -> dict[str, Any]:
    a, b = (_of_method(summary, summary.method(pair.model, n)) for n in (pair.a, pair.b))
    return {
        "reference": a["reference"],
        "tokens": a["tokens"],
        **{f"{name}_a": a[name] for name in ("values", "windows")},
        **{f"{name}_b": b[name] for name in ("values", "windows")},
    }


def _text(value: float | str | None) -> str:
    return value if isinstance(value, str) else number(value, 3)
