"""A method of the user's own, tried on a toy pool before any model is loaded."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence

import numpy as np

from colazero.calibration.choose import select
from colazero.errors import UserError
from colazero.selection import find
from colazero.types import CalibrationSet, Selector, TokenPool

WINDOWS, SEQ_LEN = 4, 32
WORDS, DOCUMENTS = 400, 60
CALLED = "(pool, n, seq_len, rng)"
"""How a method is called, see `colazero.types.Selector`."""


def check(methods: Sequence[str]) -> None:
    """Raise UserError for a method named `module:function` that cannot be one.

    It must take what a method is called with, choose as many windows as it is asked for, each once,
    and the same ones again from the same seed. One that says by `uses_model = True` or
    `uses_proxy = True` that it runs a model is not tried: the toy pool has none.
    """
    for method in methods:
        function = find(method)
        if ":" not in method:
            continue
        _check_signature(method, function)
        if getattr(function, "uses_model", False) or getattr(function, "uses_proxy", False):
            continue
        if _try(method).order_digest != _try(method).order_digest:
            raise UserError(
                f"method {method!r} chooses other windows when it is called again with the same "
                "seed: it must take everything random from rng, and keep nothing between calls."
            )


def toy_pool() -> TokenPool:
    """Return documents of 4 to 399 words, a token a word and one between two documents."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, WORDS, size) for size in rng.integers(4, 400, DOCUMENTS)]
    lengths = np.array([len(document) for document in ids])
    stops = np.cumsum(lengths + 1) - 1
    tokens = np.concatenate([np.append(document, 0) for document in ids]).astype(np.int32)
    tokens.flags.writeable = False  # those of a corpus are mapped from a file to be read
    texts = [" ".join(f"word{number}" for number in document) for document in ids]
    return TokenPool(texts, tokens[:-1], stops - lengths, stops, frozenset({WORDS}))


def _check_signature(method: str, function: Selector) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled, it does not tell
        return
    try:
        signature.bind(None, WINDOWS, SEQ_LEN, None)
    except TypeError as error:
        raise UserError(
            f"method {method!r} takes {signature}: it is called with {CALLED} ({error})."
        ) from None


def _try(method: str) -> CalibrationSet:
    pool = toy_pool()
    try:
        return select(method, pool, WINDOWS, SEQ_LEN, seed=0, corpus="of toy documents")
    except Exception as error:  # the function is the user's, and so is whatever goes wrong in it
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"method {method!r} was tried on {DOCUMENTS} toy documents of {len(pool.tokens):,} "
            f"tokens, asked for {WINDOWS} windows of {SEQ_LEN}. {what}{_place(method, error)} A "
            "method that runs a model (pool.model) says so by uses_model = True on its function, "
            "and is not tried."
        ) from error


def _place(method: str, error: Exception) -> str:
    """Return where in the method's own file it went wrong, as in ` (mymod.py, line 7).`."""
    file = inspect.getsourcefile(inspect.unwrap(find(method)))
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" ({file}, line {lines[-1]})." if lines else "."
