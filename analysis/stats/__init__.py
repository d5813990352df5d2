"""The statistics of the analysis: pure functions from arrays to numbers.

Results are frozen dataclasses of plain numbers; `dataclasses.asdict` turns one into valid JSON,
with null for undefined numbers and a `reason`. Every difference is `a - b`, so for perplexity a
negative one favours a.
"""

from analysis.stats.comparison import compare
from analysis.stats.power import Design, seeds_for_difference, seeds_for_equivalence
from analysis.stats.sequential import anytime
from analysis.stats.text import compare_on_text

__all__ = [
    "Design",
    "anytime",
    "compare",
    "compare_on_text",
    "seeds_for_difference",
    "seeds_for_equivalence",
]
