"""The user's own text: a file, a folder of files, or a data set that `datasets` saved.

Files are read here and not by `datasets`: an error names the line, and texts stay exactly as they
are.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from colazero.corpora import CORPORA
from colazero.corpora.chat import document, fields_of
from colazero.corpora.splits import assembled, in_pairs, split_of
from colazero.errors import UserError, first_line
from colazero.models.files import LFS_POINTER
from colazero.types import Corpus

log = logging.getLogger(__name__)

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files, and what pyarrow calls them."""
USUAL = (".txt", ".jsonl", ".parquet")
"""Kinds that a folder may hold next to .json and .csv files, which are then not the corpus."""
Row = tuple[str, Any]
"""Where something stands (`line 3`), and what stands there: the fields of a row."""


@CORPORA.register("file")
def load(argument: str) -> Corpus:
    """Return the corpus of `PATH[:SPLIT][:FIELD]`.

    A folder whose files or folders are called train, validation and test has these splits, as has
    a saved data set; of other text the last tenth (at least one document) is the test split.
    Documents are paragraphs of a .txt file, all of one in a folder, and rows elsewhere: the field
    `text`, or a conversation. UserError, with file and line, for anything unreadable.
    """
    source, names = _parsed(argument)
    saved = _saved(source)
    files = {} if saved else _by_split(source)
    splits = list(saved or files)
    split = names.pop(0) if names and names[0] in splits else ""
    if len(names) > 1 or (source.is_file() and split):
        raise UserError(
            f"corpus 'file:{argument}' must be file:PATH[:SPLIT][:FIELD]; splits here: "
            f"{', '.join(filter(None, splits)) or 'none'}."
        )
    field = names[0] if names else ""

    def read(name: str) -> Iterator[str]:
        if saved:
            yield from documents_of(enumerate_rows(saved[name]), f"{source}, split {name}", field)
        else:
            for file in files[name]:
                whole = source.is_dir() and _kind(file) == ".txt"
                yield from _documents(file, field, _whole_text if whole else READERS[_kind(file)])

    more = [name for name in (split, field) if name]
    corpus = assembled(":".join([f"file:{source.name}", *more]), splits, split, read)
    return replace(corpus, source={"uri": str(source.absolute())})


def _parsed(argument: str) -> tuple[Path, list[str]]:
    """Return the path in `PATH[:SPLIT][:FIELD]`, which may hold colons, and what follows it."""
    path, names = argument, list[str]()
    try:
        while not (source := Path(os.path.expanduser(path))).exists():
            path, colon, last = path.rpartition(":")
            if not colon:
                whole = os.path.expanduser(argument)
                raise UserError(f"corpus file {whole!r} does not exist (looked in {Path.cwd()}).")
            names.insert(0, last)
    except OSError as error:  # too long for a file system
        raise UserError(
            f"corpus file {argument[:80] + '…'!r} cannot be a path: {error.strerror}."
        ) from error
    return source, names


def _saved(source: Path) -> Mapping[str, Any]:
    """Return the splits of a folder that `save_to_disk` wrote; {} for another path."""
    kinds = ("dataset_dict.json", "state.json")
    if not any((source / name).is_file() for name in kinds):
        return {}
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(source))
    except Exception as error:  # a damaged folder can raise anything
        raise UserError(
            f"corpus folder {str(source)!r}: the data set saved there cannot be read: "
            f"{first_line(error)}"
        ) from error
    return dict(found) if isinstance(found, DatasetDict) else {"": found}


