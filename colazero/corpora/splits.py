"""Splits: the documents of a data set to calibrate on, and the ones to evaluate on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence

from colazero.corpora.chat import Conversation
from colazero.errors import UserError
from colazero.types import Corpus

log = logging.getLogger(__name__)

TEST_SHARE = 0.1
WORDS = (
    *("train", "training", "validation", "valid", "val", "dev", "eval", "heldout"),
    *("test", "testing"),
)
NAME = rf"(?P<name>{'|'.join(WORDS)})(?P<more>_[a-z]+)?"
NUMBER = r"\d+([-_]of[-_]\d+)?([-_][0-9a-f]{6,})?"
SPLIT = re.compile(rf"{NAME}([-_.]?{NUMBER})?")
"""The name of a file or folder that holds one split: `test`, `train_sft-00000-of-00002`."""
SHARD = re.compile(rf".*[-_.]{NAME}[-_.]?{NUMBER}")
"""The same behind another name, where a number follows: `c4-train.00000-of-01024`."""


def split_of(folders: Sequence[str], stem: str) -> str:
    """Return the split that names stand for (`train`, `test`, `validation`, …); '' if none."""
    for part in map(str.lower, (*folders, stem)):
        if found := SPLIT.fullmatch(part) or SHARD.fullmatch(part):
            usual = {"training": "train", "testing": "test", "train": "train", "test": "test"}
            return usual.get(found["name"], "validation") + (found["more"] or "")
    return ""


def in_pairs(names: Sequence[str]) -> list[str]:
    """Return the split that each name holds as a part, as `wiki.train` and `wiki.test` do.

    '' for all names unless there is one with `train` and the same one with another split.
    """
    found, splits = [], dict[tuple[str, ...], set[str]]()
    for name in names:
        parts = re.split(r"[-_.]", name.lower())
        words = [part for part in parts if part in WORDS]
        split = split_of((), words[0]) if len(words) == 1 else ""
        rest = tuple(part for part in parts if part not in WORDS)
        found.append((split, rest))
        splits.setdefault(rest, set()).add(split)
    paired = {rest for rest, there in splits.items() if "train" in there and there - {"train", ""}}
    return [split if rest in paired else "" for split, rest in found]


def assembled(
    name: str, splits: Sequence[str], asked: str, read: Callable[[str], Iterator[str]]
) -> Corpus:
    """Return the corpus of a data set's splits; `read` yields the documents of one.

    A split `asked` for is calibrated on if its name begins with `train`, else evaluated on. Without
    a second split the last tenth is evaluated on. UserError if a split has no documents.
    """
    if len(splits) > 1 and not asked and not any(one.startswith("train") for one in splits):
        raise UserError(
            f"corpus {name!r} has the splits {', '.join(splits)}, and none to calibrate on. Name "
            f"one: {name}:{splits[0]}; its last tenth is then evaluated on."
        )
    train, test = roles(splits, asked)
    documents = _texts(read(train))
    if not test:
        if len(documents) < 2:
            raise UserError(
                f"corpus {name!r} holds {len(documents)} documents; at least 2 are needed, one to "
                "calibrate on and one to evaluate on."
            )
        held_out = max(1, round(len(documents) * TEST_SHARE))
        parts = documents[:-held_out], documents[-held_out:]
        return Corpus(name, digest(documents), *parts)
    tests = _texts(read(test))
    for split, texts in ((train, documents), (test, tests)):
        if not texts:
            raise UserError(f"corpus {name!r} has no text in its split {split!r}.")
    unused = [split for split in splits if split not in (train, test)]
    log.info(
        "%s: calibrating on split %s, evaluating on split %s%s.",
        *(name, train, test, f"; not used: {', '.join(unused)}" if unused else ""),
    )
    return Corpus(name, f"{digest(documents)}-{digest(tests)}", documents, tests)


def roles(splits: Sequence[str], asked: str) -> tuple[str, str]:
    """Return the splits to calibrate and to evaluate on; the second is '' if there is only one."""
    trains = [name for name in splits if name.startswith("train")]
    train = asked if asked in trains or not trains else trains[0]
    if not trains and not asked:
        train = splits[0]
    if asked and asked != train:
        return train, asked
    more = train.removeprefix("training").removeprefix("train")
    order = [f"test{more}", f"validation{more}", "test", "validation"]
    order += [name for name in splits if name not in trains]
    return train, next((name for name in order if name in splits and trains), "")


def _texts(documents: Iterator[str]) -> list[str]:
    return [text for text in documents if text.strip()]


def digest(documents: Sequence[str]) -> str:
    """Return 16 hex digits over the documents as a JSON list, which keeps their borders apart."""
    whole = hashlib.sha256()
    for number, text in enumerate(documents):
        content = text.as_json if isinstance(text, Conversation) else json.dumps(text)
        whole.update((("[", ", ")[number > 0] + content).encode())
    whole.update(b"]")
    return whole.hexdigest()[:16]
