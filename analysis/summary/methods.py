"""Each method on its own: observations, evaluation windows, and the overlap of its sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.reading.artifacts import read_pieces, read_windows
from analysis.reading.table import finished, observations
from analysis.stats.samples import (
    Description,
    FloatArray,
    PooledVariance,
    describe,
    pooled_variance,
)

Windows = Mapping[str, pd.DataFrame]
"""Run id → the table of its windows."""
Key = tuple[str, str]
"""A model and a method."""


@dataclass(frozen=True)
class Draws:
    """One method: an array [replicates, windows] per calibration set, summed over each window."""

    sets: tuple[FloatArray, ...]
    one_set: bool

    @property
    def rows(self) -> FloatArray:
        """Return rows [n, windows]: seeds (replicates averaged), or replicates of the one set."""
        if self.one_set:
            return self.sets[0]
        return np.stack([draws.mean(axis=0) for draws in self.sets])


@dataclass(frozen=True)
class Text:
    """One model on one corpus. start: first token of each window; tokens: predicted in each.

    draws: by method; only methods whose runs all logged sums of these very windows. elsewhere:
    methods whose runs logged sums of other windows; nothing here is compared with them.
    documents: a label per window, [windows]; None where the runs logged none. available: windows
    that the whole text has; None where the runs did not log it.
    """

    corpus: str
    start: FloatArray
    tokens: FloatArray
    draws: Mapping[str, Draws]
    elsewhere: frozenset[str] = frozenset()
    documents: NDArray[np.int64] | None = None
    available: int | None = None

    def profile(self, a: str, b: str) -> FloatArray:
        """Return the mean of a minus that of b, per token: [windows]."""
        means = [self.draws[name].rows.mean(axis=0) for name in (a, b)]
        return np.asarray((means[0] - means[1]) / self.tokens, dtype=np.float64)


def read_windows_of(cells: pd.DataFrame, corpora: pd.Series[str]) -> Windows:
    """Read the windows of every run that did the work of a finished cell.

    corpora: by row of `cells`, the corpus whose windows are read; '' for none.
    """
    rows = _draws_of(cells)
    named = dict(zip(_runs(rows), corpora.loc[rows.index], strict=True))
    found = {}
    for run, corpus in sorted(named.items()):
        table = read_windows(run, corpus) if corpus else None
        if table is not None:
            found[run] = table.assign(corpus=corpus)
    return found


def texts_of(cells: pd.DataFrame, windows: Windows, column: str) -> dict[str, Text]:
    """Return by model what its methods made of the text; column: nll, kl or agreed.

    The text of a model is the one that most of its methods have; of equally many, the first.
    """
    found = {}
    for model, rows in _draws_of(cells).groupby("model", sort=False):
        by_text: dict[bytes, tuple[pd.DataFrame, dict[str, Draws]]] = {}
        for method, own in rows.groupby("method", sort=False):
            tables = [windows.get(run) for run in _runs(own)]
            known = [t for t in tables if t is not None and column in t]
            texts = {t[["start", "tokens"]].to_numpy(np.float64).tobytes() for t in known}
            if len(known) == len(tables) and len(texts) == 1:
                _, draws = by_text.setdefault(texts.pop(), (known[0], {}))
                draws[str(method)] = _draws(own, known, column)
        if not by_text:
            continue
        frame, draws = max(by_text.values(), key=lambda one: len(one[1]))
        logged = {"document", "available"} <= set(frame.columns)
        found[str(model)] = Text(
            corpus=str(frame["corpus"].iloc[0]),
            start=frame["start"].to_numpy(np.float64),
            tokens=frame["tokens"].to_numpy(np.float64),
            draws=draws,
            elsewhere=frozenset(n for _, other in by_text.values() for n in other) - draws.keys(),
            documents=frame["document"].to_numpy(np.int64) if logged else None,
            available=int(frame["available"].iloc[0]) if logged else None,
        )
    return found


def _draws_of(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the draws of every observation, each once."""
    return finished(cells).drop_duplicates(["model", "method", "observation", "draw"])


def _runs(rows: pd.DataFrame) -> list[str]:
    return [str(run) for run in rows["source_run"].where(rows["source_run"] != "", rows["run_id"])]


def _draws(rows: pd.DataFrame, tables: list[pd.DataFrame], column: str) -> Draws:
    sums = np.stack([table[column].to_numpy(np.float64) for table in tables])
    sums = np.maximum(sums, 0)  # a divergence of 0 may round to less
    one_set = bool(rows["one_set"].iloc[0])
    number = pd.factorize(rows["calibration_set" if one_set else "observation"])[0]
    return Draws(tuple(sums[number == k] for k in range(number.max() + 1)), one_set)


