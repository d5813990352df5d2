"""The cache on disk: converted models, tokenized corpora and features, named by digests."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.environment import cache_dir as cache_dir  # the cache's own name for it
from colazero.errors import UserError

REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR),
    *(errno.EEXIST, errno.EFBIG, errno.EIO),
)
"""Errors of a directory that cannot be written: full, read-only, or not a directory."""

Arrays = dict[str, NDArray[Any]]


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Return 16 hex digits over the contents of files in this order, without their names."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(bytes.fromhex(file_digest(file)))
    return whole.hexdigest()[:16]


def named_digest(folder: Path, files: Iterable[Path]) -> str:
    """Return 16 hex digits over the names and contents of files in a folder."""
    named = {str(file.relative_to(folder)): file_digest(file) for file in files}
    return facts_digest(json.dumps(named, sort_keys=True))[:16]


def facts_digest(*facts: str) -> str:
    """Return 24 hex digits over facts in this order: the name of the cache entry they decide."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


Source = tuple[str, set[tuple[int, str]]]
"""The SHA-256 of a Python file, and what it imports: how many dots, and a dotted name."""


def read_source(file: Path) -> Source:
    """Return a file's digest, and what it imports, inside its functions too."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {
                (node.level, f"{node.module or ''}.{a.name}".strip(".")) for a in node.names
            }
    return file_digest(file), imported


def sources(
    begin: Iterable[str], package: str, root: Path, read: Callable[[Path], Source] = read_source
) -> dict[str, str]:
    """Return file below `root` → digest of modules and of all in `package` that they import.

    The packages on the way to a module count with it. `root`: the folder that holds the package.
    """
    found: dict[str, str] = {}
    waiting = list(begin)
    while waiting:
        module = waiting.pop()
        place = root.joinpath(*module.split("."))
        files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
        file = next((file for file in files if file.is_file()), None)
        if file is None or str(file.relative_to(root)) in found:
            continue
        found[str(file.relative_to(root))], imported = read(file)
        here = [*module.split("."), *(["__init__"] if file.name == "__init__.py" else [])]
        for dots, name in imported:
            parts = [*here[:-dots], *name.split(".")] if dots else name.split(".")
            paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            waiting += [path for path in paths if f"{path}.".startswith(f"{package}.")]
    return dict(sorted(found.items()))


def code_digest(module: str) -> str:
    """Return 24 hex digits over the source of a module and all of its package that it imports.

    '' for a module without a file, such as a notebook.
    """
    loaded = sys.modules[module]
    if not getattr(loaded, "__file__", None):
        return ""
    package = module if hasattr(loaded, "__path__") else module.rpartition(".")[0] or module
    file = Path(str(loaded.__file__))
    root = file.parents[module.count(".") + (file.name == "__init__.py")]
    return facts_digest(*sources([module], package, root).values())


own_code = lru_cache(code_digest)
"""`code_digest` of a module of ours: an edit does not change what this process has imported."""


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Raise UserError for a directory that is read-only or full."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise UserError(
            f"{str(folder)!r} cannot be written ({error.strerror}). Make room there, or use "
            "another folder: COLAZERO_CACHE names the cache's."
        ) from error


def _unique(target: Path) -> Path:
    """Return a new hidden name next to `target`. Unlike `tempfile`, the umask decides its mode."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


@contextmanager
def new_entry(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends without an error.

    The move is atomic: a reader sees the whole entry or none. If another process was faster, its
    equal entry stays and this one is dropped. Raise UserError if nothing can be written.
    """
    with _usable(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _unique(target)
        draft.mkdir()
        try:
            yield draft
            try:
                draft.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def kept_arrays(entry: Path, names: Sequence[str], build: Callable[[Path], None]) -> Arrays:
    """Return the arrays of a cache entry by name, memory-mapped.

    If the entry does not exist or is damaged, `build` fills an empty directory with files
    NAME.npy, which becomes the entry.
    """
    arrays = _read(entry, names)
    if arrays is not None:
        return arrays
    with new_entry(entry) as draft:
        build(draft)
        digests = {name: file_digest(draft / f"{name}.npy") for name in names}
        (draft / "digests.json").write_text(json.dumps(digests))
        _remember(draft, names)
        arrays = _map(draft, names)  # valid even if another process was faster
        if _read(entry, names) is None:
            shutil.rmtree(entry, ignore_errors=True)
    return arrays


def kept_json(name: str, compute: Callable[[], Any]) -> Any:
    """Return the content of the cache's file `name`; if there is none, compute and keep it."""
    file = cache_dir() / name
    with suppress(OSError, ValueError):
        return json.loads(file.read_text())
    content = compute()
    with _usable(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = _unique(file)
        draft.write_text(json.dumps(content))
        draft.replace(file)
    return content


def _read(entry: Path, names: Sequence[str]) -> Arrays | None:
    """Map the arrays of an entry; None if it does not exist or is damaged.

    Digests are checked only if a file's size, times or inode changed since the last check: for a
    corpus of 240 M tokens they would take seconds at every start.
    """
    try:
        verified = entry / "verified.json"
        if not verified.is_file() or json.loads(verified.read_text()) != _stamps(entry, names):
            digests = json.loads((entry / "digests.json").read_text())
            if any(file_digest(entry / f"{name}.npy") != digests[name] for name in names):
                return None
            with suppress(OSError):  # a read-only cache
                _remember(entry, names)
        return _map(entry, names)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(entry: Path, names: Sequence[str]) -> Arrays:
    # As plain arrays: each index into an np.memmap costs microseconds that add up.
    return {name: np.load(entry / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in names}


def _stamps(entry: Path, names: Sequence[str]) -> dict[str, list[int]]:
    files = ["digests.json", *(f"{name}.npy" for name in names)]
    stats = {file: (entry / file).stat() for file in files}
    return {f: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f, s in stats.items()}


def _remember(entry: Path, names: Sequence[str]) -> None:
    """Record the stamps of files whose digests were checked."""
    draft = _unique(entry / "verified.json")
    draft.write_text(json.dumps(_stamps(entry, names)))
    draft.replace(entry / "verified.json")
