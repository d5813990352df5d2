"""A method of the user's own: named by module and function, known by its source."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from colazero import cache
from colazero.calibration.sets import select
from colazero.errors import UserError
from colazero.selection import METHODS, source_digest
from colazero.types import TokenPool

LAST = """
import numpy as np
from colazero.types import Selection
from colazero.selection import windows_at
{more}
def last(pool, n, seq_len, rng):
    first = len(pool.tokens) - n * seq_len
    return Selection(windows_at(pool, first + np.arange(n) * seq_len, seq_len))
not_a_function = 3
"""

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return what writes files of a package `mine`, as if the process had just begun."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()

    def forget() -> None:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]

    def write(name: str, text: str) -> None:
        (tmp_path / "mine" / f"{name}.py").write_text(text)
        forget()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    forget()


POOL = TokenPool(["a"], np.arange(100, dtype=np.int32), np.array([0]), np.array([100]), frozenset())


def test_a_function_of_ones_own_is_a_method(write: Write) -> None:
    write("choice", LAST.format(more=""))
    chosen = select("mine.choice:last", POOL, 2, 10, 0, "toy")
    assert chosen.windows.ravel().tolist() == list(range(80, 100))


@pytest.mark.parametrize(
    "imported",
    [
        *("from mine.helper import help", "from .helper import help", "from . import helper"),
        *("import mine.helper", "def later():\n    from mine import helper"),
    ],
)
def test_an_edited_method_is_another_one_and_so_is_one_whose_helper_was_edited(
    imported: str, write: Write
) -> None:
    digests = set()
    write("helper", "def help(): return 1")
    write("unrelated", "x = 1")
    for text in (LAST.format(more=""), LAST.format(more=imported)):
        write("choice", text)
        digests.add(source_digest("mine.choice:last"))
    assert len(digests) == 2
    write("unrelated", "x = 2")
    digests.add(source_digest("mine.choice:last"))
    assert len(digests) == 2
    write("helper", "def help(): return 2")
    digests.add(source_digest("mine.choice:last"))
    assert len(digests) == 3


def test_every_method_is_known_by_its_own_source() -> None:
    digests = {method: source_digest(method) for method in METHODS.names()}
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("mine.nowhere:last", "(ModuleNotFoundError"),
        ("mine.broken:last", "(ZeroDivisionError"),
        ("mine.choice:lats", "Did you mean 'last'?"),
        ("mine.choice:not_a_function", "unknown function in module 'mine.choice'"),
        ("mine.choice:", "unknown function"),
        ("cola_zero:select", "module 'cola_zero'"),
    ],
)
def test_what_cannot_be_found_is_told_in_a_sentence(
    write: Write, method: str, message: str
) -> None:
    write("choice", LAST.format(more=""))
    write("broken", "1 / 0")
    with pytest.raises(UserError) as caught:
        select(method, POOL, 2, 10, 0, "toy")
    assert message in str(caught.value)


def test_features_are_kept_under_the_source_of_all_that_computes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = cache.code_digest("colazero.selection.features")
    real = cache.file_digest
    monkeypatch.setattr(
        cache, "file_digest", lambda file: real(file) + "edited" * (file.name == "forward.py")
    )
    assert cache.code_digest("colazero.selection.features") != before
