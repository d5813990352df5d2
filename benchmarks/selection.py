"""What selecting costs, against tokenising the corpus once: `python benchmarks/selection.py`.

--json          one JSON object, with the ratios that issue and documentation quote
--growth=1,10   besides, time a document and peak memory at so many times the corpus
--methods       besides, a row for every method (those with a model take minutes on a CPU)
--figure=FILE   draw the growth curve

Ratios of times hold within one run alone. Each measurement has a process and a cache of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, overload

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._memory import peak_resident

N, SEQ_LEN = 128, 2048
MODEL, CORPUS = "smollm2-135m", "sotu"


class Repeated(Sequence[str]):
    """A corpus `times` over, made as it is read: no copy is like another, nor in memory.

    In each copy, every twentieth word of a document is one that no other copy has, so that the
    vocabulary grows with the corpus as it does in a real one.
    """

    def __init__(self, documents: Sequence[str], times: int) -> None:
        self.documents, self.times = documents, times

    def __len__(self) -> int:
        return len(self.documents) * self.times

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        copy, document = divmod(int(index), len(self.documents))
        words = self.documents[document].split(" ")
        for i in range((document + copy) % 20, len(words), 20):
            words[i] = f"{words[i]}{copy}"
        return " ".join(words)


def timed(function: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def materials(times: int = 0) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and corpus, with the libraries loaded: imports are no selecting.

    With `times`, the corpus is so many varied copies of itself; 0 leaves it as it is.
    """
    import sklearn.cluster
    import sklearn.decomposition
    import sklearn.feature_extraction.text  # noqa: F401

    from colazero import corpora, models

    model = models.fetch(MODEL)
    corpus = corpora.load(CORPUS)
    if times:
        corpus = replace(
            corpus, name=f"{CORPUS}x{times}", train=Repeated(corpus.train, times), test=[]
        )
    return model, models.load_tokenizer(model), corpus


def floor(corpus: Any, tokenizer: Any) -> float:
    """Return the seconds of tokenising the corpus once, in the pool's batches, keeping nothing."""
    from colazero.corpora import tokens as pool

    plain = pool._plain(tokenizer)

    def tokenise() -> None:
        for first in range(0, len(corpus.train), pool.BATCH):
            plain.encode_batch_fast(
                list(corpus.train[first : first + pool.BATCH]), add_special_tokens=False
            )

    return timed(tokenise)[0]


def ratios(seeds: int = 4, rounds: int = 3) -> dict[str, float]:
    """Measure cola_zero's first and further seeds against the floor, and its k-means.

    Floor and first seed take turns, and each ratio is the median of the rounds: a machine that
    is busy for a second then spoils one of them.
    """
    from colazero.calibration.sets import select
    from colazero.corpora.tokens import build_pool

    _, tokenizer, corpus = materials()

    def seed(number: int, cache: str) -> Any:
        pool = build_pool(corpus, tokenizer, Path(cache))
        return pool, select("cola_zero", pool, N, SEQ_LEN, number, CORPUS)

    floors, firsts, nexts, inertias = [], [], [], []
    for _ in range(rounds):
        floors.append(floor(corpus, tokenizer))
        with tempfile.TemporaryDirectory() as cache:
            first, (pool, chosen) = timed(lambda c=cache: seed(0, c))
            further = [timed(lambda i=i, c=cache: seed(i, c)) for i in range(1, seeds)]
            peak = peak_resident()
        firsts.append(first)
        nexts.append(median(seconds for seconds, _ in further))
        inertias += [chosen.notes["inertia"], *(c.notes["inertia"] for _, (_, c) in further)]
    return {
        "floor_sec": median(floors),
        "first_seed_sec": median(firsts),
        "next_seed_sec": median(nexts),
        "first_seed_over_floor": median(b / a for a, b in zip(floors, firsts, strict=True)),
        "next_seed_over_floor": median(b / a for a, b in zip(floors, nexts, strict=True)),
        "inertia_ratio": max(inertias) / best_of_fifty(pool),
        "peak_gib": peak,
    }


def best_of_fifty(pool: Any) -> float:
    """Return the inertia of scikit-learn's k-means with n_init=50 on the same features."""
    from sklearn.cluster import KMeans

    from colazero.selection import cola_zero, features

    documents, _ = cola_zero.eligible(pool, N, SEQ_LEN)
    matrix = features.matrix(pool, documents, cola_zero.GROUPS)
    return float(KMeans(N, n_init=50, random_state=0).fit(matrix).inertia_)


def second_process(_: str = "") -> dict[str, float]:
    """Return the seconds from a fresh process's first line until it can select."""
    begin = time.perf_counter()
    from colazero.corpora.tokens import token_pool
    from colazero.models import fetch

    tokens = token_pool(fetch(MODEL), CORPUS).tokens
    return {"second_process_sec": time.perf_counter() - begin, "tokens": len(tokens)}