def enumerate_rows(rows: Iterable[Any]) -> Iterator[Row]:
    """Yield rows, each with its place."""
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _by_split(source: Path) -> dict[str, list[Path]]:
    """Return split → files; all files under '' if no name is that of a split.

    UserError if only some names say so: the splits of the others are unknown.
    """
    if source.is_file():
        if _kind(source) not in READERS:
            endings = source.suffixes[-1 - (source.suffix.lower() in PACKED) :]
            raise UserError(
                f"corpus file {str(source)!r}: cannot read files that end in "
                f"{''.join(endings)!r}; use {', '.join(READERS)}, all but .parquet also as .gz or "
                ".zst, or a folder of one kind."
            )
        return {"": [source]}
    files = _files(source)
    stems = [_unpacked(file).stem for file in files]
    splits = [
        split_of(file.relative_to(source).parts[:-1], stem)
        for file, stem in zip(files, stems, strict=True)
    ]
    if not any(splits):
        splits = in_pairs(stems)
    found: dict[str, list[Path]] = {}
    for file, split in zip(files, splits, strict=True):
        found.setdefault(split, []).append(file)
    names = set(found) - {""}
    if not names - {"train"}:  # one split, or none
        return {"": [file for files in found.values() for file in files]}
    if "" in found:
        raise UserError(
            f"corpus folder {str(source)!r} has files of the splits {', '.join(sorted(names))}, "
            f"and {str(found[''][0].relative_to(source))!r}, which names none. Remove it, or name "
            "the file that you mean."
        )
    return found


def _unpacked(file: Path) -> Path:
    """Return a file's name without `.gz` or `.zst`."""
    name = Path(file.name)
    return name.with_suffix("") if name.suffix.lower() in PACKED else name


