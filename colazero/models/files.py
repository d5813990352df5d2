"""The files of a model directory: which of them hold weights, what their headers say, how packed.

A directory may hold more than one set of weights, such as Mistral's `consolidated.safetensors`
besides the shards. The rules here are the same for every reader.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from colazero.errors import UserError, first_line

KINDS = (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))
"""For each format: the name of a single file, and a pattern for other names; safest first."""
INDEX = "model.safetensors.index.json"
"""The file that maps tensors to shards."""
SHARD = re.compile(r"-(\d{5})-of-(?!00001\.)(\d{5})(?=\.\w+$)")
"""The part of a file name that makes it one shard of several. One of one is a whole model."""
LFS_POINTER = b"version https://git-lfs"
WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".ot", ".onnx"}
)
"""Endings of files that hold weights."""
TEMPLATES = "additional_chat_templates"
"""The folder in which transformers keeps a tokenizer's chat templates but the first."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files that PEFT writes for an adapter such as LoRA's."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `dtype` as safetensors writes it (`BF16`)."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def copy_other_files(model_dir: Path, out_dir: Path) -> None:
    """Copy what a model needs besides weights: tokenizer, processors, generation settings.

    Every file of the model directory except weights, their indices, config.json and hidden files,
    and the chat templates. Files that are there already stay.
    """
    for file in (*model_dir.iterdir(), *(model_dir / TEMPLATES).glob("*")):
        target = out_dir / file.relative_to(model_dir)
        weights = file.suffix.lower() in WEIGHTS or file.name.endswith(".index.json")
        own = file.name in ("config.json", "quantize_config.json") or file.name.startswith(".")
        if file.is_file() and not weights and not own and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)  # the umask decides who may read it


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a directory's weights: all safetensors, or else all .bin.

    The order is `model.safetensors`, the files that its index names, the only *.safetensors file;
    without any of these `pytorch_model.bin` in the same ways. UserError if there are no weights,
    if the choice is ambiguous, if a shard is missing, or if there is an adapter.
    """
    _refuse_adapter(folder)
    for whole, others in KINDS:
        if (folder / whole).is_file():
            return [folder / whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return _indexed(index)
        found = sorted(folder.glob(others))
        if gone := [file.name for file in found if not file.is_file()]:
            raise UserError(
                f"directory {str(folder)!r}: {gone[0]!r} is not a file, or is a link to a missing "
                "file. Fetch the model again."
            )
        if len(found) == 1 and not SHARD.search(found[0].name):
            return found
        if found:
            raise UserError(
                f"directory {str(folder)!r} does not say which of its files are the model: "
                f"{some([file.name for file in found])}. It needs {whole}, or {index.name} that "
                "names the shards: fetch the model again, or leave one file there."
            )
    raise UserError(f"directory {str(folder)!r} has no weights (*.safetensors or *.bin).")


def _refuse_adapter(folder: Path) -> None:
    """Raise UserError if PEFT's files lie in a directory, alone or with weights.

    transformers would load the adapter where `peft` is installed, and ignore it elsewhere.
    """
    files = [name for name in ADAPTER if (folder / name).is_file()]
    if not files:
        return
    try:
        base = json.loads((folder / ADAPTER[0]).read_text(encoding="utf-8"))
        into = f"its base model ({base['base_model_name_or_path']})"
    except (OSError, ValueError, KeyError, TypeError):
        into = "its base model"
    rest = {file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)}
    alone = not any(f.name.startswith(("model", "pytorch_model")) for f in rest)
    what = "is an adapter, not a whole model" if alone else "holds an adapter as well as weights"
    also = "" if alone else " To use the weights without it, remove the adapter's files."
    raise UserError(
        f"directory {str(folder)!r} {what} ({', '.join(files)}). Merge it into {into} with PEFT's "
        f"merge_and_unload, save the result, and name that directory.{also}"
    )


def refuse_unmerged(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if tensors belong to an adapter that was saved without merging it."""
    marks = re.compile(r"\.(base_layer|lora_[AB]|lora_embedding_[AB]|modules_to_save)\.")
    if found := [name for name in names if marks.search(name)]:
        raise UserError(
            f"{folder} holds the weights of an adapter that is not merged ({some(found)}). Merge "
            "it with PEFT's merge_and_unload, save the result, and name that directory."
        )


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names, each once; UserError if one is missing."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in Path(n).parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{index} is damaged: it names no files of weights ({first_line(error)}). Fetch the "
            "model again."
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or outside or not names:
        raise UserError(
            f"{index} names {len(names)} files of weights, and {len(missing) or len(outside)} of "
            f"them are missing: {some(missing or outside)}. Fetch the model again."
        )
    return [index.parent / name for name in names]


def refuse_shard(file: Path) -> None:
    if match := SHARD.search(file.name):
        raise UserError(
            f"model file {file.name!r} is part {int(match[1])} of {int(match[2])}, not a whole "
            "model. Join the parts first (llama.cpp: llama-gguf-split --merge), or name a "
            "directory of safetensors."
        )