def growth(times: str) -> dict[str, float]:
    """Measure one size: seconds by stage, and peak memory."""
    from colazero.calibration.sets import select
    from colazero.corpora.tokens import build_pool

    _, tokenizer, corpus = materials(int(times))
    with tempfile.TemporaryDirectory() as cache:
        tokenising, pool = timed(lambda: build_pool(corpus, tokenizer, Path(cache)))
        first, chosen = timed(lambda: select("cola_zero", pool, N, SEQ_LEN, 0, CORPUS))
        again, _ = timed(lambda: select("cola_zero", pool, N, SEQ_LEN, 1, CORPUS))
        documents = len(corpus.train)
        return {
            "times": int(times),
            "documents": documents,
            "tokens": len(pool.tokens),
            "documents_clustered": chosen.notes["documents_eligible"],
            "in_batches": chosen.notes["clustered_in_batches"],
            "tokenise_us_per_document": 1e6 * tokenising / documents,
            "first_seed_us_per_document": 1e6 * (tokenising + first) / documents,
            "next_seed_us_per_document": 1e6 * again / documents,
            "peak_gib": peak_resident(),
        }


def method(name: str) -> dict[str, Any]:
    """Measure one method: a first and a further seed after tokenising, memory, its measures."""
    from colazero import pipeline
    from colazero.calibration.sets import select
    from colazero.corpora.tokens import build_pool
    from colazero.settings import RunConfig
    from colazero.suite_settings import parse

    size = {"n_calibration_samples": str(N), "seq_len": str(SEQ_LEN)}
    config = parse(RunConfig, {"preset": "demo", "device": "cpu", **size})
    model, tokenizer, corpus = materials()
    with tempfile.TemporaryDirectory() as cache:
        pool = replace(build_pool(corpus, tokenizer, Path(cache)), model=model, config=config)
        first, chosen = timed(lambda: select(name, pool, N, SEQ_LEN, 0, CORPUS))
        again, _ = timed(lambda: select(name, pool, N, SEQ_LEN, 1, CORPUS))
        peak = peak_resident()
    return {
        "method": name,
        "first_seed_sec": first,
        "next_seed_sec": again,
        "peak_gib": peak,
        **pipeline.checked(config, model, chosen),
    }


def draw(sizes: Sequence[dict[str, float]], file: Path) -> None:
    """Draw time a document and peak memory against the number of tokens."""
    from matplotlib.figure import Figure

    tokens = [size["tokens"] / 1e6 for size in sizes]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for name, label in (
        ("first_seed", "first seed, nothing cached"),
        ("tokenise", "of it, tokenising"),
        ("next_seed", "a further seed"),
    ):
        values = [size[f"{name}_us_per_document"] for size in sizes]
        (line,) = time_axes.plot(tokens, values, marker="o")
        place = {"xytext": (6, 6), "textcoords": "offset points", "color": line.get_color()}
        time_axes.annotate(label, (tokens[0], values[0]), **place)
    time_axes.set(ylabel="µs a document", ylim=(0, 1.15 * time_axes.get_ylim()[1]), title="Time")
    memory_axes.plot(tokens, [size["peak_gib"] for size in sizes], marker="o")
    memory_axes.axhline(3, color="grey", linestyle="--", linewidth=1)
    memory_axes.annotate("limit", (tokens[0], 3), textcoords="offset points", xytext=(0, 4))
    memory_axes.set(ylabel="peak resident memory, GiB", ylim=(0, 3.4), title="Memory")
    for axes in (time_axes, memory_axes):
        axes.set(xlabel="tokens of the corpus, millions", xscale="log")
        axes.set_xticks(tokens, [f"{count:.3g}" for count in tokens])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


PARTS = {"ratios": lambda _: ratios(), "second": second_process, "growth": growth, "method": method}


def apart(part: str, argument: str = "") -> Any:
    """Measure a part in a process of its own, with the user's cache for converted models."""
    command = [sys.executable, __file__, f"--part={part}", f"--argument={argument}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--growth", default="")
    parser.add_argument("--methods", nargs="?", const="all", default="")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--argument", default="", help=argparse.SUPPRESS)
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.argument)))
        return
    found = apart("ratios") | {"second_process_sec": apart("second")["second_process_sec"]}
    if given.growth:
        found["growth"] = [apart("growth", times) for times in given.growth.split(",")]
        smallest = found["growth"][0]["first_seed_us_per_document"]
        for size in found["growth"]:
            size["per_document_over_smallest"] = size["first_seed_us_per_document"] / smallest
    if given.methods:
        from colazero.selection import METHODS

        names = METHODS.names() if given.methods == "all" else given.methods.split(",")
        found["methods"] = [apart("method", name) for name in names]
    if given.figure:
        draw(found["growth"], given.figure)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        for row in value if isinstance(value, list) else [{name: value}]:
            print(
                "  ".join(
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                )
            )


if __name__ == "__main__":
    main()
