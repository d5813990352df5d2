"""Measure how often verdicts are wrong: `python studies/error_rates.py [--of=…]`.

Simulated suites with a known truth, judged by the functions that judge real ones: how often a
family says "different" where nothing differs, "equivalent" where every difference is as large as
the margin, and how often each interval holds the truth. The text is a process of 466 windows in 23
documents, as long as the held-out speeches; a suite evaluates 16, 64, 166 or all of them, evenly
spread.

Prints one JSON object per line.

--of=settled     instead: looks at 5, 10, ..., 30 seeds of 30, and the seeds that they save
--of=few         instead: groups of two or three seeds, of unequal spread
--of=best        instead: how often the bounds of all methods on the best one hold
--of=rules       instead: the same for other rules of the degrees of freedom, by chi-squared draws
--of=plans       instead: what presets and splits of the demo's time can find
--suites=N       simulated suites per line (2,000: a rate of 5 % is known to 1 point)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.signal import lfilter

from analysis.stats.power import prospect
from analysis.stats.samples import Estimate
from analysis.stats.sequential import Look, judge_looks
from analysis.stats.text import Question, compare_on_text
from analysis.stats.verdicts import judge, standings

Array = NDArray[np.float64]
Draw = Callable[..., Array]
QUESTIONS: tuple[Question, ...] = ("mix", "eras")

# Windows of 512 tokens in each held-out speech.
DOCUMENTS = (5, 6, 10, 17, 28, 50, 39, 24, 19, 32, 49, 45, 13, 20, 9, 8, 12, 16, 10, 12, 17, 12, 13)
WINDOWS = sum(DOCUMENTS)
LABEL = np.repeat(np.arange(len(DOCUMENTS)), DOCUMENTS)
# Difference of two methods by eighth of the text, as docs/evidence/study.md measured it.
ERAS = np.array([2.29, 0.76, 0.97, 0.77, 0.07, -0.69, -0.67, -3.03]) / 100
# Nats per token. Differences of two methods between windows, and between documents where both
# vary; seeds and arithmetic as measured on the demo; seed x window noise is assumed.
WINDOW, HALF = 0.019, 0.0133
SEED, ARITHMETIC, SEED_WINDOW = 0.006, 0.006, 0.02
# A process without documents: correlation of windows that lie 29 windows (14,848 tokens) apart.
PROCESS, CORRELATION, APART = 0.035, 0.44, 29
TOKENS = 512.0
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


def evaluated(windows: int) -> NDArray[np.int64]:
    """Return which windows of the text a suite evaluates that evaluates so many: evenly spread."""
    return np.arange(windows) * WINDOWS // windows


def profiles(truth: Truth, draw: Draw, methods: int) -> Array:
    """Return what the whole text adds to each method, nats per token: [methods, WINDOWS].

    The difference of the first method and another one is as `truth` says; its mean is 0.
    """
    if truth.process:
        rho = CORRELATION ** (1 / APART)
        steps = draw(methods, 1, WINDOWS + 500) * math.sqrt((1 - rho**2) / 2)
        found = PROCESS * lfilter([1], [1, -rho], steps, axis=-1)[:, 0, 500:]
        return np.asarray(found, dtype=np.float64)
    era = np.arange(WINDOWS) * len(ERAS) // WINDOWS
    found = truth.windows * draw(methods, WINDOWS) / math.sqrt(2)
    found += truth.documents * draw(methods, len(DOCUMENTS))[:, LABEL] / math.sqrt(2)
    if truth.eras == "fixed":
        found[0] += ERAS[era] - ERAS[era].mean()
    elif truth.eras == "anew":
        found += ERAS.std(ddof=1) * draw(methods, len(ERAS))[:, era] / math.sqrt(2)
    return found


def nll(truth: Truth, draw: Draw, methods: int, seeds: int, windows: int, tokens: Array) -> Array:
    """Return NLL sums [methods, seeds, windows] of methods that are equal on text at large."""
    text = profiles(truth, draw, methods)[:, None, evaluated(windows)]
    level = SEED * draw(methods, seeds, 1) + ARITHMETIC * draw(methods, seeds, 1)
    each = 3.6 + text + level + SEED_WINDOW * draw(methods, seeds, windows)
    return np.maximum(each, 0.0) * tokens


def fixed(name: str, windows: int, seeds: int, suites: int, methods: int = 3) -> dict[str, Any]:
    """Return the rates of suites that run all their seeds; the first method against each other."""
    truth = TRUTHS[name]
    rng = np.random.default_rng([windows, seeds, list(TRUTHS).index(name)])
    draw = noises(rng)[truth.noise]
    documents = None if truth.process else LABEL[evaluated(windows)]
    different = equivalent = alone = 0
    covered, width = {"mix": 0, "eras": 0}, {"mix": 0.0, "eras": 0.0}
    for _ in range(suites):
        tokens = rng.integers(64, 512, windows) + 0.0 if truth.unequal else np.full(windows, TOKENS)
        first, *others = nll(truth, draw, methods, seeds, windows, tokens)
        for question in QUESTIONS:
            found = [
                compare_on_text(first, b, tokens, documents=documents, text=question)
                for b in others
            ]
            for f in found:
                covered[question] += f.ci[0] <= 0 <= f.ci[1]
                width[question] += f.ci[1] - f.ci[0]
            if question == "mix":
                known = [f.estimate for f in found]
                moved = [Estimate(e.difference + MARGIN, e.std_error, e.df) for e in known]
                margins = [MARGIN] * len(known)
                different += any(j.verdict == "different" for j in judge(known, margins))
                equivalent += any(j.verdict == "equivalent" for j in judge(moved, margins))
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
    """Return rates and seeds of suites that stop when nothing is open.

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


