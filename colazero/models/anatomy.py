"""What a model directory is made of, told by its configuration and the heads of its files alone.

The directory's tensors are loaded as shapes without numbers (torch's `meta` device) by transformers
itself, so that its own rules for renamed, fused and tied weights hold. Whatever would be filled
with random numbers, or left out, is refused here, before any work.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import kept_json
from colazero.digests import of_facts, of_file
from colazero.errors import UserError, first_line
from colazero.models.files import Stored, stored, weight_files
from colazero.models.packed import NEEDED, PACKED, packings
from colazero.models.settings import gptq_bits, is_quantized

log = logging.getLogger(__name__)

POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    *("seq_length", "n_ctx", "max_target_positions"),
)
"""What configurations call the longest input, the most usual first; one may have several."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that weights may have."""
EXPERT = re.compile(r"(?P<block>.*\bexperts\.)(?P<number>\d+)(?P<part>\..*)")
"""A tensor of one expert of a block."""


@dataclass(frozen=True)
class Layer:
    """A matrix in a block that a quantizer may find: the `inputs` of each of its `outputs`.

    `kind`: `linear`; `conv1d`, whose weight lies the other way round; `experts`, of which the
    file or transformers has several in one tensor.
    """

    name: str
    kind: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Anatomy:
    """`positions`: the longest input, None where there is no limit. `rows`: ids with an embedding.

    `layers`: the matrices in blocks. `unused`: tensors that the model has no place for.
    """

    positions: int | None
    rows: int
    layers: tuple[Layer, ...]
    unused: tuple[str, ...]


def anatomy(folder: Path) -> Anatomy:
    """Examine a model directory; what is found is kept on disk by its configuration and its heads.

    UserError if transformers does not know the architecture, if a file is missing or damaged, or
    if the tensors are not those of the model.
    """
    heads = stored(weight_files(folder))
    settings = [f for f in (folder / "config.json", folder / "quantize_config.json") if f.is_file()]
    shapes = sorted((name, one.dtype, *one.shape) for name, one in heads.items())
    text = [of_file(file) for file in settings]
    key = of_facts(*text, json.dumps(shapes), version("transformers"), of_file(Path(__file__)))
    found = kept_json(f"anatomy/{key}.json", lambda: asdict(_examined(folder, heads)))
    layers = tuple(Layer(**layer) for layer in found["layers"])
    return Anatomy(found["positions"], found["rows"], layers, tuple(found["unused"]))


def causal_class(folder: Path) -> tuple[Any, Any]:
    """Return the class of a directory's model and the configuration to make it from.

    UserError if transformers has no causal language model of this architecture.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except Exception as error:  # a foreign configuration can provoke anything
        what = "" if isinstance(error, KeyError) else f": {first_line(error)}"
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        raise UserError(
            f"{folder} (model_type {kind!r}) is no causal language model that transformers "
            f"{version('transformers')} knows{what}"
        ) from error
    if isinstance(found, list | tuple):
        named = {one.__name__: one for one in found}
        found = next((named[n] for n in config.architectures or () if n in named), found[0])
    text = config.get_text_config(decoder=True)
    # Some classes take the part of a configuration that is about text, as AutoModel does.
    return found, text if isinstance(text, found.config_class) else config


def _examined(folder: Path, heads: Mapping[str, Stored]) -> Anatomy:
    import torch

    model_class, config = causal_class(folder)
    _refuse_gaps(folder, heads)
    quantized = is_quantized(folder)
    _refuse_twins(folder, heads, model_class.base_model_prefix)
    config.__dict__.pop("quantization_config", None)
    shapes = {name: (one.shape, one.dtype) for name, one in heads.items()}
    bits = gptq_bits(folder) if quantized else None
    info: dict[str, Any] = {}
    try:
        if quantized:
            with torch.device("meta"):
                model = model_class(config)
        if bits:
            shapes = _unpacked(str(folder), model, shapes, bits)
        if bits or not quantized:  # else another library's format: its own loader has to know
            model, info = _fitted(model_class, config, shapes)
    except UserError:
        raise
    except Exception as error:  # a foreign configuration can provoke anything
        raise UserError(
            f"{folder} is no model that transformers can build from its config.json: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    refuse_misfit(str(folder), model, info, extra=not quantized)
    unused = sorted(info.get("unexpected_keys", ()))
    used = {name: shape for name, (shape, _) in shapes.items() if name not in set(unused)}
    if not quantized:
        _refuse_no_numbers(folder, {name: heads[name].dtype for name in used})
    layers = (_layer(model, name, shape) for name, shape in used.items())
    return Anatomy(
        _positions(config),
        int(model.get_input_embeddings().weight.shape[0]),
        tuple(layer for layer in layers if layer),
        tuple(unused),
    )


def _refuse_twins(folder: Path, names: Iterable[str], prefix: str) -> None:
    """Raise UserError if a tensor is there twice, with and without the decoder's name before it."""
    there = set(names)
    if twins := sorted(n for n in there if f"{prefix}.{n}" in there):
        raise UserError(
            f"{folder} holds {twins[0]!r} and {prefix + '.' + twins[0]!r}: which one is meant is "
            "not said. Leave one of them in its files."
        )


def _refuse_no_numbers(folder: Path, kinds: Mapping[str, str]) -> None:
    """Raise UserError if a weight is of a type that no layer computes with as it is."""
    odd = {n: k for n, k in kinds.items() if k not in FLOATS and n.endswith((".weight", ".bias"))}
    for name, kind in odd.items():
        raise UserError(
            f"{folder}: weight {name!r} is stored as {kind}; weights are {', '.join(FLOATS)}. "
            "Fetch the unquantized model."
        )


