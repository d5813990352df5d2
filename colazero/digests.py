"""Digests of files and of facts, all by SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


def of_file(file: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_files(files: Iterable[Path]) -> str:
    """Return 16 hex digits over the contents of files in this order, whatever their names."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(bytes.fromhex(of_file(file)))
    return whole.hexdigest()[:16]


def of_named(folder: Path, files: Iterable[Path]) -> str:
    """Return 16 hex digits over the names and contents of files in a folder."""
    named = {str(file.relative_to(folder)): of_file(file) for file in files}
    return of_facts(json.dumps(named, sort_keys=True))[:16]


def of_facts(*facts: str) -> str:
    """Return 24 hex digits over facts in this order: the name of a cache entry that they decide."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
