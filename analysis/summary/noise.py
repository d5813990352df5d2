"""The noise of finished runs, for the plan of the next suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from analysis.reading.runs import load_suite, suites_like
from analysis.reading.table import RunsError
from analysis.stats.budget import within
from analysis.stats.power import Noise
from analysis.stats.text import FEWEST_WINDOWS, compare_on_text, parts_of
from analysis.summary.methods import Text
from analysis.summary.options import Options
from analysis.summary.summarize import summarize

FEWEST_METHODS, FEWEST_SEEDS = 2, 3


def noise_in_store(
    experiments: Sequence[str], model: str, settings: Mapping[str, str]
) -> Noise | None:
    """Return the noise of the newest finished suite of a model in these settings.

    experiments: ids. settings: parameter -> value as a suite logs it. A suite counts with 2 methods
    of 3 seeds on 8 windows or more. None where there is no such suite.
    """
    for suite in suites_like(experiments, model, settings):
        try:
            cells = load_suite(suite, allow_failed=True)
            summary = summarize(cells[cells["model"] == model], Options())
        except RunsError:
            continue
        text = summary.texts.get(model)
        found = None if text is None else noise_of(text, f"suite {suite}")
        if found is not None:
            return found
    return None


def noise_of(text: Text, source: str) -> Noise | None:
    """Return the noise of one model's runs; None for too few methods, seeds or windows.

    The text's part, as `compare_on_text` estimates it, is averaged over the pairs of methods. What
    windows of one document add to it is known where documents hold several; else half of it counts
    as such.
    """
    rows = [draws.rows for draws in text.draws.values() if len(draws.rows) >= FEWEST_SEEDS]
    windows, total = text.tokens.size, text.tokens.sum()
    if len(rows) < FEWEST_METHODS or windows < FEWEST_WINDOWS:
        return None
    pairs = [
        compare_on_text(a, b, text.tokens, documents=text.documents)
        for a, b in combinations(rows, 2)
    ]
    each = [max(0.0, (p.text_variance or 0.0) - (p.overlap_variance or 0.0)) / 2 for p in pairs]
    of_text, parts = float(np.mean(each)), parts_of("mix", text.tokens, text.documents)
    inside = within(rows, text.tokens, parts)
    inside = min(of_text, of_text / 2 if inside is None else inside)
    df = sum(len(x) - 1 for x in rows)
    seed = sum((len(x) - 1) * np.var(x.sum(axis=1) / total, ddof=1) for x in rows) / df
    return Noise(
        seed=100 * math.sqrt(seed),
        window=100 * math.sqrt(inside * windows),
        document=100 * math.sqrt((of_text - inside) * parts.size.size),
        source=source,
    )
