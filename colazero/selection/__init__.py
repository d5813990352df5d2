"""Selection methods, one file each: which windows of the corpus the quantizer gets to see.

A method is a function `(pool, n, seq_len, rng) -> Selection`, registered by name; see
`colazero.types.Selector`. It returns spans of the pool's token stream.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError, unknown
from colazero.registry import Registry
from colazero.types import Selector, Span, TokenPool

METHODS: Registry[Selector] = Registry("method", "colazero.selection")


def find(method: str) -> Selector:
    """Return the method of this name, or the function that `module:function` names.

    UserError if there is none, or the module cannot be imported.
    """
    module_name, colon, function_name = method.partition(":")
    if not colon:
        return METHODS.get(method)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and so is whatever goes wrong in it
        raise UserError(
            f"method {method!r}: the module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}). It must be installed, or lie in a folder named "
            "by PYTHONPATH."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        raise unknown(f"function in module {module_name!r}:", function_name, names)
    chosen: Selector = function
    return chosen


def uses_proxy(method: str) -> bool:
    """Tell whether a method runs `proxy_model`: its function has then `uses_proxy = True`."""
    return bool(getattr(find(method), "uses_proxy", False))


def source_digest(method: str) -> str:
    """Return 16 hex digits over the source of a method, so that an edited one is another one.

    The source is the module of its function and what that imports from its own package.
    """
    function = inspect.unwrap(find(method))
    return sources_digest(inspect.getmodule(function), sys.modules.get(method.partition(":")[0]))


def sources_digest(*modules: ModuleType | None) -> str:
    """Return 16 hex digits over the source of modules and what they import from their package."""
    files: set[str] = set()
    for module in modules:
        _sources(module, files)
    digest = hashlib.sha256()
    for content in sorted(Path(file).read_bytes() for file in files):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _sources(module: ModuleType | None, files: set[str]) -> None:
    """Add the file of a module, and those of the modules in its package that its names lead to."""
    file = getattr(module, "__file__", None)
    if module is None or file is None or file in files:
        return
    files.add(file)
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    for value in vars(module).values():
        # A package has all its modules as attributes, whoever imported them.
        if inspect.ismodule(value):
            other = None if hasattr(module, "__path__") else value
        else:
            other = sys.modules.get(getattr(value, "__module__", None) or "")
        if package and other is not None and f"{other.__name__}.".startswith(f"{package}."):
            _sources(other, files)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let one thread do the arithmetic inside the block.

    Sums over several come in an order, and so with bits, that depends on their number.
    """
    import scipy.linalg  # noqa: F401  the limit reaches only those libraries that are loaded:
    import sklearn.cluster  # noqa: F401  these bring a BLAS and an OpenMP of their own
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


def document_at(pool: TokenPool, token: int) -> int:
    """Return the index of the document in which (or in whose separator) `token` lies."""
    return int(np.searchsorted(pool.starts, token, side="right")) - 1


def windows_at(pool: TokenPool, starts: NDArray[np.int64], seq_len: int) -> list[list[Span]]:
    """Return contiguous windows of `seq_len` tokens that begin at the tokens `starts`."""
    return [
        [Span(document_at(pool, int(start)), int(start), int(start) + seq_len)] for start in starts
    ]
