"""Write your own selection method, and try one on a real corpus without MLflow.

    python examples/my_method.py                                    # this one, in seconds
    PYTHONPATH=. python examples/my_method.py --method=mymod:last   # yours, in ./mymod.py

It prints what each seed chose; docs/guide/calibration-sets.md explains the measures. In a suite:

    PYTHONPATH=examples mlflow run . -e suite --env-manager local -P methods=random,my_method:evenly
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from colazero.selection import windows_at
from colazero.types import Selection, TokenPool


def evenly(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Take windows at even distances over the whole corpus, starting at a random token.

    Systematic sampling: if the corpus has an order (by date, by topic), every part gets its share.
    Random windows give each part its share only on average.
    """
    distance = len(pool.tokens) / n
    first = rng.uniform(0, distance - seq_len)
    starts = (first + distance * np.arange(n)).astype(np.int64)
    return Selection(windows_at(pool, starts, seq_len), {"distance": distance})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="my_method:evenly", help="name of a method")
    parser.add_argument("--model", default="smollm2-135m", help="model whose tokenizer is used")
    parser.add_argument("--corpus", default="sotu", help="name of a corpus, or file:PATH")
    parser.add_argument("--seeds", default="42,43", help="comma-separated")
    options = parser.parse_args()

    from colazero.errors import UserError

    try:
        show(options)
    except UserError as error:
        sys.exit(f"error: {error}")


def show(options: argparse.Namespace) -> None:
    """Choose a set for each seed and print its measures; raise UserError for a mistake."""
    from colazero import models, pipeline
    from colazero.settings import RunConfig
    from colazero.suite_settings import parse
    from entrypoints.select import sentence

    given = {"method": options.method, "model": options.model, "corpus": options.corpus}
    given |= {"preset": "demo", "eval_corpora": options.corpus, "device": "cpu"}
    for seed in options.seeds.split(","):
        config = parse(RunConfig, given | {"seed": seed})
        pipeline.check(config, [config.method], [config.model])
        model = models.fetch(config.model)
        chosen, times = pipeline.calibrate(pipeline.resolve(config, model), model)
        print(
            f"{options.method}, seed {seed}: digest {chosen.digest}, "
            f"{times['selection_time_sec']:.2f} s, {sentence(chosen.notes)}"
        )


if __name__ == "__main__":
    main()
