"""The statistics of the analysis, in one place: pure functions from arrays to numbers.

Results are frozen dataclasses of plain numbers; `dataclasses.asdict` turns one into valid JSON,
with null for whatever is undefined and a `reason` beside it. Everywhere `a - b` is the direction
of a difference, so for perplexity a negative one favours a.
"""

from __future__ import annotations

from analysis.stats.anytime import Anytime, anytime
from analysis.stats.budget import Source, VarianceBudget, variance_budget
from analysis.stats.comparison import Comparison, TTest, compare, holm_family
from analysis.stats.components import Components, components
from analysis.stats.estimate import Estimate, PooledVariance, pooled_variance
from analysis.stats.mcnemar import PairedItems, mcnemar
from analysis.stats.multiplicity import holm, stars
from analysis.stats.paired import PairedWindows, paired_windows
from analysis.stats.planning import Design, seeds_for_difference, seeds_for_equivalence
from analysis.stats.pooling import PooledModels, log_difference, pool_models
from analysis.stats.power import equivalence_power, mde80, t_power
from analysis.stats.samples import Description, describe
from analysis.stats.sequential import Look, LookJudgement, judge_looks, sequential_p
from analysis.stats.spending import hwang_shih_decani, nominal_levels, obrien_fleming, pocock
from analysis.stats.spread import SpreadComparison, compare_spread, seeds_to_find_halving
from analysis.stats.text import TextComparison, compare_on_text
from analysis.stats.verdicts import Judgement, Verdict, judge, verdict

__all__ = [
    "Anytime",
    "Comparison",
    "Components",
    "Description",
    "Design",
    "Estimate",
    "Judgement",
    "Look",
    "LookJudgement",
    "PairedItems",
    "PairedWindows",
    "PooledModels",
    "PooledVariance",
    "Source",
    "SpreadComparison",
    "TTest",
    "TextComparison",
    "VarianceBudget",
    "Verdict",
    "anytime",
    "compare",
    "compare_on_text",
    "compare_spread",
    "components",
    "describe",
    "equivalence_power",
    "holm",
    "holm_family",
    "hwang_shih_decani",
    "judge",
    "judge_looks",
    "log_difference",
    "mcnemar",
    "mde80",
    "nominal_levels",
    "obrien_fleming",
    "paired_windows",
    "pocock",
    "pool_models",
    "pooled_variance",
    "seeds_for_difference",
    "seeds_for_equivalence",
    "seeds_to_find_halving",
    "sequential_p",
    "stars",
    "t_power",
    "variance_budget",
    "verdict",
]