def _refuse_gaps(folder: Path, names: Iterable[str]) -> None:
    """Raise UserError if an expert lacks a tensor that another has: they become one tensor."""
    experts = [match for name in names if (match := EXPERT.fullmatch(name))]
    numbers: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for match in experts:
        numbers.setdefault(match["block"], set()).add(match["number"])
        parts.setdefault(match["block"], set()).add(match["part"])
    there = {match[0] for match in experts}
    whole = {f"{b}{n}{p}" for b in numbers for n in numbers[b] for p in parts[b]}
    if missing := sorted(whole - there):
        refuse_misfit(str(folder), None, {"missing_keys": missing})


def _fitted(model_class: Any, config: Any, shapes: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let transformers load tensors that have shapes only; return model and what did not fit."""
    import torch
    from transformers.utils import logging as noise

    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    tensors = {
        name: torch.empty(shape, dtype=kinds.get(kind, torch.bfloat16), device="meta")
        for name, (shape, kind) in shapes.items()
    }
    level, bar = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity(noise.CRITICAL)  # it prints a table of what is refused here in a sentence
    noise.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.bfloat16,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        noise.set_verbosity(level)
        if bar:
            noise.enable_progress_bar()
    return model, dict(info)


def refuse_misfit(source: str, model: Any, info: Mapping[str, Any], extra: bool = True) -> None:
    """Raise UserError if a model's weights are not its tensors, by transformers' own account.

    What is missing would be random, what has another shape too. With `extra`, so is a tensor
    refused that belongs to a layer of the model or to a further block, and would be left out: a
    bias, say, that the configuration does not know. Others are only told.
    """
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise UserError(
            f"{source} is no whole model: {len(missing)} of its weights are not there, "
            f"{_some(missing)}. Fetch the model again, or mend its config.json."
        )
    wrong = sorted(str(name) for name, *_ in info.get("mismatched_keys", ()))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not have the shapes that its config.json says, "
            f"{_some(wrong)}. Its weights and its config.json are of two models."
        )
    if info.get("conversion_errors"):
        raise UserError(
            f"{source}: transformers cannot convert {_some(info['conversion_errors'])}."
        )
    unknown = sorted(info.get("unexpected_keys", ()))
    lost = [name for name in unknown if extra and _belongs(model, name)]
    if lost:
        raise UserError(
            f"{source} has {len(lost)} weights that its config.json leaves no place for, "
            f"{_some(lost)}: computed without them it would be another model. Its weights and its "
            "config.json are of two models."
        )
    if unknown and extra:
        log.warning("%s: %d tensors are not used, %s.", source, len(unknown), _some(unknown))


def _belongs(model: Any, name: str) -> bool:
    """Tell whether a tensor would be part of a layer with weights, or of a block too many."""
    modules = dict(model.named_modules())
    layer = modules.get(name.rpartition(".")[0])
    if layer is not None:
        return any(True for _ in layer.parameters(recurse=False))
    parts = name.split(".")
    for at, part in enumerate(parts):
        blocks = modules.get(".".join(parts[:at]))
        if part.isdigit() and blocks is not None:
            return part not in dict(blocks.named_children())
    return False


def _unpacked(source: str, model: Any, shapes: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """Return the shapes that a GPTQ checkpoint's packed tensors have as weights of the model.

    UserError if one of them is missing.
    """
    packed = packings(model, shapes)
    needed = [layer + part for one in packed.values() for layer in one.layers for part in NEEDED]
    refuse_misfit(source, model, {"missing_keys": [n for n in needed if n not in shapes]})
    inside = {layer + part for one in packed.values() for layer in one.layers for part in PACKED}
    dense = {name: one for name, one in shapes.items() if name not in inside}
    for name, packing in packed.items():
        words, _ = shapes[packing.layers[0] + "qweight"][0]
        outputs = sum(shapes[layer + "qweight"][0][1] for layer in packing.layers)
        order = shapes.get(packing.layers[0] + "g_idx")  # layers may have other bits than the whole
        inputs = order[0][0] if order else words * 32 // bits
        dense[name] = ((inputs, outputs) if packing.turned else (outputs, inputs), "BF16")
    return dense


def _layer(model: Any, name: str, shape: tuple[int, ...]) -> Layer | None:
    """Return the matrix that a tensor is, None for one that is none or stands in no block."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if len(shape) not in (2, 3) or not any(part.isdigit() for part in name.split(".")):
        return None
    module = dict(model.named_modules()).get(name.rpartition(".")[0])
    if isinstance(module, Conv1D):
        return Layer(name, "conv1d", shape[0], shape[1])
    if isinstance(module, torch.nn.Linear):
        return Layer(name, "linear", shape[1], shape[0])
    # Several matrices in one tensor are experts, whatever they are called (GraniteMoE); a
    # convolution's kernel is none.
    stacked = len(shape) == 3 and min(shape) > 1 and name.endswith(".weight")
    stacked = stacked and not isinstance(module, torch.nn.Conv1d)
    named = re.search(r"\bexperts?\b", name) and "bias" not in name.rpartition(".")[2]
    if not named and not stacked:
        return None
    turned = len(shape) == 3 and getattr(module, "is_transposed", False)
    inputs, outputs = (shape[-2], shape[-1]) if turned else (shape[-1], shape[-2])
    return Layer(name, "experts", inputs, outputs)


def _positions(config: Any) -> int | None:
    """Return the longest input; `config` also answers to the names of its `attribute_map`."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in POSITIONS)
    return next((int(n) for n in found if isinstance(n, int) and n > 0), None)


def _some(names: Any, limit: int = 3) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(map(repr, listed[:limit])) + more
