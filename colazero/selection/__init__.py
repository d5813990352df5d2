"""Selection methods, one file each: which windows of the corpus the quantizer is calibrated on.

A method is a function `(pool, n, seq_len, rng) -> Selection`, registered by name; see
`colazero.types.Selector`. It returns spans of the pool's token stream.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from colazero.cache import code_digest, facts_digest
from colazero.errors import UserError, unknown
from colazero.registry import Registry
from colazero.types import Selector, Span, TokenPool

METHODS: Registry[Selector] = Registry("method", "colazero.selection")


def find(method: str) -> Selector:
    """Return the method of this name, or the function that `module:function` names.

    Raise UserError if there is none, or if the module cannot be imported.
    """
    module_name, colon, function_name = method.partition(":")
    if not colon:
        return METHODS.get(method)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's and may raise anything
        raise UserError(
            f"method {method!r}: cannot import module {module_name!r} "
            f"({type(error).__name__}: {error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise unknown(f"function in module {module_name!r}:", function_name, names)
    selector: Selector = function
    return selector


def uses_proxy(method: str) -> bool:
    """Return True if the method runs `proxy_model`: its function sets `uses_proxy = True`."""
    return bool(getattr(find(method), "uses_proxy", False))


def source_digest(method: str) -> str:
    """Return a digest of a method's source, so that an edited method is another method.

    The source is the module of the function and every module of its package that it imports.
    """
    module = inspect.getmodule(inspect.unwrap(find(method)))
    name, colon, _ = method.partition(":")
    modules = {module.__name__ if module else "", name if colon else ""} - {""}
    return facts_digest(*map(code_digest, sorted(modules)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the arithmetic inside the block on one thread.

    The order of a sum over several threads, and so its last bits, depends on their number.
    """
    import scipy.linalg  # noqa: F401  The limit reaches only libraries that are loaded, and
    import sklearn.cluster  # noqa: F401  these two bring their own BLAS and OpenMP.
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def windows_at(pool: TokenPool, starts: NDArray[np.int64], seq_len: int) -> list[list[Span]]:
    """Return contiguous windows of `seq_len` tokens that begin at the tokens `starts`."""
    starts = np.asarray(starts, dtype=np.int64)
    documents = np.searchsorted(pool.starts, starts, side="right") - 1
    return [
        [Span(document, start, start + seq_len)]
        for document, start in zip(documents.tolist(), starts.tolist(), strict=True)
    ]


def candidate_starts(pool: TokenPool, n: int, seq_len: int) -> NDArray[np.int64]:
    """Cut the stream at multiples of `seq_len` and return the starts of the windows to choose from.

    Windows that repeat an earlier one or hold a special token are dropped, unless fewer than `n`
    would be left: then the check of the calibration set says what is wrong with the corpus.
    """
    starts = np.arange(len(pool.tokens) // seq_len, dtype=np.int64) * seq_len
    special = np.array(sorted(pool.forbidden), dtype=np.int32)
    seen: set[bytes] = set()
    good = []
    for start in starts:
        window = pool.tokens[start : start + seq_len]
        digest = hashlib.blake2b(window.tobytes(), digest_size=16).digest()
        if digest not in seen and not np.isin(special, window).any():
            seen.add(digest)
            good.append(start)
    return np.array(good, dtype=np.int64) if len(good) >= n else starts
