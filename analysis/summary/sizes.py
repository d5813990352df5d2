"""How much calibration text is enough: each size of set against the largest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.reading.table import BASE, facets, setting
from analysis.stats import compare_on_text
from analysis.stats.samples import percent_change, t_quantile
from analysis.stats.text import TextComparison
from analysis.summary.methods import Method, Text
from analysis.summary.options import Known, Options

SIZE = ("n_calibration_samples", "seq_len")
"""The settings that make up a size."""


@dataclass(frozen=True)
class Size:
    """A size of calibration set, compared with the largest size of its group.

    model: with its setting, as in `Summary`. mean: of the metric. worse_percent: how much worse
    than the largest size, at_most_percent: the upper confidence bound of that, each in % of the
    largest size's value and None where no error can be estimated. enough: the bound lies within
    the margin, and so do those of all larger sets with this `seq_len`.
    """

    model: str
    samples: int
    seq_len: int
    mean: float
    worse_percent: float | None = None
    at_most_percent: float | None = None
    enough: bool = False

    @property
    def tokens(self) -> int:
        """Return the number of calibration tokens."""
        return self.samples * self.seq_len


@dataclass(frozen=True)
class Sizes:
    """The sizes of one method on one model, other settings equal.

    model: its name, with those other settings that differ between runs. sizes: without the largest,
    from few tokens to many. level: confidence of each length's bounds, one-sided.
    """

    model: str
    method: str
    largest: Size
    sizes: tuple[Size, ...]
    level: float

    @property
    def least(self) -> Size | None:
        """Return the size of the fewest tokens that is enough; None if no smaller size is."""
        return next((size for size in self.sizes if size.enough), None)

    @property
    def best(self) -> Size:
        """Return the size of the lowest mean."""
        return min((self.largest, *self.sizes), key=lambda size: size.mean)


def sizes_of(
    cells: pd.DataFrame,
    methods: Sequence[Method],
    texts: Mapping[str, Text],
    known: Known,
    options: Options,
) -> list[Sizes]:
    """Compare the sizes of each method with the largest; nothing where runs have one size.

    Only for a metric with sums per window of which a lower value is better, such as perplexity.
    The largest size has the most tokens; of equally many, the longest windows. Sets with one
    `seq_len` are tested in order from the largest down, each at the full level, until one fails
    (fixed sequence: Maurer, Hothorn & Lehmacher 1995). The level is divided by the number of
    lengths (Bonferroni), so all statements hold together.
    """
    names = facets(cells)
    if not set(SIZE) & set(names) or not known.lower or known.windows is None:
        return []
    groups: dict[tuple[str, str], list[Size]] = {}
    for method in methods:
        if not method.values:
            continue
        own = (cells["model"] == method.model) & (cells["method"] == method.name)
        first = cells[own & (cells["kind"] == "cell")].iloc[0]
        row = {str(name): value for name, value in first.items()}
        rest = [f"{k}={v}" for k, v in setting(row, names).items() if k not in SIZE]
        name = str(row[BASE]) + (f" [{', '.join(rest)}]" if rest else "")
        samples, seq_len = (int(row[one]) for one in SIZE)
        size = Size(method.model, samples, seq_len, float(np.mean(method.values)))
        groups.setdefault((name, method.name), []).append(size)
    return [
        _compared(*key, sizes, texts, known, options)
        for key, sizes in groups.items()
        if len(sizes) > 1
    ]


def _compared(
    model: str,
    method: str,
    sizes: Sequence[Size],
    texts: Mapping[str, Text],
    known: Known,
    options: Options,
) -> Sizes:
    in_order = sorted(sizes, key=lambda size: (size.tokens, size.seq_len))
    largest = in_order.pop()
    alpha = options.alpha / len({size.seq_len for size in in_order})
    failed: set[int] = set()
    found = []
    for size in reversed(in_order):
        compared = between(texts, known, options, (size.model, method), (largest.model, method))
        worse = at_most = None
        if compared is not None and compared.estimate is not None:
            estimate = compared.estimate
            worse = percent_change(estimate.difference)
            t = t_quantile(1 - alpha, estimate.df)
            at_most = percent_change(estimate.difference + t * estimate.std_error)
        if at_most is None or at_most > options.margin:
            failed.add(size.seq_len)
        enough = size.seq_len not in failed
        found.append(replace(size, worse_percent=worse, at_most_percent=at_most, enough=enough))
    return Sizes(model, method, largest, tuple(reversed(found)), 1 - alpha)


def between(
    texts: Mapping[str, Text],
    known: Known,
    options: Options,
    a: tuple[str, str],
    b: tuple[str, str],
) -> TextComparison | None:
    """Compare two results, each a (model with its setting, method); see `Summary.between`."""
    first, second = texts.get(a[0]), texts.get(b[0])
    if first is None or second is None or first.corpus != second.corpus:
        return None
    pairs = ((first.start, second.start), (first.tokens, second.tokens))
    if not all(np.array_equal(*both) for both in pairs):
        return None
    if a[1] not in first.draws or b[1] not in second.draws:
        return None
    return compare_on_text(
        first.draws[a[1]].rows,
        second.draws[b[1]].rows,
        first.tokens,
        documents=first.documents,
        ratio=known.kind == "ratio",
        alpha=options.alpha,
    )