def stored(files: Sequence[Path]) -> dict[str, Stored]:
    """Return name → shape, dtype and file of every tensor in safetensors; only headers are read.

    UserError if a file is damaged or truncated, or if two files hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    for file in files:
        for name, one in _header(file).items():
            if name in found:
                raise UserError(
                    f"tensor {name!r} is in {found[name].file.name!r} and in {file.name!r} of "
                    f"{str(file.parent)!r}: keep one of them."
                )
            found[name] = Stored(tuple(one["shape"]), one["dtype"], file)
    return found


def _header(file: Path) -> dict[str, Any]:
    """Return name → shape, dtype and offsets of each tensor (format: huggingface/safetensors)."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            (length,) = struct.unpack("<Q", start)
            if LFS_POINTER.startswith(start):
                raise UserError(
                    f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` there, or "
                    "fetch the model again."
                )
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        size = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
        whole = all("dtype" in one and "shape" in one for one in header.values())
        there = file.stat().st_size
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything above
        raise UserError(
            f"{file} is damaged: its header cannot be read ({first_line(error)}). Fetch the model "
            "again."
        ) from error
    if size != there or not whole:
        raise UserError(
            f"{file} is damaged: it has {there:,} bytes, its header says {size:,}. "
            "Fetch the model again."
        )
    return header


def some(names: Iterable[Any], limit: int = 3) -> str:
    """Return the first names, quoted, and the number of the others."""
    listed = [repr(str(name)) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def quantization(folder: Path) -> dict[str, Any] | None:
    """Return the settings with which a directory was quantized; None if it was not."""
    found = settings(folder / "config.json").get("quantization_config")
    separate = folder / "quantize_config.json"  # AutoGPTQ's
    if not found and separate.is_file():
        found = settings(separate)
    return found or None


def settings(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged: {first_line(error)}. Fetch the model again."
        ) from error
    if not isinstance(found, dict):
        raise UserError(
            f"{file} holds {str(found)[:40]!r} instead of settings. Fetch the model again."
        )
    return found


def model_type(folder: Path) -> str:
    """Return what a directory's configuration calls its architecture."""
    return str(settings(folder / "config.json").get("model_type"))


def is_quantized(folder: Path) -> bool:
    return quantization(folder) is not None


def packed(folder: Path) -> dict[str, Any] | None:
    """Return how a GPTQ checkpoint, or one of AWQ's GEMM layout, is packed; None of any other.

    The settings are those of `gptq.dequantize`. Only `checkpoint_format` says GPTQ's version:
    optimum 2.3 writes v1 and `format: gptq_v2`.
    """
    found = quantization(folder) or {}
    method, form = found.get("quant_method", "gptq"), found.get("checkpoint_format", "gptq")
    if method == "awq":
        layout = str(found.get("version") or found.get("format") or "gemm").lower()
        known = (layout, found.get("bits"), found.get("zero_point")) == ("gemm", 4, True)
        return {"bits": 4, "v1": False, "awq": True} if known else None
    known = method in ("gptq", "gptqmodel") and form in ("gptq", "gptq_v2")
    bits = found.get("bits")
    return {"bits": bits, "v1": form == "gptq"} if known and bits in (2, 3, 4, 8) else None


def packed_settings(folder: Path) -> dict[str, Any]:
    """Return `packed`; ValueError where that is None."""
    found = packed(folder)
    if found is None:
        said = quantization(folder) or {}
        names = ("quant_method", "checkpoint_format", "version", "bits", "zero_point")
        about = ", ".join(f"{name}={said[name]!r}" for name in names if name in said)
        raise ValueError(
            f"it is quantized with {about or said}: neither GPTQ of 2, 3, 4 or 8 bits nor AWQ of 4 "
            "bits (gemm)"
        )
    return found


PACKED = ("qweight", "qzeros", "scales", "g_idx")
"""The tensors of a GPTQ checkpoint that replace a layer's weight."""
NEEDED = PACKED[:-1]
"""Without `g_idx` the groups are in order."""
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Fused layers of transformers (Phi-3, GLM) and the parts, outputs after outputs, that GPTQModel
7.6 stores instead of them."""


@dataclass(frozen=True)
class Packing:
    """The packed layers of a weight, each as its tensors' names begin (`lm_head.`).

    `turned`: the weight is [inputs, outputs], as in GPT-2's `Conv1D`.
    """

    layers: tuple[str, ...]
    turned: bool

    def joined(self, parts: Sequence[Any]) -> Any:
        """Return the weight that dequantized layers [inputs, outputs] make."""
        import torch

        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
        return (whole if self.turned else whole.T).contiguous()


def packings(model: Any, names: Collection[str]) -> dict[str, Packing]:
    """Return weight → its packed layers, for the tensors `names` in a GPTQ checkpoint of `model`.

    Names are the checkpoint's, which may omit the prefix of the model's decoder.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())

    def module(layer: str) -> Any:
        name = layer.removesuffix(".")
        return modules.get(name) or modules.get(f"{model.base_model_prefix}.{name}")

    there = {name.removesuffix("qweight") for name in names if name.endswith(".qweight")}
    found = {}
    for layer in sorted(there):
        whole = fused_of(layer)
        apart = bool(whole) and module(whole) is not None and there.issuperset(parts_of(whole))
        name, layers = (whole, parts_of(whole)) if apart else (layer, (layer,))
        found[f"{name}weight"] = Packing(layers, isinstance(module(name), Conv1D))
    return found


def parts_of(layer: str) -> tuple[str, ...]:
    """Return the parts in which GPTQModel stores a layer; none of one that it stores whole."""
    stem, _, last = layer.removesuffix(".").rpartition(".")
    return tuple(f"{stem}.{part}." for part in FUSED.get(last, ()))


def fused_of(layer: str) -> str:
    """Return the layer that one may be a part of; '' if of none."""
    stem, _, last = layer.removesuffix(".").rpartition(".")
    return next((f"{stem}.{fused}." for fused, parts in FUSED.items() if last in parts), "")
