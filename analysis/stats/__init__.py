"""The statistics of the analysis: pure functions from arrays to numbers.

Results are frozen dataclasses of plain numbers; `dataclasses.asdict` turns one into valid JSON,
with null for undefined numbers and a `reason`. Every difference is `a - b`, so for perplexity a
negative one favours a.
"""

from __future__ import annotations

from analysis.stats.budget import Source, VarianceBudget, variance_budget
from analysis.stats.comparison import (
    Comparison,
    PairedItems,
    SpreadComparison,
    TTest,
    compare,
    compare_spread,
    holm_family,
    mcnemar,
    seeds_to_find_halving,
)
from analysis.stats.pooling import PooledModels, log_difference, pool_models
from analysis.stats.power import (
    DOCUMENTED,
    Design,
    Noise,
    Prospect,
    equivalence_power,
    prospect,
    seeds_for_difference,
    seeds_for_equivalence,
    t_power,
)
from analysis.stats.samples import Description, Estimate, PooledVariance, describe, pooled_variance
from analysis.stats.sequential import (
    Anytime,
    Look,
    LookJudgement,
    anytime,
    hwang_shih_decani,
    judge_looks,
    median_unbiased,
    nominal_levels,
    sequential_p,
)
from analysis.stats.text import TextComparison, compare_on_text
from analysis.stats.verdicts import (
    Judgement,
    Standing,
    Verdict,
    holm,
    judge,
    standings,
    stars,
    verdict,
)

__all__ = [
    "DOCUMENTED",
    "Anytime",
    "Comparison",
    "Description",
    "Design",
    "Estimate",
    "Judgement",
    "Look",
    "LookJudgement",
    "Noise",
    "PairedItems",
    "PooledModels",
    "PooledVariance",
    "Prospect",
    "Source",
    "SpreadComparison",
    "Standing",
    "TTest",
    "TextComparison",
    "VarianceBudget",
    "Verdict",
    "anytime",
    "compare",
    "compare_on_text",
    "compare_spread",
    "describe",
    "equivalence_power",
    "holm",
    "holm_family",
    "hwang_shih_decani",
    "judge",
    "judge_looks",
    "log_difference",
    "mcnemar",
    "median_unbiased",
    "nominal_levels",
    "pool_models",
    "pooled_variance",
    "prospect",
    "seeds_for_difference",
    "seeds_for_equivalence",
    "seeds_to_find_halving",
    "sequential_p",
    "standings",
    "stars",
    "t_power",
    "variance_budget",
    "verdict",
]