def few(n_a: int, n_b: int, ratio: float, windows: int, suites: int) -> dict[str, Any]:
    """Return how often intervals hold for few seeds; ratio: of the first spread to the second."""
    rng = np.random.default_rng([n_a, n_b, windows])
    draw, truth = noises(rng)["normal"], TRUTHS["fixed eras and documents"]
    at, tokens = evaluated(windows), np.full(windows, TOKENS)
    held = narrower = 0
    for _ in range(suites):
        text = profiles(truth, draw, 2)[:, at]
        rows = [
            3.6 + text[k] + sd * draw(n, 1) + SEED_WINDOW * draw(n, windows)
            for k, n, sd in ((0, n_a, ratio * SEED), (1, n_b, SEED))
        ]
        found = compare_on_text(rows[0] * TOKENS, rows[1] * TOKENS, tokens, documents=LABEL[at])
        held += found.ci[0] <= 0 <= found.ci[1]
        alone = welch(rows[0].mean(axis=1), rows[1].mean(axis=1)).interval(0.05)
        narrower += found.ci[1] - found.ci[0] < (alone[1] - alone[0]) * (1 - 1e-9)
    return {
        "seeds": f"{n_a} + {n_b}",
        "spreads": f"{ratio:g} : 1",
        "windows": windows,
        "mix_coverage": 100 * held / suites,
        "narrower_than_seeds_alone": 100 * narrower / suites,
    }


def best(
    name: str, levels: tuple[float, ...], windows: int, seeds: int, suites: int
) -> dict[str, Any]:
    """Return how often the bounds on the best method hold for all methods; levels: true, nats."""
    truth, methods = TRUTHS[name], len(levels)
    known_as = [list(TRUTHS).index(name), methods, windows, int(1e4 * sum(levels))]
    rng = np.random.default_rng(known_as)
    draw, tokens = noises(rng)[truth.noise], np.full(windows, TOKENS)
    documents = LABEL[evaluated(windows)]
    gaps = np.array(levels) - min(levels)
    most = least = 0
    bounds: list[float] = []
    for _ in range(suites):
        rows = nll(truth, draw, methods, seeds, windows, tokens)
        rows += np.array(levels)[:, None, None] * tokens
        known = {}
        for j, i in combinations(range(methods), 2):
            e = compare_on_text(rows[i], rows[j], tokens, documents=documents).estimate
            known[i, j], known[j, i] = e, Estimate(-e.difference, e.std_error, e.df)
        found = standings(range(methods), lambda a, b, level, of=known: of[a, b].interval(level))
        most += all(g <= s.at_most for s, g in zip(found, gaps, strict=True))
        least += all(g >= s.at_least for s, g in zip(found, gaps, strict=True))
        bounds.append(min(s.at_most for s in found))
    return {
        "truth": name,
        "levels": ", ".join(f"{100 * level:g}" for level in levels),
        "windows": windows,
        "seeds": seeds,
        "at_most_holds": 100 * most / suites,
        "at_least_holds": 100 * least / suites,
        "median_bound_of_the_first_percent": 100 * math.expm1(float(np.median(bounds))),
    }


