"""The user's own text: .txt, .jsonl, .parquet, or a folder of .txt files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    return Corpus(f"file:{source.name}", _digest(documents), train, test)


def _digest(documents: Sequence[str]) -> str:
    """Return 16 hex digits over the documents as a JSON list, which keeps their borders apart."""
    digest = hashlib.sha256()
    for number, document in enumerate(documents):
        digest.update((("[", ", ")[number > 0] + json.dumps(document)).encode())
    digest.update(b"]")
    return digest.hexdigest()[:16]


def _read(source: Path) -> Iterable[str]:
    """Return what may be documents; .txt and .jsonl are never held whole beside them."""
    if source.is_dir():
        files = sorted(source.glob("*.txt"))
        if not files:
            raise UserError(f"corpus folder {str(source)!r} holds no .txt file.")
        return [_text(file) for file in files]
    readers: dict[str, Callable[[Path], Iterable[str]]] = {
        ".txt": _paragraphs,
        ".jsonl": _json_lines,
        ".parquet": _parquet,
    }
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


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            yield from stream
    except (UnicodeDecodeError, OSError):
        _text(file)  # tells what is wrong, and where
        raise


def _paragraphs(file: Path) -> Iterator[str]:
    paragraph: list[str] = []
    for line in _lines(file):
        if line.isspace():
            yield "".join(paragraph)
            paragraph = []
        else:
            paragraph.append(line)
    yield "".join(paragraph)


def _json_lines(file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            yield _field(file, number, line)


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
