"""Models on the Hugging Face Hub. Only a lost connection lets an earlier download stand in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colazero.errors import UserError, first_line

TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Configuration and tokenizer."""


def check(repository: str, revision: str | None, ways: str) -> bool:
    """Tell whether the Hub grants a model; False if it cannot be reached.

    UserError if the model is not there or gated, or the Hub refuses for another reason. `ways`
    says what else can be named.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = repository + (f"@{revision}" if revision else "")
    try:
        HfApi().auth_check(repository)
        HfApi().model_info(repository, revision=revision, timeout=10)
    except GatedRepoError:
        raise UserError(
            f"model {name!r} is gated: accept its licence at https://huggingface.co/{repository}, "
            "then run `hf auth login`, or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"model {repository!r} has no revision {revision!r}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"model {name!r} is not on the Hub, and there is no such directory here (private "
            f"models need `hf auth login`). {ways}"
        ) from None
    except Exception as error:
        if not is_lost_connection(error):
            raise UserError(
                f"the Hugging Face Hub does not give model {name!r}: {first_line(error)}"
            ) from error
        return False
    return True


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error means that the Hub cannot be reached, or cannot serve anybody now.

    A full disk, a file that cannot be written or an answer like 401 is none of these.
    """
    from huggingface_hub import errors

    # The first: its HTTP client's own, of all but an answer that came.
    lost = (vars(errors)["HTTPError"], ConnectionError, TimeoutError)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.HfHubHTTPError):
            return seen.response is not None and seen.response.status_code >= 500
        if isinstance(seen, lost):
            return True
        seen = seen.__cause__
    return False


def download(repository: str, revision: str | None) -> Path:
    """Return the directory of a model's snapshot, what is not there yet fetched.

    If the connection is lost, what an earlier download left; whether that is a whole model is for
    the caller to see. UserError if there is nothing, or fetching fails for another reason.
    """
    from huggingface_hub import HfApi

    try:
        # One request; listing the files would be tried six times where there is no network.
        found = HfApi().model_info(repository, revision=revision, timeout=10)
        names = [file.rfilename for file in found.siblings or []]
        return _snapshot(repository, revision, allow_patterns=[*TEXTS, *_weights(names)])
    except Exception as error:
        if not is_lost_connection(error):
            raise UserError(
                f"model {repository!r} could not be downloaded: {first_line(error)}"
            ) from error
    return cached(repository, revision)


def cached(repository: str, revision: str | None) -> Path:
    """Return the directory of a snapshot in the local cache; UserError if there is none."""
    try:
        return _snapshot(repository, revision, local_files_only=True)
    except Exception as error:
        raise UserError(
            f"model {repository!r} is not in the local cache: {first_line(error)}"
        ) from error


def _weights(names: Sequence[str]) -> list[str]:
    """Return the patterns of the files to fetch: one set of weights, where there are several."""
    for pattern, first in (("*.safetensors", "model"), ("pytorch_model*.bin", "pytorch_model")):
        ending = pattern.rpartition(".")[2]
        if {f"{first}.{ending}", f"{first}.{ending}.index.json"} & set(names):
            return [f"{first}*.{ending}"]
        if any("/" not in name and name.endswith(f".{ending}") for name in names):
            return [pattern]
    return []


def _snapshot(repository: str, revision: str | None, **how: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, revision=revision, **how))
