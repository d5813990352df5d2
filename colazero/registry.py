"""Name → implementation. A new file in a package registers itself; no list needs editing."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from colazero.errors import unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """The implementations of one kind, one module each, found by importing a package's modules.

    The modules import heavy libraries inside their functions, so that listing names is cheap.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._implementations: dict[str, T] = {}
        self._imported = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate the implementation called `name`; raise ValueError if the name is taken."""

        def add(implementation: T) -> T:
            if name in self._implementations:
                raise ValueError(f"two implementations of {self.kind} {name!r}")
            self._implementations[name] = implementation
            return implementation

        return add

    def names(self) -> list[str]:
        """Return all names, sorted."""
        if not self._imported:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._imported = True
        return sorted(self._implementations)

    def get(self, name: str) -> T:
        """Return the implementation; raise UserError with the nearest name if there is none."""
        if name not in self.names():
            raise unknown(self.kind, name, self.names())
        return self._implementations[name]
