"""What selecting costs, against tokenizing the corpus once: `python benchmarks/selection.py`.

--growth=1,10     also measure time per document and peak memory on larger copies of the corpus
--methods         also measure every method (the two that run a model take minutes on a CPU)
--figure=FILE     draw the growth curve
--json            print one JSON object
--model, --corpus, --windows, --tokens   what to select from (a toy size runs in seconds)

The floor is the time to tokenize the corpus once, in batches of the size that is fastest here.
Compare ratios of one run only. Each part runs in its own process with its own cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._harness import options_of, peak_resident, rows_of, timed

BATCHES = (16, 128, 1024, 8192)
"""Documents per call of the tokenizer that the floor tries."""
Given = argparse.Namespace
Row = dict[str, Any]


class Repeated(Sequence[str]):
    """A corpus `times` over, made while it is read: every copy differs, and none is in memory.

    In each copy, every twentieth word of a document is unique to the copy, so that the vocabulary
    grows with the corpus as it does in a real one.
    """

    def __init__(self, documents: Sequence[str], times: int) -> None:
        self.documents, self.times = documents, times

    def __len__(self) -> int:
        return len(self.documents) * self.times

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which ends an iteration
        copy, document = divmod(int(index), len(self.documents))
        words = self.documents[document].split(" ")
        for i in range((document + copy) % 20, len(words), 20):
            words[i] = f"{words[i]}{copy}"
        return " ".join(words)


class Materials:
    """Model, tokenizer and corpus, with the libraries imported: imports do not count."""

    def __init__(self, given: Given, times: int = 1) -> None:
        import sklearn.cluster
        import sklearn.decomposition
        import sklearn.feature_extraction.text  # noqa: F401

        from colazero import corpora, models
        from colazero.settings import RunConfig
        from colazero.suite_settings import parse

        self.given = given
        options = {
            "preset": "demo",
            "device": "cpu",
            "model": given.model,
            "proxy_model": given.proxy,
            "corpus": given.corpus,
            "eval_corpora": given.corpus,
            "n_calibration_samples": str(given.windows),
            "seq_len": str(given.tokens),
        }
        self.config = parse(RunConfig, options)
        self.model = models.fetch(given.model)
        self.tokenizer = models.load_tokenizer(self.model)
        self.corpus = corpora.load(given.corpus)
        if times > 1:
            train = Repeated(self.corpus.train, times)
            self.corpus = replace(self.corpus, name=f"{given.corpus}x{times}", train=train, test=[])

    def pool(self, cache: str) -> Any:
        """Tokenize the corpus, or map its tokens from the cache."""
        from colazero.corpora.tokens import build_pool
        from colazero.types import SelectionSettings

        settings = SelectionSettings.of(self.config)
        pool = build_pool(self.corpus, self.tokenizer, Path(cache))
        return replace(pool, model=self.model, selection_settings=settings)

    def select(self, method: str, pool: Any, seed: int) -> Any:
        from colazero.calibration.sets import select

        return select(method, pool, self.given.windows, self.given.tokens, seed, self.given.corpus)


def floor(made: Materials, batch: int) -> float:
    """Return the seconds of tokenizing the corpus once, in batches of documents, kept nowhere."""
    plain, texts = made.tokenizer.backend_tokenizer, made.corpus.train

    def tokenize() -> None:
        for first in range(0, len(texts), batch):
            plain.encode_batch_fast(list(texts[first : first + batch]), add_special_tokens=False)

    return timed(tokenize)[1]


def ratios(given: Given, _: str) -> Row:
    """Measure cola_zero's first and further seeds against the floor, and its k-means.

    Floor and first seed alternate, and each ratio is the median over rounds, so that a moment in
    which the machine is busy spoils only one of them.
    """
    from sklearn.cluster import KMeans

    from colazero.selection import cola_zero, features

    made = Materials(given)
    batch = min(BATCHES, key=lambda size: min(floor(made, size) for _ in range(2)))
    floors, firsts, nexts, inertias = [], [], [], []
    for _round in range(given.rounds):
        floors.append(floor(made, batch))
        with tempfile.TemporaryDirectory() as cache:

            def seed(number: int, cache: str = cache) -> Any:
                pool = made.pool(cache)
                return pool, made.select("cola_zero", pool, number)

            runs = [timed(lambda i=i: seed(i)) for i in range(4)]
            pool = runs[0][0][0]
            peak = peak_resident()
        firsts.append(runs[0][1])
        nexts.append(median(seconds for _, seconds in runs[1:]))
        inertias += [chosen.notes["inertia"] for (_, chosen), _ in runs]
    documents, _ = cola_zero.eligible(pool, given.windows, given.tokens)
    matrix = features.matrix(replace(pool, entry=None), documents, cola_zero.GROUPS)
    best = KMeans(min(given.windows, len(documents)), n_init=50, random_state=0).fit(matrix)
    return {
        "floor_batch": batch,
        "floor_sec": median(floors),
        "first_seed_sec": median(firsts),
        "next_seed_sec": median(nexts),
        "first_seed_over_floor": median(b / a for a, b in zip(floors, firsts, strict=True)),
        "next_seed_over_floor": median(b / a for a, b in zip(floors, nexts, strict=True)),
        "inertia_over_best_of_fifty": max(inertias) / float(best.inertia_),
        "peak_gib": peak,
    }


def second(given: Given, _: str) -> Row:
    """Return the seconds from the start of a new process until it can select from cached tokens."""
    from colazero.corpora.tokens import token_pool
    from colazero.models import fetch

    def ready() -> int:
        return len(token_pool(fetch(given.model), given.corpus).tokens)

    ready()
    token_pool.cache_clear()
    command = (
        "import time; begin = time.perf_counter()\n"
        "from colazero.corpora.tokens import token_pool\nfrom colazero.models import fetch\n"
        f"token_pool(fetch({given.model!r}), {given.corpus!r})\nprint(time.perf_counter() - begin)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=root
    )
    return {"second_process_sec": float(done.stdout), "tokens": ready()}


def growth(given: Given, times: str) -> Row:
    """Measure one size of the corpus: seconds per stage and peak memory."""
    made = Materials(given, int(times))
    documents = len(made.corpus.train)
    with tempfile.TemporaryDirectory() as cache:
        pool, tokenizing = timed(lambda: made.pool(cache))
        chosen, first = timed(lambda: made.select("cola_zero", pool, 0))
        _, again = timed(lambda: made.select("cola_zero", pool, 1))
        return {
            "times": int(times),
            "documents": documents,
            "tokens": len(pool.tokens),
            "documents_clustered": chosen.notes["documents_eligible"],
            "in_batches": chosen.notes["clustered_in_batches"],
            "tokenize_us_per_document": 1e6 * tokenizing / documents,
            "first_seed_us_per_document": 1e6 * (tokenizing + first) / documents,
            "next_seed_us_per_document": 1e6 * again / documents,
            "peak_gib": peak_resident(),
        }


def method(given: Given, name: str) -> Row:
    """Measure one method: a first and a further seed after tokenizing, memory, and its set."""
    from colazero import pipeline

    made = Materials(given)
    with tempfile.TemporaryDirectory() as cache:
        pool = made.pool(cache)
        chosen, first = timed(lambda: made.select(name, pool, 0))
        _, again = timed(lambda: made.select(name, pool, 1))
        seconds = {"first_seed_sec": first, "next_seed_sec": again, "peak_gib": peak_resident()}
        return {"method": name, **seconds, **pipeline.checked(made.config, made.model, chosen)}


def draw(sizes: Sequence[Row], file: Path) -> None:
    """Draw time per document and peak memory against the number of tokens."""
    from matplotlib.figure import Figure

    tokens = [size["tokens"] / 1e6 for size in sizes]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    labels = {"first_seed": "first seed, empty cache", "tokenize": "of this, tokenizing"}
    for name, label in (labels | {"next_seed": "a further seed"}).items():
        values = [size[f"{name}_us_per_document"] for size in sizes]
        (line,) = time_axes.plot(tokens, values, marker="o")
        place: Row = {"xytext": (6, 6), "textcoords": "offset points", "color": line.get_color()}
        time_axes.annotate(label, (tokens[0], values[0]), **place)
    time_axes.set(ylabel="µs per document", title="Time", ylim=(0, 1.15 * time_axes.get_ylim()[1]))
    memory_axes.plot(tokens, [size["peak_gib"] for size in sizes], marker="o")
    memory_axes.axhline(3, color="grey", linestyle="--", linewidth=1)
    memory_axes.annotate("limit", (tokens[0], 3), textcoords="offset points", xytext=(0, 4))
    memory_axes.set(ylabel="peak resident memory, GiB", title="Memory", ylim=(0, 3.4))
    for axes in (time_axes, memory_axes):
        axes.set(xlabel="tokens of the corpus, millions", xscale="log")
        axes.set_xticks(tokens, [f"{count:.3g}" for count in tokens])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


PARTS = {"ratios": ratios, "second": second, "growth": growth, "method": method}


def apart(part: str, argument: str = "") -> Row:
    """Measure a part in its own process, with the same options."""
    *_, row = rows_of(__file__, [*sys.argv[1:], f"--part={part}:{argument}"])
    return row


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--growth", default="")
    parser.add_argument("--methods", nargs="?", const="all", default="")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--proxy", default="smollm2-135m")
    parser.add_argument("--corpus", default="sotu")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        part, _, argument = given.part.partition(":")
        print(json.dumps(PARTS[part](given, argument)))
        return
    found: Row = apart("ratios") | apart("second")
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
            cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print("  ".join(cells))


if __name__ == "__main__":
    main()
