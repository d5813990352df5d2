"""What the methods chose, in the measures that every cell logs of its calibration set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from analysis.reading.checks import observations
from analysis.report.numbers import number
from analysis.report.places import columns, place
from analysis.report.tables import Table
from analysis.summary import Summary


class Measure(NamedTuple):
    """A column of the table: its heading, decimals, and what the logged number is multiplied by."""

    heading: str
    digits: int
    factor: float = 1.0


MEASURES: Mapping[str, Measure] = {
    "selection.documents_used": Measure("documents used", 0),
    "selection.documents_share": Measure("% of the corpus's", 2, 100),
    "selection.type_token_ratio": Measure("type-token ratio", 4),
    "selection.entropy_bits": Measure("entropy, bits", 2),
    "selection.kl_from_corpus_bits": Measure("KL from the corpus, bits", 3),
    "selection.test_13gram_overlap": Measure("13-grams in the test split, %", 2, 100),
}


def measures_table(summary: Summary) -> Table:
    """Return the mean of each measure over a method's observations; no rows where none is known."""
    cells = summary.cells
    known = [c for c in MEASURES if c in cells.columns and cells[c].notna().any()]
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "")]
    means = observations(good).groupby(["model", "method"], sort=False)[known].mean()
    rows = [
        [*place(summary, row["model"]), row["method"], *(_cell(row[c], c) for c in known)]
        for row in means.reset_index().to_dict("records")
        if known
    ]
    header = [*columns(summary), "method", *(MEASURES[c].heading for c in known)]
    return Table(header, rows, left=1 + len(columns(summary)))


def _cell(value: float, column: str) -> str:
    measure = MEASURES[column]
    return number(None if pd.isna(value) else measure.factor * value, measure.digits)
