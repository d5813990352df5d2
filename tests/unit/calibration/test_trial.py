"""A method of the user's own is tried before a model is loaded, and what is wrong is said."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from colazero import pipeline
from colazero.calibration import trial
from colazero.calibration.sets import select
from colazero.errors import UserError
from colazero.selection import METHODS
from colazero.settings import RunConfig

HEAD = """
import random
import numpy as np
from colazero.types import Selection
from colazero.selection import windows_at
calls = []
"""
Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return what writes the module `mymod`, as if the process had just begun."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        (tmp_path / "mymod.py").write_text(HEAD + text)
        importlib.invalidate_caches()
        sys.modules.pop("mymod", None)

    yield write
    sys.modules.pop("mymod", None)


LAST = """
def f(pool, n, seq_len, rng):
    first = len(pool.tokens) - n * seq_len
    return Selection(windows_at(pool, first + np.arange(n) * seq_len, seq_len))
"""


def test_a_method_that_is_one_passes(write: Write) -> None:
    write(LAST)
    trial.refuse_defective(["mymod:f"])


@pytest.mark.parametrize(
    "method", [m for m in METHODS.names() if not m.startswith("cola") and m != "self"]
)
def test_every_method_that_runs_no_model_chooses_from_the_toy_pool(method: str) -> None:
    chosen = select(method, trial.toy_pool(), trial.WINDOWS, trial.SEQ_LEN, 0, "toy")
    assert chosen.windows.shape == (trial.WINDOWS, trial.SEQ_LEN)


def test_the_toy_pools_documents_are_what_its_places_say() -> None:
    pool = trial.toy_pool()
    for text, start, stop in zip(pool.texts, pool.starts, pool.stops, strict=True):
        assert [f"word{token}" for token in pool.tokens[start:stop]] == text.split()
    assert pool.stops[-1] == len(pool.tokens)
    assert not set(pool.tokens.tolist()) & pool.forbidden


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(pool, n): pass", ["takes (pool, n)", "(pool, n, seq_len, rng)"]),
        ("def f(pool, n, seq_len, rng, k): pass", ["takes (pool, n, seq_len, rng, k)", "'k'"]),
        (
            "def f(pool, n, seq_len, rng):\n"
            "    starts = np.random.choice(4000, n, replace=False)\n"
            "    return Selection(windows_at(pool, starts, seq_len))",
            ["same seed", "rng"],
        ),
        (
            "def f(pool, n, seq_len, rng):\n"
            "    calls.append(1)\n"
            "    return Selection(windows_at(pool, 9 * len(calls) + np.arange(n), seq_len))",
            ["same seed", "between calls"],
        ),
        (
            "def f(pool, n, seq_len, rng):\n"
            "    return Selection(windows_at(pool, np.zeros(n, dtype=int), seq_len))",
            ["defective", "4 times", "tokens 0 to 32"],
        ),
        (
            "def f(pool, n, seq_len, rng):\n"
            "    return Selection(windows_at(pool, np.arange(n - 1) * seq_len, seq_len))",
            ["asked for 4 × 32 tokens, got 3 windows"],
        ),
        ("def f(pool, n, seq_len, rng): return [1]", ["list", "Selection"]),
        (
            "def f(pool, n, seq_len, rng):\n    return pool.words",
            ["AttributeError", "'words'", "mymod.py, line 8"],
        ),
        (
            "def f(pool, n, seq_len, rng):\n    pool.tokens[0] = 1",
            ["ValueError", "read-only", "mymod.py, line 8"],
        ),
        ("def f(pool, n, seq_len, rng): pool.model.path", ["uses_model = True"]),
    ],
    ids=lambda value: None if isinstance(value, list) else value.splitlines()[-1].strip(),
)
def test_what_is_wrong_with_a_method_is_said(write: Write, text: str, words: list[str]) -> None:
    write(text)
    with pytest.raises(UserError) as caught:
        trial.refuse_defective(["random", "mymod:f"])
    message = str(caught.value)
    assert message.startswith("method 'mymod:f' ")
    for word in words:
        assert word in message


def test_a_method_that_runs_a_model_says_so_and_is_not_tried(write: Write) -> None:
    write("def f(pool, n, seq_len, rng): pool.model.path\nf.uses_model = True")
    trial.refuse_defective(["mymod:f"])


def test_it_is_tried_before_anything_is_fetched(write: Write) -> None:
    write("def f(pool, n, seq_len, rng): return Selection([])")
    config = RunConfig(method="mymod:f", model="nowhere/no-such-model", device="cpu")
    with pytest.raises(UserError, match=r"method 'mymod:f' .*toy documents"):
        pipeline.check(config, [config.method], [config.model])


def test_a_window_that_is_chosen_twice_on_a_real_corpus_is_the_methods_fault(write: Write) -> None:
    write(LAST.replace("np.arange(n)", "np.minimum(np.arange(n), 5)"))
    trial.refuse_defective(["mymod:f"])  # four windows are all others
    pool = trial.toy_pool()
    with pytest.raises(UserError, match=r"'mymod:f'.*defective.*one window"):
        select("mymod:f", pool, 8, 16, 0, "toy")
    assert np.array_equal(pool.tokens, trial.toy_pool().tokens)