def rules(n_a: int, n_b: int, ratio: float, windows: int, suites: int) -> dict[str, Any]:
    """Return the coverage in % of intervals that differ in their degrees of freedom alone.

    Each variance is drawn from its chi-squared distribution, without seed x window noise. "used" is
    the rule of `compare_on_text`: Satterthwaite's, at most Welch's where the seeds' part is the
    larger. "uncapped" leaves that limit out. "smaller" is at most the seeds minus 1 of the arm
    with the larger error. "welch" is Welch's interval over seeds alone.
    """
    rng, parts = np.random.default_rng([n_a, n_b, windows]), min(windows, len(DOCUMENTS))
    truth = (ratio * SEED) ** 2 / n_a, SEED**2 / n_b, HALF**2 * (1 / windows + 1 / parts)
    dfs = n_a - 1, n_b - 1, 2 * (parts - 1) / 3
    drawn = [v * rng.chisquare(df, suites) / df for v, df in zip(truth, dfs, strict=True)]
    seeds, total = drawn[0] + drawn[1], sum(drawn)
    squares = [v**2 / df for v, df in zip(drawn, dfs, strict=True)]
    whole, welchs = total**2 / sum(squares), seeds**2 / (squares[0] + squares[1])
    most = seeds >= drawn[2]
    used = np.where(most, np.minimum(whole, welchs), whole)
    arm = np.where(drawn[0] >= drawn[1], dfs[0], dfs[1])
    smaller = np.where(most, np.minimum(used, arm), used)
    z = np.abs(rng.normal(size=suites))
    rates = {}
    for name, df in {"used": used, "uncapped": whole, "smaller": smaller}.items():
        held = z * math.sqrt(sum(truth)) <= special.stdtrit(df, 0.975) * np.sqrt(total)
        rates[name] = 100 * float(np.mean(held))
    alone = special.stdtrit(welchs, 0.975) * np.sqrt(seeds)
    rates["welch"] = 100 * float(np.mean(z * math.sqrt(truth[0] + truth[1]) <= alone))
    return {"seeds": f"{n_a} + {n_b}", "spreads": f"{ratio:g} : 1", "windows": windows, **rates}


# Seconds on two cores with two workers (SmolLM2-135M, 8 x 512 tokens): a cell's quantization, and a
# window of 512 tokens.
QUANTIZE, EVALUATE = 18.5, 2.0


def plans(
    what: str, methods: int, seeds: int, windows: int, documents: int | None = None
) -> dict[str, Any]:
    """Return what a suite can find with the documented noise; minutes as for the demo's model.

    documents: in which the windows lie; None: the speeches in which so many evenly spread ones do.
    """
    if documents is None:
        documents = len(set(LABEL[evaluated(windows)]))
    found = prospect(methods, seeds, windows, documents)
    seconds = methods * seeds * (QUANTIZE + EVALUATE * windows) / 2
    return {
        "what": what,
        "methods": methods,
        "seeds": seeds,
        "windows": windows,
        "minutes": seconds / 60,
        "difference_percent": found.difference,
        "bound_percent": found.bound,
        "equivalence_percent": 100 * found.equivalence,
    }


SPREADS = (2, 10, 2.0), (3, 30, 4.0)
"""Seeds of two groups, and the ratio of their spreads."""


def lines(of: str, suites: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of one table of docs/evidence/error-rates.md."""
    if of == "seeds":
        for name, windows, seeds in product(TRUTHS, (16, 64, 166, WINDOWS), (3, 5, 10)):
            yield fixed(name, windows, seeds, suites)
    elif of == "settled":
        # Without a margin to reach, as the seeds saved are quoted; then false equivalence.
        for ratio, comparisons in product((1.0, 2.0), (1, 2, 6)):
            for d in (0.0, 0.75, 1.0, 1.5, 2.0):
                yield settled(comparisons, d, ratio, 0.01, "normal", suites)
            for d in (0.0, 1.2):
                yield settled(comparisons, d, ratio, 1.2, "normal", suites)
        for noise, (d, margin) in product(("lognormal", "t3"), ((0.0, 0.01), (1.2, 1.2))):
            yield settled(2, d, 1.0, margin, noise, suites)
    elif of == "few":
        groups = (2, 2, 1.0), (3, 3, 1.0), (2, 10, 1.0), *SPREADS
        for group, windows in product(groups, (16, 64, 166)):
            yield few(*group, windows, suites)
    elif of == "best":
        levels = (0.0, 0.0, 0.0), (0.0, 0.01, 0.07), (0.0, 0.05, 0.05), (0.0, *[0.05] * 5)
        sizes = (16, 5), (64, 10)
        for name, true, size in product(("fixed eras and documents", "t3"), levels, sizes):
            yield best(name, true, *size, suites)
    elif of == "rules":
        groups = (3, 3, 1.0), (5, 5, 1.0), (10, 10, 1.0), *SPREADS
        for group, windows in product(groups, (16, 64, 466)):
            yield rules(*group, windows, 100 * suites)
    else:
        articles = 60
        for seeds, windows in ((3, 32), (4, 24), (5, 16), (6, 12), (7, 8)):
            yield plans("demo", 3, seeds, windows)
        for seeds, windows in ((5, 24), (7, 16), (8, 12), (60, 128)):
            yield plans("two methods", 2, seeds, windows)
        yield plans("quick", 2, 2, 166, articles)
        yield plans("validation", 3, 3, 166, articles)
        yield plans("full", 3, 5, 166, articles)
        yield plans("full, 10 seeds", 3, 10, 166, articles)
        yield plans("study", 11, 30, 64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables = ("seeds", "settled", "few", "best", "rules", "plans")
    parser.add_argument("--of", choices=tables, default="seeds")
    parser.add_argument("--suites", type=int, default=2000)
    options = parser.parse_args()
    for line in lines(options.of, options.suites):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
