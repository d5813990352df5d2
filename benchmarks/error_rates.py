"""Measure how often verdicts are wrong: `python benchmarks/error_rates.py [--json] [--until=…]`.

Simulated suites with a known truth, judged by the functions that judge real ones: how often a
family says "different" where nothing differs, "equivalent" where every difference is as large as
the margin, and how often each interval holds the truth. The text is a process of 466 windows in 23
documents, as long as the held-out speeches; a suite evaluates 16, 64, 166 or all of them, evenly
spread.

--until=settled  instead: looks at 5, 10, ..., 30 seeds of 30, and the seeds that they save
--suites=N       simulated suites per line (2,000: a rate of 5 % is known to 1 point)
--json           one JSON object per line
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from analysis.stats import Estimate, Look, compare_on_text, judge, judge_looks
from analysis.stats.text import Question

Array = NDArray[np.float64]
Draw = Callable[..., Array]
QUESTIONS: tuple[Question, ...] = ("mix", "eras")

# Windows of 512 tokens in each held-out speech.
DOCUMENTS = (5, 6, 10, 17, 28, 50, 39, 24, 19, 32, 49, 45, 13, 20, 9, 8, 12, 16, 10, 12, 17, 12, 13)
WINDOWS = sum(DOCUMENTS)
# Difference of two methods by eighth of the text, as docs/evidence/study.md measured it.
ERAS = np.array([2.29, 0.76, 0.97, 0.77, 0.07, -0.69, -0.67, -3.03]) / 100
# Nats per token. Differences of two methods between windows, and between documents where both
# vary; seeds and arithmetic as measured on the demo; seed x window noise is assumed.
WINDOW, HALF = 0.019, 0.0133
SEED, ARITHMETIC, SEED_WINDOW = 0.006, 0.006, 0.02
# A process without documents: correlation of windows that lie 29 windows (14,848 tokens) apart.
PROCESS, CORRELATION, APART = 0.035, 0.44, 29
TOKENS = 512
MARGIN = math.log1p(0.01)
MAXIMUM, LOOKS = 30, (5, 10, 15, 20, 25, 30)


class Truth(NamedTuple):
    """How a difference is made: what varies with eras, documents and windows, and the noise.

    eras: "fixed" are a fact, "anew" are drawn per suite. documents: sd between documents.
    """

    eras: str = ""
    documents: float = 0.0
    windows: float = WINDOW
    noise: str = "normal"
    unequal: bool = False
    process: bool = False


TRUTHS = {
    "fixed eras": Truth("fixed"),
    "fixed eras and documents": Truth("fixed", HALF, HALF),
    "no eras": Truth(),
    "t3": Truth("fixed", HALF, HALF, "t3"),
    "lognormal": Truth("fixed", HALF, HALF, "lognormal"),
    "unequal tokens": Truth("fixed", HALF, HALF, unequal=True),
    "eras drawn anew": Truth("anew"),
    "process without documents": Truth(process=True),
}


def noises(rng: np.random.Generator) -> dict[str, Draw]:
    """Return functions that draw values of mean 0 and variance 1, by name."""
    lognormal_sd = math.sqrt((math.e - 1) * math.e)
    return {
        "normal": lambda *size: rng.normal(size=size),
        "lognormal": lambda *size: (rng.lognormal(size=size) - math.exp(0.5)) / lognormal_sd,
        "t3": lambda *size: rng.standard_t(3, size=size) / math.sqrt(3),
    }


def profiles(truth: Truth, draw: Draw, methods: int) -> Array:
    """Return what the whole text adds to each method, nats per token: [methods, WINDOWS].

    The difference of the first method and another one is as `truth` says; its mean is 0.
    """
    if truth.process:
        rho = CORRELATION ** (1 / APART)
        steps = draw(methods, 1, WINDOWS + 500) * math.sqrt((1 - rho**2) / 2)
        found = PROCESS * lfilter([1], [1, -rho], steps, axis=-1)[:, 0, 500:]
        return np.asarray(found, dtype=np.float64)
    label = np.repeat(np.arange(len(DOCUMENTS)), DOCUMENTS)
    era = np.arange(WINDOWS) * len(ERAS) // WINDOWS
    found = truth.windows * draw(methods, WINDOWS) / math.sqrt(2)
    found += truth.documents * draw(methods, len(DOCUMENTS))[:, label] / math.sqrt(2)
    if truth.eras == "fixed":
        found[0] += ERAS[era] - ERAS[era].mean()
    elif truth.eras == "anew":
        found += ERAS.std(ddof=1) * draw(methods, len(ERAS))[:, era] / math.sqrt(2)
    return found


def nll(truth: Truth, draw: Draw, methods: int, seeds: int, windows: int, tokens: Array) -> Array:
    """Return NLL sums [methods, seeds, windows] of methods that are equal on text at large."""
    at = np.arange(windows) * WINDOWS // windows
    text = profiles(truth, draw, methods)[:, None, at]
    level = SEED * draw(methods, seeds, 1) + ARITHMETIC * draw(methods, seeds, 1)
    each = 3.6 + text + level + SEED_WINDOW * draw(methods, seeds, windows)
    return np.maximum(each, 0.0) * tokens


def fixed(name: str, windows: int, seeds: int, suites: int, methods: int = 3) -> dict[str, Any]:
    """Return the rates of suites that run all their seeds; the first method against each other."""
    truth = TRUTHS[name]
    rng = np.random.default_rng([windows, seeds, list(TRUTHS).index(name)])
    draw = noises(rng)[truth.noise]
    label = np.repeat(np.arange(len(DOCUMENTS)), DOCUMENTS)[np.arange(windows) * WINDOWS // windows]
    documents = None if truth.process else label
    different = equivalent = alone = 0
    covered, width = {"mix": 0, "eras": 0}, {"mix": 0.0, "eras": 0.0}
    for _ in range(suites):
        tokens = rng.integers(64, 512, windows) + 0.0 if truth.unequal else np.full(windows, 512.0)
        first, *others = nll(truth, draw, methods, seeds, windows, tokens)
        for question in QUESTIONS:
            found = [
                compare_on_text(first, b, tokens, documents=documents, text=question)
                for b in others
            ]
            for f in found:
                assert f.ci is not None
                covered[question] += f.ci[0] <= 0 <= f.ci[1]
                width[question] += f.ci[1] - f.ci[0]
            if question == "mix":
                known = [f.estimate for f in found]
                words = {j.verdict for j in judge(known, [MARGIN] * len(known))}
                different += "different" in words
                moved = [e and Estimate(e.difference + MARGIN, e.std_error, e.df) for e in known]
                words = {j.verdict for j in judge(moved, [MARGIN] * len(known))}
                equivalent += "equivalent" in words
        alone += sum(welch(first.sum(1), b.sum(1)).p_value >= 0.05 for b in others)
    intervals = suites * (methods - 1) / 100
    return {
        "truth": name,
        "windows": windows,
        "seeds": seeds,
        "mix_coverage": covered["mix"] / intervals,
        "mix_half_width_percent": width["mix"] / intervals / 2,
        "eras_coverage": covered["eras"] / intervals,
        "eras_half_width_percent": width["eras"] / intervals / 2,
        "false_different": 100 * different / suites,
        "false_equivalent": 100 * equivalent / suites,
        "coverage_of_seeds_alone": alone / intervals,
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
    for name in TRUTHS:
        for windows in (16, 64, 166, WINDOWS):
            for seeds in (3, 5, 10):
                yield fixed(name, windows, seeds, suites)


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
