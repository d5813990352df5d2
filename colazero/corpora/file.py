"""The user's own text: .txt, .jsonl, .parquet, or a folder of .txt files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from colazero.corpora import CORPORA
from colazero.errors import UserError
from colazero.interfaces import Corpus

TEST_SHARE = 0.1


@CORPORA.register("file")
def load(path: str) -> Corpus:
    """Return the documents of `path`; the last tenth of them (at least one) is the test split.

    .txt: documents separated by blank lines. .jsonl and .parquet: one document a row, in the
    field `text`. A folder: one document a .txt file, in order of name. UserError if the path is
    missing, empty, not UTF-8, or a row has no `text`.
    """
    source = Path(os.path.expanduser(path))
    if not source.exists():
        raise UserError(f"corpus file {path!r} does not exist (looked in {Path.cwd()}).")
    documents = [text.strip() for text in _read(source) if text.strip()]
    if len(documents) < 2:
        raise UserError(
            f"corpus file {path!r} holds {len(documents)} documents; at least 2 are needed, one to "
            "calibrate on and one to evaluate on."
        )
    held_out = max(1, round(len(documents) * TEST_SHARE))
    train, test = documents[:-held_out], documents[-held_out:]
    # JSON keeps the borders between documents unambiguous.
    digest = hashlib.sha256(json.dumps(documents).encode()).hexdigest()[:16]
    return Corpus(f"file:{source.name}", digest, train, test)


def _read(source: Path) -> list[str]:
    if source.is_dir():
        files = sorted(source.glob("*.txt"))
        if not files:
            raise UserError(f"corpus folder {str(source)!r} holds no .txt file.")
        return [_text(file) for file in files]
    readers = {".txt": _paragraphs, ".jsonl": _json_lines, ".parquet": _parquet}
    suffix = source.suffix.lower()
    if suffix not in readers:
        raise UserError(
            f"corpus file {str(source)!r}: cannot read files that end in {source.suffix!r}; "
            "use .txt, .jsonl, .parquet or a folder of .txt files."
        )
    return readers[suffix](source)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"corpus file {str(file)!r} is not UTF-8 (byte {error.start}): convert it first, for "
            "instance with iconv."
        ) from None
    except OSError as error:
        raise UserError(f"corpus file {str(file)!r} cannot be read: {error.strerror}.") from error


def _paragraphs(file: Path) -> list[str]:
    return re.split(r"\n\s*\n", _text(file))


def _json_lines(file: Path) -> list[str]:
    return [
        _field(file, number, line)
        for number, line in enumerate(_text(file).split("\n"), start=1)
        if line.strip()
    ]


def _field(file: Path, number: int, line: str) -> str:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"corpus file {str(file)!r}, line {number}: no JSON ({error.msg})."
        ) from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(repr, row)) if isinstance(row, dict) and row else "nothing"
        raise UserError(
            f"corpus file {str(file)!r}, line {number}: no text in the field 'text' (it has {has})."
        )
    if re.search("[\ud800-\udfff]", text):
        raise UserError(
            f"corpus file {str(file)!r}, line {number}: half of a surrogate pair, which is no text."
        )
    return text


def _parquet(file: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
        if "text" not in names:
            raise UserError(
                f"corpus file {str(file)!r} has no column 'text' (it has {', '.join(names)})."
            )
        column = pq.read_table(file, columns=["text"])["text"]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"corpus file {str(file)!r} cannot be read as parquet: {error}") from error
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        raise UserError(
            f"corpus file {str(file)!r}: the column 'text' holds {column.type}, no text."
        )
    return [text or "" for text in column.to_pylist()]
