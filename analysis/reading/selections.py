"""Which tokens of the corpus a run calibrated on."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from analysis.reading.artifacts import read


def read_pieces(run_id: str) -> NDArray[np.int64] | None:
    """Return [pieces, 3]: document, first token and the one behind the last, counted in the
    document's tokens; None if the run did not log them."""
    file = read(run_id, "calibration/selection.json")
    try:
        about = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        found = np.array(about["notes"]["pieces"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.ndim == 2 and found.shape[1] == 3 else None
