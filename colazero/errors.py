"""The one exception that is shown to a user as a sentence instead of a stack trace."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend: says what was wrong, what is allowed, what to do."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def unknown(kind: str, value: str, allowed: Iterable[str], listing: str = "") -> UserError:
    """Return the error for a name that is not among `allowed`, with the nearest valid one.

    `listing` says what is allowed where the names are too many to list.
    """
    names = sorted(allowed)
    near = get_close_matches(value.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"unknown {kind} {value!r}.{hint} {listing or 'Allowed: ' + ', '.join(names)}."
    )
