"""The statistics of the analysis, in one place: pure functions from arrays to numbers.

Results are frozen dataclasses of plain numbers; `dataclasses.asdict` turns one into valid JSON,
with null for whatever is undefined and a `reason` beside it. Everywhere `a - b` is the direction
of a difference, so for perplexity a negative one favours a.
"""

from __future__ import annotations

from analysis.stats.comparison import Comparison, TTest, Verdict, compare, holm_family, verdict
from analysis.stats.mcnemar import PairedItems, mcnemar
from analysis.stats.multiplicity import holm, stars
from analysis.stats.paired import PairedWindows, paired_windows
from analysis.stats.pooling import PooledModels, log_difference, pool_models
from analysis.stats.power import mde80, n_for_80, t_power
from analysis.stats.samples import Description, describe
from analysis.stats.spread import SpreadComparison, compare_spread, seeds_to_find_halving

__all__ = [
    "Comparison",
    "Description",
    "PairedItems",
    "PairedWindows",
    "PooledModels",
    "SpreadComparison",
    "TTest",
    "Verdict",
    "compare",
    "compare_spread",
    "describe",
    "holm",
    "holm_family",
    "log_difference",
    "mcnemar",
    "mde80",
    "n_for_80",
    "paired_windows",
    "pool_models",
    "seeds_to_find_halving",
    "stars",
    "t_power",
    "verdict",
]
