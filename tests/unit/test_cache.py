"""A cache that cannot be written is told in a sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from colazero import cache
from colazero.errors import UserError


def test_a_file_in_the_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written"):
        cache.kept_json("a/b.json", lambda: 1)
    with pytest.raises(UserError, match="COLAZERO_CACHE"):
        cache.kept_arrays(cache.cache_dir() / "a", ["x"], lambda draft: None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_is_full_or_read_only(number: int, tmp_path: Path) -> None:
    def build(draft: Path) -> None:
        np.save(draft / "x.npy", np.zeros(3))
        raise OSError(number, "it is so")

    with pytest.raises(UserError, match=r"\(it is so\)"):
        cache.kept_arrays(tmp_path / "entry", ["x"], build)
    assert list(tmp_path.iterdir()) == [], "no draft stays"


def test_another_error_is_what_it_was(tmp_path: Path) -> None:
    def build(_draft: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "no source")

    with pytest.raises(FileNotFoundError):
        cache.kept_arrays(tmp_path / "entry", ["x"], build)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read_an_entry(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path))
    before = os.umask(umask)
    try:
        cache.kept_json("a/b.json", lambda: 1)
        cache.kept_arrays(
            tmp_path / "entry", ["x"], lambda draft: np.save(draft / "x.npy", np.ones(3))
        )
    finally:
        os.umask(before)
    files = [tmp_path / "a/b.json", *(tmp_path / "entry").iterdir()]
    assert {file.name for file in files} == {"b.json", "x.npy", "digests.json", "verified.json"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}
    assert (tmp_path / "entry").stat().st_mode & 0o777 == 0o777 & ~umask
