"""How often the verdicts are wrong: `python benchmarks/error_rates.py [--json] [--until=settled]`.

Simulated suites in the likeness of the demo, judged by the functions that judge real ones: how
often a family says "different" where nothing differs, "equivalent" where every difference is as
large as the margin, and how often the headline interval holds the difference on other text.

--until=settled  instead: looks at 5, 10, ..., 30 seeds of 30, and the seeds that these save
--suites=N       simulated suites a line (2,000: a rate of 5 % is known to 1 point)
--json           one JSON object a line
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from analysis.stats import Estimate, Look, compare_on_text, judge, judge_looks

Array = NDArray[np.float64]
Draw = Callable[..., Array]

# Nats a token: as measured on the demo's SmolLM2, 16 windows of 512 tokens.
WINDOW, METHOD_WINDOW, CORRELATION = 0.4, 0.035, 0.44
SEED, ARITHMETIC, SEED_WINDOW = 0.006, 0.006, 0.02
TOKENS = 512
MARGIN = math.log1p(0.01)
MAXIMUM, LOOKS = 30, (5, 10, 15, 20, 25, 30)


def noises(rng: np.random.Generator) -> dict[str, Draw]:
    """Draws of mean 0 and variance 1, by name."""
    lognormal_sd = math.sqrt((math.e - 1) * math.e)
    return {
        "normal": lambda *size: rng.normal(size=size),
        "lognormal": lambda *size: (rng.lognormal(size=size) - math.exp(0.5)) / lognormal_sd,
        "t3": lambda *size: rng.standard_t(3, size=size) / math.sqrt(3),
    }


def nll(draw: Draw, methods: int, seeds: int, windows: int) -> Array:
    """NLL sums [methods, seeds, windows] of methods that are equal on text at large.

    METHOD_WINDOW is the standard deviation of the difference of two methods' windows, first-order
    autoregressive along the text.
    """
    # The first 50 windows are thrown away, so that the rest start in the middle of a text.
    steps = draw(methods, 1, windows + 50) * math.sqrt((1 - CORRELATION**2) / 2)
    profile = METHOD_WINDOW * lfilter([1], [1, -CORRELATION], steps, axis=-1)[..., 50:]
    level = SEED * draw(methods, seeds, 1) + ARITHMETIC * draw(methods, seeds, 1)
    text = np.abs(3.6 + WINDOW * draw(windows))
    each = text + profile + level + SEED_WINDOW * draw(methods, seeds, windows)
    return np.maximum(each, 0.0) * TOKENS


def fixed(windows: int, seeds: int, noise: str, suites: int, methods: int = 3) -> dict[str, Any]:
    """Rates of suites that run all their seeds; the first method against each other one."""
    rng = np.random.default_rng([windows, seeds, len(noise)])
    draw, tokens = noises(rng)[noise], np.full(windows, float(TOKENS))
    different = equivalent = covered = alone = 0
    width = 0.0
    for _ in range(suites):
        first, *others = nll(draw, methods, seeds, windows)
        found = [compare_on_text(first, other, tokens) for other in others]
        known = [f.estimate for f in found]
        different += any(j.verdict == "different" for j in judge(known, [MARGIN] * len(known)))
        moved = [e and Estimate(e.difference + MARGIN, e.std_error, e.df) for e in known]
        equivalent += any(j.verdict == "equivalent" for j in judge(moved, [MARGIN] * len(known)))
        for f, other in zip(found, others, strict=True):
            assert f.ci is not None
            covered += f.ci[0] <= 0 <= f.ci[1]
            width += f.ci[1] - f.ci[0]
            alone += welch(first.sum(axis=1), other.sum(axis=1)).p_value >= 0.05
    intervals = suites * (methods - 1)
    return {
        "windows": windows,
        "seeds": seeds,
        "noise": noise,
        "false_different_percent": 100 * different / suites,
        "false_equivalent_percent": 100 * equivalent / suites,
        "coverage_percent": 100 * covered / intervals,
        "half_width_percent": 100 * width / intervals / 2,
        "coverage_of_seeds_alone_percent": 100 * alone / intervals,
    }


def welch(a: Array, b: Array) -> Estimate:
    """Return the difference of two groups with Welch's error."""
    terms = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    df = sum(terms) ** 2 / (terms[0] ** 2 / (a.size - 1) + terms[1] ** 2 / (b.size - 1))
    return Estimate(float(a.mean() - b.mean()), math.sqrt(sum(terms)), float(df))


