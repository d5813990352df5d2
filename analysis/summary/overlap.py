"""How much of its calibration text one set of a method shares with another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.reading.selections import read_pieces

Pieces = NDArray[np.int64]
# Documents are laid end to end on one axis, each this long.
DOCUMENT = 2**40


def overlaps(cells: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return by model and method the mean pairwise overlap of its sets, 0 to 1.

    A method with one set, and one whose runs did not log what they chose, is left out.
    """
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "") & ~cells["one_set"]]
    once = good.drop_duplicates(["model", "method", "observation"])
    found = {}
    for (model, method), rows in once.groupby(["model", "method"], sort=False):
        runs = rows["source_run"].where(rows["source_run"] != "", rows["run_id"])
        pieces = [read_pieces(str(run)) for run in runs]
        known = [p for p in pieces if p is not None]
        if len(known) == len(pieces) > 1:
            found[str(model), str(method)] = mean_overlap(known)
    return found


def mean_overlap(sets: list[Pieces]) -> float:
    """Tokens that two sets share, on average over all pairs, as a share of a set's mean size.

    sets: two or more arrays [pieces, 3] as `read_pieces` returns them. A place in the corpus counts
    once a set. From the number c of sets that hold a place: sum of c (c - 1) over n (n - 1).
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
