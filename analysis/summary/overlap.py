"""How much of its calibration text one set of a method shares with another."""

from __future__ import annotations

from itertools import combinations

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
    """Mean over all pairs of the tokens in both sets, as a share of the mean of the two sizes.

    sets: arrays [pieces, 3] as `read_pieces` returns them. A place in the corpus counts once.
    """
    flat = [_merged(pieces) for pieces in sets]
    return float(np.mean([_shared(a, b) for a, b in combinations(flat, 2)]))


def _merged(pieces: Pieces) -> Pieces:
    """Return disjoint [first, behind last) on the one axis, in order."""
    ends = pieces[:, :1] * DOCUMENT + pieces[:, 1:]
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    reached = np.maximum.accumulate(ends[:, 1])
    new = np.append(True, ends[1:, 0] > reached[:-1])
    last = np.append(np.flatnonzero(new)[1:] - 1, len(ends) - 1)
    return np.stack([ends[new, 0], reached[last]], axis=1)


def _shared(a: Pieces, b: Pieces) -> float:
    lengths = b[:, 1] - b[:, 0]
    before = np.concatenate([[0], np.cumsum(lengths)])

    def covered(place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of b in front of each place."""
        at = np.searchsorted(b[:, 0], place, side="right") - 1
        inside = np.minimum(place - b[at, 0], lengths[at])
        return np.where(at < 0, 0, before[at] + inside)

    both = (covered(a[:, 1]) - covered(a[:, 0])).sum()
    return float(2 * both / ((a[:, 1] - a[:, 0]).sum() + lengths.sum()))
