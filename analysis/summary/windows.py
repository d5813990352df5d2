"""What the methods of a model made of each evaluation window: seeds × windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.reading.windows import read_windows
from analysis.stats.samples import FloatArray

Windows = Mapping[str, pd.DataFrame]
"""Run id → the table of its windows."""


@dataclass(frozen=True)
class Draws:
    """One method: an array [replicates, windows] a calibration set, summed over a window."""

    sets: tuple[FloatArray, ...]
    one_set: bool

    @property
    def rows(self) -> FloatArray:
        """Shape [n, windows]: a seed, its replicates averaged, or a replicate of the one set."""
        if self.one_set:
            return self.sets[0]
        return np.stack([draws.mean(axis=0) for draws in self.sets])


@dataclass(frozen=True)
class Text:
    """One model on one corpus. start: first token of each window; tokens: predicted in each.

    draws: by method, those alone whose runs all logged sums of these very windows.
    """

    corpus: str
    start: FloatArray
    tokens: FloatArray
    draws: Mapping[str, Draws]

    def profile(self, a: str, b: str) -> FloatArray:
        """Shape [windows]: mean of a minus mean of b, a token."""
        means = [self.draws[name].rows.mean(axis=0) for name in (a, b)]
        return np.asarray((means[0] - means[1]) / self.tokens, dtype=np.float64)


def read(cells: pd.DataFrame, corpus: str | None) -> Windows:
    """Read the windows of every run that did the work of a finished cell."""
    if corpus is None:
        return {}
    tables = {run: read_windows(run, corpus) for run in sorted(set(_runs(_finished(cells))))}
    return {run: table for run, table in tables.items() if table is not None}


def texts(cells: pd.DataFrame, windows: Windows, corpus: str, column: str) -> dict[str, Text]:
    """Return by model what its methods made of the text; column: nll, kl or agreed."""
    found = {}
    for model, rows in _finished(cells).groupby("model", sort=False):
        draws: dict[str, Draws] = {}
        frame: pd.DataFrame | None = None
        for method, own in rows.groupby("method", sort=False):
            tables = [windows.get(run) for run in _runs(own)]
            known = [t for t in tables if t is not None and column in t]
            frame = frame if frame is not None or not known else known[0]
            if frame is None or len(known) < len(tables):
                continue
            if all(_same(frame, table) for table in known):
                draws[str(method)] = _draws(own, known, column)
        if frame is not None and draws:
            start, tokens = (frame[name].to_numpy(np.float64) for name in ("start", "tokens"))
            found[str(model)] = Text(corpus, start, tokens, draws)
    return found


def _finished(cells: pd.DataFrame) -> pd.DataFrame:
    """The draws of every observation, each once."""
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "")]
    return good.drop_duplicates(["model", "method", "observation", "draw"])


def _runs(rows: pd.DataFrame) -> list[str]:
    return [str(run) for run in rows["source_run"].where(rows["source_run"] != "", rows["run_id"])]


def _draws(rows: pd.DataFrame, tables: list[pd.DataFrame], column: str) -> Draws:
    sums = np.stack([table[column].to_numpy(np.float64) for table in tables])
    sums = np.maximum(sums, 0)  # a divergence of 0 may round to less
    one_set = bool(rows["one_set"].iloc[0])
    number = pd.factorize(rows["calibration_set" if one_set else "observation"])[0]
    return Draws(tuple(sums[number == k] for k in range(number.max() + 1)), one_set)


def _same(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in ("start", "tokens"))