def _kind(file: Path) -> str:
    return _unpacked(file).suffix.lower()


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder and those below it, without hidden ones."""
    inside = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
    for link in folder.rglob("*"):
        if link.is_symlink() and (link.is_dir() or not link.exists()):
            what = "a folder" if link.is_dir() else "a missing file"
            raise UserError(
                f"corpus folder {str(folder)!r}: {str(link.relative_to(folder))!r} is a link to "
                f"{what}, which is not read. Put the files themselves there, or remove it."
            )
    kinds = {_kind(file) for file in inside} & set(READERS)
    kinds = kinds & set(USUAL) or kinds
    if not kinds:
        raise UserError(
            f"corpus folder {str(folder)!r} holds no text: no {', '.join(READERS)} file."
        )
    if len(kinds) > 1:
        raise UserError(
            f"corpus folder {str(folder)!r} holds {' and '.join(sorted(kinds))} files: keep the "
            "kind that is the corpus."
        )
    files = [file for file in inside if _kind(file) in kinds]
    if len(inside) > len(files):
        log.warning("%s: %d files of other kinds are not read.", folder, len(inside) - len(files))
    return files


def _documents(
    file: Path, field: str, reader: Callable[[Path, str], Iterator[Row]]
) -> Iterator[str]:
    """Yield the documents of a file; UserError with file and line for anything unreadable."""
    what, place = f"corpus file {str(file)!r}", ""

    def placed() -> Iterator[Row]:
        nonlocal place
        try:
            for row in reader(file, field):
                place = row[0]
                yield row
        except UserError as error:
            raise UserError(f"{what}, {error}") from None

    try:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{what} is a Git LFS pointer, not the text: run `git lfs pull` there."
                )
        nulls = _kind(file) not in (".jsonl", ".json")
        yield from documents_of(placed(), what, field, nulls=nulls)
    except UserError:
        raise
    except UnicodeDecodeError:
        where = f"after {place or 'its beginning'}"
        if _kind(file) != ".parquet":
            where = f"byte {_first_bad_byte(file)}"
        raise UserError(
            f"{what} is not UTF-8 ({where}): write it again as UTF-8, for instance with iconv."
        ) from None
    except Exception as error:  # a file can make a parser raise anything
        after = f", after {place}" if place else ""
        if file.suffix.lower() in PACKED and isinstance(error, OSError) and not error.errno:
            raise UserError(
                f"{what}{after} cannot be unpacked: {first_line(error)}. It is cut off, damaged, "
                f"or not a {file.suffix} file: fetch or pack it again."
            ) from error
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{what}{after} cannot be read as {_kind(file)[1:]}: {reason.rstrip('.')}."
        ) from error


def documents_of(
    rows: Iterator[Row], what: str, field: str, *, nulls: bool = True
) -> Iterator[str]:
    """Yield the documents in rows; `what` names the source, for errors.

    Rows whose text is null are left out with `nulls`, else refused. UserError for a row without a
    document.
    """
    empty = []
    fields: list[str] = []
    names: list[str] = []
    for place, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise UserError(
                    "a row must be a JSON object with fields, such as 'text', not a "
                    f"{type(row).__name__}."
                )
            if list(row) != names:
                names = list(row)
                fields = fields_of(names, field)
            text = document(row, fields)
            if text is None and not nulls:
                name = next(name for name in fields if row.get(name) is None)
                raise UserError(f"no text in the field {name!r} (it holds null).")
            if text and not text.isascii() and re.search("[\ud800-\udfff]", text):
                raise UserError("half of a surrogate pair, which is not text.")
        except UserError as error:
            raise UserError(f"{what}, {place}: {error}") from None
        if text is None:
            empty.append(place)
        else:
            yield text
    if empty:
        log.warning(
            "%s: %d rows whose text is null are left out, the first at %s.",
            *(what, len(empty), empty[0]),
        )


def _first_bad_byte(file: Path) -> int | str:
    try:
        _bytes(file).read().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return "unknown"


def _bytes(file: Path) -> Any:
    import pyarrow as pa

    codec = PACKED.get(file.suffix.lower())
    return pa.input_stream(str(file), compression=codec) if codec else file.open("rb")


def _text(file: Path, newline: str | None = None) -> io.TextIOWrapper:
    # With or without a byte order mark.
    return io.TextIOWrapper(_bytes(file), encoding="utf-8-sig", newline=newline)


def _whole_text(file: Path, _field: str) -> Iterator[Row]:
    with _text(file) as stream:
        yield "line 1", {"text": stream.read().strip()}


def _paragraphs(file: Path, _field: str) -> Iterator[Row]:
    paragraph: list[str] = []
    begin = 1
    with _text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                yield f"line {begin}", {"text": "".join(paragraph).strip()}
                paragraph, begin = [], number + 1
            else:
                paragraph.append(line)
    yield f"line {begin}", {"text": "".join(paragraph).strip()}


def _json_lines(file: Path, _field: str) -> Iterator[Row]:
    with _text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", _parsed_json(line, f"line {number}")


def _json(file: Path, field: str) -> Iterator[Row]:
    """Read a list of rows, or JSON lines, which are often called .json as well."""
    with _text(file) as stream:
        content = stream.read().strip()
    if content.startswith("["):
        for number, row in enumerate(_parsed_json(content, "its list"), start=1):
            yield f"row {number}", row
        return
    if "\n" in content:
        with suppress(ValueError, RecursionError):
            json.loads(content)
            raise UserError(
                "which holds one JSON object: a .json file must hold a list of rows, [{…}, {…}], "
                "or one row per line."
            )
    yield from _json_lines(file, field)


def _parsed_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{place}: not JSON ({error.msg}, {at}character {error.colno}).") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise UserError(f"{place}: its JSON cannot be read ({first_line(error)}).") from None


def _csv(file: Path, _field: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _text(file, newline="") as stream:
        table = csv.DictReader(stream, strict=True)
        names = table.fieldnames or []
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UserError(f"line 1: {names.count(twice)} columns {twice!r}.")
        for number, row in enumerate(table, start=1):
            if None in row or None in row.values():
                raise UserError(
                    f"row {number}: it has another number of fields than the first line, which "
                    "names them."
                )
            yield f"row {number}", row


def _parquet(file: Path, field: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        names = table.schema_arrow.names
        try:
            fields = fields_of(names, field)
        except UserError as error:
            raise UserError(f"its columns: {error}") from None
        if twice := next((name for name in fields if names.count(name) > 1), ""):
            raise UserError(f"its columns: {names.count(twice)} columns {twice!r}.")
        batches = (batch.to_pylist() for batch in table.iter_batches(columns=fields))
        yield from enumerate_rows(chain.from_iterable(batches))


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".json": _json,
    ".csv": _csv,
}
