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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
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
Row = tuple[str, Mapping[str, Any] | str]
"""Where something stands (`line 3`), and the fields there, or the text of a .txt file."""


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
                yield from _documents(file, field, _whole_text if whole else None)

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


def enumerate_rows(rows: Any) -> Iterator[Row]:
    """Yield the rows of a data set of `datasets`, each with its place."""
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _by_split(source: Path) -> dict[str, list[Path]]:
    """Return split → files; all files under '' if no name is that of a split.

    UserError if only some names say so: the splits of the others are unknown.
    """
    if source.is_file():
        _reader(source)
        return {"": [source]}
    files = _files(source)
    splits = [split_of(file.relative_to(source).parts[:-1], _stem(file)) for file in files]
    if not any(splits):
        splits = in_pairs([_stem(file) for file in files])
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


def _stem(path: Path) -> str:
    """Return a file's name without its kind: `c4-train.00000-of-00002` of a .json.gz file."""
    name = path.name
    for ending in (*PACKED, *READERS):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


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


def _kind(file: Path) -> str:
    """Return a file's ending in small letters; of a .gz or .zst file, the ending before that."""
    name = file.name.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _reader(file: Path) -> Callable[[Path, str], Iterator[Row]]:
    if _kind(file) not in READERS:
        raise UserError(
            f"corpus file {str(file)!r}: cannot read files that end in "
            f"{''.join(file.suffixes[-1 - (file.suffix.lower() in PACKED) :])!r}; use "
            f"{', '.join(READERS)}, all but .parquet also as .gz or .zst, or a folder of one kind."
        )
    return READERS[_kind(file)]


def _documents(
    file: Path, field: str, reader: Callable[[Path, str], Iterator[Row]] | None = None
) -> Iterator[str]:
    """Yield the documents of a file; UserError with file and line for anything unreadable."""
    place = ""

    def placed() -> Iterator[Row]:
        nonlocal place
        for row in (reader or _reader(file))(file, field):
            place = row[0]
            yield row

    try:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"corpus file {str(file)!r} is a Git LFS pointer, not the text: run `git lfs "
                    "pull` there."
                )
        null = "" if _kind(file) in (".jsonl", ".json") else "left out"
        yield from documents_of(placed(), f"corpus file {str(file)!r}", field, null)
    except UserError:
        raise
    except UnicodeDecodeError:
        if _kind(file) == ".parquet":
            raise UserError(
                f"corpus file {str(file)!r}, after {place or 'its beginning'}: a text is not "
                "UTF-8. Write the file again from text that is."
            ) from None
        raise UserError(
            f"corpus file {str(file)!r} is not UTF-8 (byte {_first_bad_byte(file)}): convert it "
            "first, for instance with iconv."
        ) from None
    except Exception as error:  # a file can make a parser raise anything
        after = f", after {place}" if place else ""
        if file.suffix.lower() in PACKED and isinstance(error, OSError) and not error.errno:
            raise UserError(
                f"corpus file {str(file)!r}{after} cannot be unpacked: {first_line(error)}. It is "
                f"cut off, damaged, or not a {file.suffix} file: fetch or pack it again."
            ) from error
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"corpus file {str(file)!r}{after} cannot be read as {_kind(file)[1:]}: "
            f"{reason.rstrip('.')}."
        ) from error


def documents_of(
    rows: Iterator[Row], what: str, field: str, null: str = "left out"
) -> Iterator[str]:
    """Yield the documents in rows; `what` names the source, for errors.

    Without `null` a row whose text is null is an error. UserError for a row without a document.
    """
    empty = []
    fields: list[str] = []
    names: list[str] = []
    for place, row in rows:
        try:
            if isinstance(row, str):
                if field:
                    raise UserError(f"a .txt file has no field {field!r}.")
                text: str | None = row
            else:
                if list(row) != names:
                    names = list(row)
                    fields = fields_of(names, field)
                text = document(row, fields)
            if text is None and not null:
                name = next(name for name in fields if row.get(name) is None)  # type: ignore[union-attr]
                raise UserError(f"no text in the field {name!r} (it holds null).")
        except UserError as error:
            raise UserError(f"{what}, {place}: {error}") from None
        if text is None:
            empty.append(place)
        elif not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise UserError(f"{what}, {place}: half of a surrogate pair, which is not text.")
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
        yield "line 1", stream.read().strip()


def _paragraphs(file: Path, _field: str) -> Iterator[Row]:
    paragraph: list[str] = []
    begin = 1
    with _text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                yield f"line {begin}", "".join(paragraph).strip()
                paragraph, begin = [], number + 1
            else:
                paragraph.append(line)
    yield f"line {begin}", "".join(paragraph).strip()


def _json_lines(file: Path, _field: str) -> Iterator[Row]:
    with _text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"corpus file {str(file)!r}, line {number}"
                yield f"line {number}", _mapping(_parsed_json(line, where), where)


def _json(file: Path, field: str) -> Iterator[Row]:
    """Read a list of rows, or JSON lines, which are often called .json as well."""
    with _text(file) as stream:
        content = stream.read()
    where = f"corpus file {str(file)!r}"
    if not content.lstrip().startswith("["):
        if len(content.split("\n", 1)) > 1 and _is_json(content):
            raise UserError(
                f"{where} holds one JSON object. A .json file must hold a list of rows, [{{…}}, "
                "{…}], or one row per line."
            )
        yield from _json_lines(file, field)
        return
    for number, row in enumerate(_parsed_json(content, where), start=1):
        yield f"row {number}", _mapping(row, f"{where}, row {number}")


def _mapping(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: a row must be a JSON object with fields, such as 'text', not a "
            f"{type(row).__name__}."
        )
    return row


def _parsed_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{where}: not JSON ({error.msg}, {at}character {error.colno}).") from None
    except RecursionError:
        raise UserError(f"{where}: its JSON is nested too deeply to be read.") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise UserError(f"{where}: its JSON cannot be read ({first_line(error)}).") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _csv(file: Path, _field: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    with _text(file, newline="") as stream:
        table = csv.DictReader(stream, strict=True)
        names = table.fieldnames or []
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UserError(
                f"corpus file {str(file)!r} has {names.count(twice)} columns {twice!r}."
            )
        for number, row in enumerate(table, start=1):
            if None in row or None in row.values():
                raise UserError(
                    f"corpus file {str(file)!r}, row {number}: it has another number of fields "
                    "than the first line, which names them."
                )
            yield f"row {number}", row


def _parquet(file: Path, field: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = f"corpus file {str(file)!r}"
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        try:
            fields = fields_of(schema.names, field)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for name in fields:
            if schema.names.count(name) > 1:
                raise UserError(f"{where} has {schema.names.count(name)} columns {name!r}.")
        kind = schema.field(fields[0]).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        checks = ["is_string", "is_large_string", "is_string_view", "is_null"]
        checks += ["is_list", "is_large_list"]
        if not any(getattr(pa.types, check)(value) for check in checks):
            raise UserError(f"{where}: the column {fields[0]!r} holds {kind}, not text.")
        number = 0
        for batch in table.iter_batches(columns=fields):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".json": _json,
    ".csv": _csv,
}
