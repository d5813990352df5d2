"""The user's own text: .txt, .jsonl or .parquet, or a folder of files of one of these kinds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from colazero.corpora import CORPORA
from colazero.errors import UserError, first_line
from colazero.models.files import LFS_POINTER
from colazero.types import Corpus

log = logging.getLogger(__name__)

TEST_SHARE = 0.1
Place = tuple[str, str | None]
"""Where something stands (`line 3`), and the text there; None where there is null."""


@CORPORA.register("file")
def load(path: str) -> Corpus:
    """Return the documents of `path`; the last tenth of them (at least one) is the test split.

    .txt: documents separated by blank lines. .jsonl and .parquet: one document a row, in the field
    `text`; rows of a table whose text is null are left out, which is told. A folder: all files of
    one of these kinds in it and below, in order of their paths; a .txt file there is one document.
    UserError, with file and line, for whatever cannot be read.
    """
    source = Path(os.path.expanduser(path))
    try:
        there = source.exists()
    except OSError as error:  # too long for a file system
        raise UserError(
            f"corpus file {path[:80] + '…'!r} is no path that can be: {error.strerror}."
        ) from error
    if not there:
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


def _read(source: Path) -> Iterator[str]:
    """Yield what may be documents; .txt and .jsonl are never held whole beside them."""
    whole = source.is_dir()
    for file in _files(source) if whole else [source]:
        kind = file.suffix.lower()
        if kind not in READERS:
            raise UserError(
                f"corpus file {str(file)!r}: cannot read files that end in {file.suffix!r}; "
                "use .txt, .jsonl, .parquet or a folder of one of these kinds."
            )
        yield from _told(file, _whole_text if whole and kind == ".txt" else READERS[kind])


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder and those below it, hidden ones left out."""
    inside = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    for link in folder.rglob("*"):
        if link.is_symlink() and (link.is_dir() or not link.exists()):
            what = "a folder" if link.is_dir() else "a file that is not there"
            raise UserError(
                f"corpus folder {str(folder)!r}: {str(link.relative_to(folder))!r} is a link to "
                f"{what}, which is not read. Put the files themselves there, or remove it."
            )
    files = [file for file in inside if file.suffix.lower() in READERS]
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise UserError(
            f"corpus folder {str(folder)!r} holds no .txt file, and no .jsonl or .parquet."
        )
    if len(kinds) > 1:
        raise UserError(
            f"corpus folder {str(folder)!r} holds {' and '.join(kinds)} files: which of them are "
            "the corpus is not said. Keep one kind in it."
        )
    if len(inside) > len(files):
        log.warning("%s: %d files of other kinds are not read.", folder, len(inside) - len(files))
    return files


def _told(file: Path, read: Callable[[Path], Iterator[Place]]) -> Iterator[str]:
    """Yield the texts of a file; whatever goes wrong is told in a sentence that says where."""
    place, empty = "", []
    try:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"corpus file {str(file)!r} is no text but what Git LFS left in its place: run "
                    "`git lfs pull` there."
                )
        for place, text in read(file):
            if text is None:
                empty.append(place)
            elif not text.isascii() and re.search("[\ud800-\udfff]", text):
                raise UserError(
                    f"corpus file {str(file)!r}, {place}: half of a surrogate pair, which is no "
                    "text."
                )
            else:
                yield text
    except UserError:
        raise
    except UnicodeDecodeError:
        if file.suffix.lower() == ".parquet":
            raise UserError(
                f"corpus file {str(file)!r}, after {place or 'its beginning'}: a text is not "
                "UTF-8. Write the file again from text that is."
            ) from None
        raise UserError(
            f"corpus file {str(file)!r} is not UTF-8 (byte {_first_bad_byte(file)}): convert it "
            "first, for instance with iconv."
        ) from None
    except Exception as error:  # whatever a file can make of a parser
        after = f", after {place}" if place else ""
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"corpus file {str(file)!r}{after} cannot be read as {file.suffix[1:]}: "
            f"{reason.rstrip('.')}."
        ) from error
    if empty:
        log.warning(
            "corpus file %s: %d rows whose text is null are left out, the first at %s.",
            *(file, len(empty), empty[0]),
        )


def _first_bad_byte(file: Path) -> int | str:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return "unknown"


def _whole_text(file: Path) -> Iterator[Place]:
    yield "line 1", file.read_text(encoding="utf-8-sig")  # with or without a byte order mark


def _paragraphs(file: Path) -> Iterator[Place]:
    paragraph: list[str] = []
    begin = 1
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                yield f"line {begin}", "".join(paragraph)
                paragraph, begin = [], number + 1
            else:
                paragraph.append(line)
    yield f"line {begin}", "".join(paragraph)


def _json_lines(file: Path) -> Iterator[Place]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", _field(file, number, line)


def _field(file: Path, number: int, line: str) -> str:
    where = f"corpus file {str(file)!r}, line {number}"
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error.msg}).") from None
    except RecursionError:
        raise UserError(f"{where}: its JSON is nested too deeply to be read.") from None
    except ValueError as error:  # a number of more digits than Python turns into one
        raise UserError(f"{where}: its JSON cannot be read ({first_line(error)}).") from None
    if not isinstance(row, dict) or "text" not in row:
        has = ", ".join(map(repr, row)) if isinstance(row, dict) and row else "nothing"
        raise UserError(f"{where}: no text in the field 'text' (it has {has}).")
    text = row["text"]
    if not isinstance(text, str):
        holds = "null" if text is None else f"a {type(text).__name__}"
        raise UserError(f"{where}: no text in the field 'text' (it holds {holds}).")
    return text


def _parquet(file: Path) -> Iterator[Place]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        if "text" not in schema.names:
            raise UserError(
                f"corpus file {str(file)!r} has no column 'text' (it has "
                f"{', '.join(schema.names)})."
            )
        kind = schema.field("text").type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = ("is_string", "is_large_string", "is_string_view", "is_null")
        if not any(getattr(pa.types, check)(value) for check in checks):
            raise UserError(f"corpus file {str(file)!r}: the column 'text' holds {kind}, no text.")
        number = 0
        for batch in table.iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield f"row {number}", text


READERS: dict[str, Callable[[Path], Iterator[Place]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
