"""GGUF files, .bin files and safetensors of odd names → a directory of safetensors in the cache."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import cache_dir, new_entry
from colazero.errors import UserError, first_line
from colazero.models.misfit import refuse_misfit

log = logging.getLogger(__name__)


def converted(
    source: Path, key: str, *, weights: str = "", gguf: str = "", named: str = ""
) -> Path:
    """Load the directory `source` with transformers; keep it as safetensors under `key`, once.

    `gguf`: the file in it to load; `weights`: the safetensors file, where its name is not the
    usual one. Without either its .bin files are read. `named`: what the user calls it. UserError
    if they cannot be loaded, or do not hold every weight of the model.
    """
    named = named or str(source / gguf)
    if kept := kept_conversion(key):
        return kept
    target = _target(key)
    log.info("converting %s (once, into %s)", named, target)
    try:
        with _parsed_once():
            model, tokenizer, info = _loaded(source, weights, gguf)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{named}: its .bin files are damaged or hold more than weights. They are not "
            "unpickled, which could run any code: take a copy of the model with safetensors."
        ) from error
    except Exception as error:  # whatever a foreign file can provoke in the loaders
        raise UserError(
            f"{named} cannot be loaded as a causal language model: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    refuse_misfit(named, model, info)
    if gguf:
        _refuse_unread(source / gguf, model)
        model = _fresh_copy(model)
    with new_entry(target) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    return target


def kept_conversion(key: str) -> Path | None:
    """Return the directory of a model that was converted under `key` before, None if none was."""
    return _target(key) if _target(key).is_dir() else None


def _target(key: str) -> Path:
    # What lies under `models` and `converted` is from times when less was refused.
    return cache_dir() / "conversions" / key


def _loaded(source: Path, weights: str, gguf: str) -> tuple[Any, Any, Any]:
    """Return model, tokenizer, and what transformers says of weights that did not fit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    how: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **how)
    if weights:
        how["config"] = AutoConfig.from_pretrained(source, trust_remote_code=False)
        how["config"].transformers_weights = weights
    elif not gguf:
        how |= {"use_safetensors": False, "weights_only": True}
    model, info = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16 if gguf else "auto",
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are refused, by name
        output_loading_info=True,
        **how,
    )
    return model, tokenizer, info


COMPUTES = re.compile(
    r"rope\.scaling\.(type|factor)|.*(logit|residual|embedding|attention)[._]scale|.*softcapping"
)
"""Settings of a GGUF file that change what is computed; llama.cpp's `none` and 1 change nothing."""


def _refuse_unread(file: Path, model: Any) -> None:
    """Raise UserError if a GGUF file holds weights or settings that transformers left out.

    It says nothing of them. As many numbers as the model has are read, or some were not.
    """
    from gguf import GGUFReader
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    reader = GGUFReader(file)
    own = {tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}
    surplus = sum(int(tensor.n_elements) for tensor in reader.tensors) - sum(own.values())
    if surplus > 0:
        known = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
        names = [str(t.name) for t in reader.tensors if t.name not in known]
        raise UserError(
            f"{file.name} holds {surplus:,} numbers that transformers {version('transformers')} "
            f"leaves out ({', '.join(names[:3]) or 'of which is not said'}): computed without them "
            "it would be another model. Take a copy of the model with safetensors."
        )
    arch = str(reader.fields["general.architecture"].contents())
    read = GGUF_CONFIG_MAPPING.get(arch, {})
    for key, field in reader.fields.items():
        name, value = key.removeprefix(f"{arch}."), field.contents()
        if COMPUTES.fullmatch(name) and name not in read and value not in ("none", 1.0):
            raise UserError(
                f"{file.name} says {key}={value}, which transformers {version('transformers')} "
                "does not read: computed without it, it would be another model. Take a copy of the "
                "model with safetensors."
            )


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
