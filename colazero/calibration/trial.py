"""A user's own method, tried on a toy pool before any model is loaded."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Sequence

import numpy as np

from colazero.calibration.sets import select
from colazero.errors import UserError
from colazero.selection import find
from colazero.settings import Settings
from colazero.types import CalibrationSet, SelectionSettings, Selector, TokenPool

WINDOWS, SEQ_LEN = 4, 32
WORDS, DOCUMENTS = 400, 60
CALL = "(pool, n, seq_len, rng)"
"""How a method is called, see `colazero.types.Selector`."""


def refuse_defective(methods: Sequence[str]) -> None:
    """Raise UserError for a `module:function` that does not work as a method.

    It must take the arguments of a method, choose as many windows as asked for, each once, and
    choose the same ones again from the same seed. A method that runs a model, which it declares by
    `uses_model = True` or `uses_proxy = True`, is not tried: the toy pool has no model.
    """
    for method in methods:
        function = find(method)
        if ":" not in method:
            continue
        _refuse_signature(method, function)
        if getattr(function, "uses_model", False) or getattr(function, "uses_proxy", False):
            continue
        if _try(method).order_digest != _try(method).order_digest:
            raise UserError(
                f"method {method!r} chose other windows in a second call with the same seed. It "
                "must take all randomness from rng and keep nothing between calls."
            )


def toy_pool() -> TokenPool:
    """Return documents of 4 to 399 words; each word is a token, and so is each separator."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, WORDS, size) for size in rng.integers(4, 400, DOCUMENTS)]
    lengths = np.array([len(document) for document in ids])
    stops = np.cumsum(lengths + 1) - 1
    tokens = np.concatenate([np.append(document, 0) for document in ids]).astype(np.int32)
    tokens.flags.writeable = False  # as those of a corpus, which are mapped read-only from a file
    texts = [" ".join(f"word{number}" for number in document) for document in ids]
    return TokenPool(
        texts,
        tokens[:-1],
        stops - lengths,
        stops,
        frozenset({WORDS}),
        selection_settings=SelectionSettings.of(Settings.model_validate({}), device="cpu"),
    )


def _refuse_signature(method: str, function: Selector) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a compiled function has none
        return
    try:
        signature.bind(None, WINDOWS, SEQ_LEN, None)
    except TypeError as error:
        raise UserError(
            f"method {method!r} takes {signature}, but methods are called with {CALL} ({error})."
        ) from None


def _try(method: str) -> CalibrationSet:
    pool = toy_pool()
    try:
        return select(method, pool, WINDOWS, SEQ_LEN, seed=0, corpus="of toy documents")
    except Exception as error:  # the function is the user's and may raise anything
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        file = inspect.getsourcefile(inspect.unwrap(find(method)))
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        place = f" ({file}, line {lines[-1]})." if lines else "."
        raise UserError(
            f"method {method!r} failed on {DOCUMENTS} toy documents of {len(pool.tokens):,} "
            f"tokens, asked for {WINDOWS} windows of {SEQ_LEN}. {what}{place} If the method runs a "
            "model (pool.model), set uses_model = True on its function: then it is not tried."
        ) from error