Pieces = NDArray[np.int64]
# Documents are laid end to end on one axis, each this long.
DOCUMENT = 2**40


def overlaps(cells: pd.DataFrame) -> dict[Key, float]:
    """Return by model and method the mean pairwise overlap of its sets, 0 to 1.

    A method with one set, and one whose runs did not log what they chose, is left out.
    """
    good = finished(cells[~cells["one_set"]])
    once = good.drop_duplicates(["model", "method", "observation"])
    found = {}
    for (model, method), rows in once.groupby(["model", "method"], sort=False):
        pieces = [read_pieces(run) for run in _runs(rows)]
        known = [p for p in pieces if p is not None]
        if len(known) == len(pieces) > 1:
            found[str(model), str(method)] = mean_overlap(known)
    return found


def mean_overlap(sets: list[Pieces]) -> float:
    """Return the tokens that two sets share, averaged over all pairs, as a share of a set's size.

    sets: two or more arrays [pieces, 3] as `read_pieces` returns them. A place in the corpus counts
    once per set. From the number c of sets that hold a place: sum of c (c - 1) over n (n - 1).
    """
    flat = [_merged(pieces) for pieces in sets]
    first, stop = (np.concatenate([ends[:, k] for ends in flat]) for k in (0, 1))
    places = np.concatenate([first, stop])
    order = np.argsort(places, kind="stable")
    step = np.concatenate([np.ones(len(first), np.int64), -np.ones(len(stop), np.int64)])[order]
    held, length = np.cumsum(step)[:-1], np.diff(places[order])
    n = len(sets)
    shared = (length * held * (held - 1)).sum() / (n * (n - 1))
    return float(shared / ((stop - first).sum() / n))


def _merged(pieces: Pieces) -> Pieces:
    """Return disjoint [first, behind last) on the one axis, in order."""
    ends = pieces[:, :1] * DOCUMENT + pieces[:, 1:]
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ends[:, 1])
    new = np.append(True, ends[1:, 0] > reached[:-1])
    last = np.append(np.flatnonzero(new)[1:] - 1, len(ends) - 1)
    return np.stack([ends[new, 0], reached[last]], axis=1)


@dataclass(frozen=True)
class Method:
    """One method on one model. Undefined numbers are None.

    values: the metric, one value per independent observation. n_seeds, n_draws: finished cells by
    seed, and quantizations that were made for them.
    one_set: all seeds gave one calibration set; the observations are then its replicates, and what
    they show holds for this set. change_percent: of the mean from the unquantized model.
    selection, quantization: seconds over the observations. overlap: mean pairwise overlap of the
    sets, 0 to 1.
    """

    model: str
    name: str
    values: tuple[float, ...]
    n_seeds: int
    n_draws: int
    one_set: bool
    description: Description
    change_percent: float | None
    selection: Description
    quantization: Description
    overlap: float | None = None

    @property
    def n(self) -> int:
        """Return the number of independent observations."""
        return self.description.n


def methods_of(
    good: pd.DataFrame,
    metric: str,
    keys: Sequence[Key],
    unquantized: Mapping[str, float] | None = None,
    overlap: Mapping[Key, float] | None = None,
) -> dict[Key, Method]:
    """Describe methods, also those without a result; good: finished cells."""
    once = observations(good)
    found = {}
    for key in keys:
        rows, own = (t[(t["model"] == key[0]) & (t["method"] == key[1])] for t in (good, once))
        values = tuple(float(v) for v in own[metric].dropna())
        description = describe(values)
        mean, plain = description.mean, (unquantized or {}).get(key[0])
        found[key] = Method(
            *key,
            values=values,
            n_seeds=int(rows["seed"].nunique()),
            n_draws=int(own["draws"].sum()),
            one_set=bool(rows["one_set"].any()),
            description=description,
            change_percent=None if mean is None or not plain else 100 * (mean / plain - 1),
            selection=describe(own["selection_time_sec"].to_list()),
            quantization=describe(own["quant_time_sec"].to_list()),
            overlap=(overlap or {}).get(key),
        )
    return found


def arithmetic(cells: pd.DataFrame, model: str, metric: str) -> PooledVariance | None:
    """Return the variance of one draw in the metric's unit, from all sets of a model with several.

    cells: finished ones.
    """
    rows = cells[(cells["model"] == model) & (cells["kind"] == "cell")]
    draws = rows.drop_duplicates(["method", "observation", "draw"])
    seed = draws["observation"].where(~draws["one_set"], "")
    return pooled_variance(
        group.to_numpy() for _, group in draws.groupby([draws["method"], seed])[metric]
    )