def run_until_settled(values: Array, margin: float) -> tuple[list[str], list[int]]:
    """Judge methods [methods, MAXIMUM], the first against each other one, at LOOKS.

    Returns the verdicts and the seeds that each method ran.
    """
    first, *others = values
    histories: list[list[Look]] = [[] for _ in others]
    ran = [0] * len(values)
    active = list(range(len(others)))
    verdicts = ["open"] * len(others)
    for n in LOOKS:
        for k in active:
            histories[k].append(Look(n, welch(first[:n], others[k][:n])))
            ran[k + 1] = ran[0] = n
        judged = judge_looks(histories, [margin] * len(others), MAXIMUM)
        verdicts = [j.verdict for j in judged]
        active = [k for k in active if verdicts[k] == "open"]
        if not active:
            break
    return verdicts, ran


def settled(
    comparisons: int, d: float, ratio: float, margin: float, noise: str, suites: int
) -> dict[str, Any]:
    """Rates and seeds of suites that stop when nothing is open.

    d, margin: in standard deviations of a seed, pooled over the two of a pair; d is that of every
    pair. ratio: of the others' standard deviation to the first one's.
    """
    rng = np.random.default_rng([comparisons, int(100 * d), int(10 * ratio), int(100 * margin)])
    draw = noises(rng)[noise]
    sds = np.array([1.0, *[ratio] * comparisons]) / math.sqrt((1 + ratio**2) / 2)
    any_word, every, seeds = {"different": 0, "equivalent": 0}, 0, 0.0
    for _ in range(suites):
        values = sds[:, None] * draw(len(sds), MAXIMUM)
        values[0] += d
        words, ran = run_until_settled(values, margin)
        for word in any_word:
            any_word[word] += word in words
        every += sum(word == "different" for word in words)
        seeds += float(np.mean(ran))
    return {
        "comparisons": comparisons,
        "d": d,
        "sd_ratio": ratio,
        "margin_sd": margin,
        "noise": noise,
        "any_different_percent": 100 * any_word["different"] / suites,
        "any_equivalent_percent": 100 * any_word["equivalent"] / suites,
        "power_percent": 100 * every / suites / comparisons,
        "mean_seeds": seeds / suites,
    }


def fixed_lines(suites: int) -> Iterator[dict[str, Any]]:
    for noise in ("normal", "lognormal", "t3"):
        for windows in (16, 64, 166):
            for seeds in (5, 10, 15, 30):
                yield fixed(windows, seeds, noise, suites)


def settled_lines(suites: int) -> Iterator[dict[str, Any]]:
    """First without a margin to reach, as the seeds saved are quoted; then false equivalence."""
    for ratio in (1.0, 2.0):
        for comparisons in (1, 2, 6):
            for d in (0.0, 0.75, 1.0, 1.5, 2.0):
                yield settled(comparisons, d, ratio, 0.01, "normal", suites)
            for d in (0.0, 1.2):
                yield settled(comparisons, d, ratio, 1.2, "normal", suites)
    for noise in ("lognormal", "t3"):
        for d, margin in ((0.0, 0.01), (1.2, 1.2)):
            yield settled(2, d, 1.0, margin, noise, suites)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--until", choices=("seeds", "settled"), default="seeds")
    parser.add_argument("--suites", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines = (settled_lines if options.until == "settled" else fixed_lines)(options.suites)
    for number, line in enumerate(lines):
        if options.json:
            print(json.dumps(line), flush=True)
            continue
        if number == 0:
            print("  ".join(line))
        cells = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in line.values()]
        print("  ".join(c.rjust(len(k)) for c, k in zip(cells, line, strict=True)), flush=True)


if __name__ == "__main__":
    main()
