"""Where converted models and tokenised corpora are kept between runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Return `$COLAZERO_CACHE`, or `colazero` in the user's cache directory."""
    named = os.environ.get("COLAZERO_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "colazero"
    return Path(named).expanduser() if named else base


@contextmanager
def new_entry(target: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends without an error.

    The move is atomic: a reader sees the whole entry or none. If another process was faster, its
    entry stays and ours is dropped; both hold the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield draft
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
