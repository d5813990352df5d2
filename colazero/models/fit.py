"""Whether a model directory is the model that its configuration describes, and what it takes.

transformers itself loads the directory's tensors as shapes without numbers (torch's `meta` device),
so that its rules for renamed, fused and tied weights hold. Whatever it would fill with random
numbers or leave out is refused here, before any work.
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

from colazero.cache import facts_digest, file_digest, kept_json, own_code
from colazero.errors import UserError, first_line
from colazero.models import files
from colazero.models.files import NEEDED, PACKED, Stored, some, stored, weight_files
from colazero.types import Model

log = logging.getLogger(__name__)

POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    *("seq_length", "n_ctx", "max_target_positions"),
)
"""Names of the longest input in configurations, the most usual first; one may have several."""
PREDICTING = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
"""Names of the number of further blocks that predict later tokens; transformers has no place for
them. DeepSeek-V3 and GLM-4.5 number them after the decoder's blocks."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that weights may have."""
EXPERT = re.compile(r"(?P<block>.*\bexperts\.)(?P<number>\d+)(?P<part>\..*)")
"""A tensor of one expert of a block."""
MAPPED = 2**28
"""Bytes of weights after which their file is mapped again."""


@dataclass(frozen=True)
class Layer:
    """A matrix in a decoder block, by its name in the files: `inputs` for each of `outputs`.

    `kind`: `linear`; `conv1d`, stored the other way round; `experts`, of which the files or
    transformers have several in one tensor. `module` is the name of its module in the model.
    """

    name: str
    kind: str
    inputs: int
    outputs: int
    module: str = ""


@dataclass(frozen=True)
class Anatomy:
    """`positions`: the longest input, None if unlimited. `rows`: token ids with an embedding.

    `layers`: the matrices in the decoder's blocks. `unused`: tensors without a place in the model.
    """

    positions: int | None
    rows: int
    layers: tuple[Layer, ...]
    unused: tuple[str, ...]


def examine(folder: Path) -> Anatomy:
    """Examine a model directory, and keep the result on disk by its configuration and headers.

    UserError if transformers does not know the architecture, if a file is missing or damaged, or
    if the tensors are not those of the model.
    """
    heads = stored(weight_files(folder))
    files.refuse_unmerged(folder, heads)
    both = [f for f in (folder / "config.json", folder / "quantize_config.json") if f.is_file()]
    shapes = sorted((name, one.dtype, *one.shape) for name, one in heads.items())
    key = facts_digest(
        *map(file_digest, both), json.dumps(shapes), version("transformers"), own_code(__name__)
    )
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
        raise UserError(
            f"{folder} (model_type {files.model_type(folder)!r}) is not a causal language model "
            f"that transformers {version('transformers')} knows{what}"
        ) from error
    if isinstance(found, list | tuple):
        named = {one.__name__: one for one in found}
        found = next((named[n] for n in config.architectures or () if n in named), found[0])
    if config.is_encoder_decoder:
        raise UserError(
            f"{folder} (model_type {config.model_type!r}) is an encoder-decoder model. Name a "
            "decoder-only language model."
        )
    text = config.get_text_config(decoder=True)
    # Some classes take the part of a configuration that is about text, as AutoModel does.
    return found, text if isinstance(text, found.config_class) else config


def _examined(folder: Path, heads: Mapping[str, Stored]) -> Anatomy:
    import torch

    model_class, config = causal_class(folder)
    _refuse_gaps(folder, heads)
    quantized = files.is_quantized(folder)
    _refuse_twins(folder, heads, model_class.base_model_prefix)
    config.__dict__.pop("quantization_config", None)
    shapes = {name: (one.shape, one.dtype) for name, one in heads.items()}
    packed = files.packed(folder)
    info: dict[str, Any] = {}
    try:
        if quantized:
            with torch.device("meta"):
                model = model_class(config)
        if packed:
            shapes = _unpacked(folder, model, shapes, packed)
        if packed or not quantized:  # the loader of another format checks its tensors itself
            model, info = _fitted(model_class, config, shapes)
    except UserError:
        raise
    except Exception as error:  # a foreign configuration can provoke anything
        raise UserError(
            f"{folder}: transformers cannot build a model from its config.json: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    refuse_misfit(str(folder), model, info, extra=not quantized)
    unused = sorted(info.get("unexpected_keys", ()))
    used = {name: shape for name, (shape, _) in shapes.items() if name not in set(unused)}
    if not quantized:
        _refuse_no_numbers(folder, {name: heads[name].dtype for name in used})
    text = config.get_text_config(decoder=True)
    positions = (getattr(text, name, None) for name in POSITIONS)  # also through `attribute_map`
    return Anatomy(
        next((int(n) for n in positions if isinstance(n, int) and n > 0), None),
        int(model.get_input_embeddings().weight.shape[0]),
        tuple(_layers(model, used)),
        tuple(unused),
    )


def _fitted(model_class: Any, config: Any, shapes: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let transformers load tensors without numbers; return the model and its loading report."""
    import torch
    from transformers.utils import logging as noise

    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    tensors = {
        name: torch.empty(shape, dtype=kinds.get(kind, torch.bfloat16), device="meta")
        for name, (shape, kind) in shapes.items()
    }
    level, bar = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity(noise.CRITICAL)  # the table that it prints is one sentence here
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


def _unpacked(
    folder: Path, model: Any, shapes: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the shapes of a packed checkpoint's weights, as the model has them.

    UserError if one of the packed tensors is missing.
    """
    packed = files.packings(model, shapes)
    needed = [layer + part for one in packed.values() for layer in one.layers for part in NEEDED]
    refuse_misfit(str(folder), model, {"missing_keys": [n for n in needed if n not in shapes]})
    inside = {layer + part for one in packed.values() for layer in one.layers for part in PACKED}
    dense = {name: one for name, one in shapes.items() if name not in inside}
    for name, packing in packed.items():
        words, _ = shapes[packing.layers[0] + "qweight"][0]
        outputs = sum(shapes[layer + "qweight"][0][1] for layer in packing.layers)
        order = shapes.get(packing.layers[0] + "g_idx")  # a layer may have bits of its own
        inputs = order[0][0] if order else words * 32 // settings["bits"]
        if settings.get("awq"):  # words along the outputs
            inputs, outputs = words, outputs * 32 // settings["bits"]
        dense[name] = ((inputs, outputs) if packing.turned else (outputs, inputs), "BF16")
    return dense


def _layers(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Layer]:
    """Yield the matrices in the decoder's blocks, of stored tensors.

    Files and modules may name a layer differently, so names go through transformers' own mapping.
    Vision and audio towers have blocks too, which no quantizer touches.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings
    from transformers.pytorch_utils import Conv1D

    rules = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
    modules, blocks = dict(model.named_modules()), decoder_blocks(model)
    for stored_name, shape in shapes.items():
        name = apply_renamings(stored_name, rules)
        if not name.startswith(f"{blocks}."):  # files may omit the prefix of the decoder
            name = f"{model.base_model_prefix}.{name}"
        if not name.startswith(f"{blocks}.") or len(shape) not in (2, 3):
            continue
        owner, _, last = name.rpartition(".")
        module = modules.get(owner)
        if isinstance(module, Conv1D):
            yield Layer(stored_name, "conv1d", shape[0], shape[1], owner)
        elif isinstance(module, torch.nn.Linear):
            yield Layer(stored_name, "linear", shape[1], shape[0], owner)
        else:
            # Several matrices in one tensor are experts, whatever they are called (GraniteMoE); a
            # convolution's kernel is not.
            weight = stored_name.endswith(".weight") and not isinstance(module, torch.nn.Conv1d)
            stacked = len(shape) == 3 and min(shape) > 1 and weight
            named = re.search(r"\bexperts?\b", f"{name} {stored_name}") and "bias" not in last
            if stacked or named:
                turned = len(shape) == 3 and getattr(module, "is_transposed", False)
                inputs, outputs = (shape[-2], shape[-1]) if turned else (shape[-1], shape[-2])
                yield Layer(stored_name, "experts", inputs, outputs, owner)


def decoder_blocks(model: Any) -> str:
    """Return the name of the model's list of decoder blocks; '' if it has no list of modules.

    It is the list, inside no other list, that holds most of the model's parameters.
    """
    import torch

    found: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) and not inside:
            found[name] = sum(parameter.numel() for parameter in module.parameters())
    return max(found, key=lambda name: found[name], default="")


def refuse_misfit(source: str, model: Any, info: Mapping[str, Any], extra: bool = True) -> None:
    """Raise UserError if a model's weights are not its tensors, by transformers' loading report.

    Missing weights and weights of another shape would be random. With `extra`, a tensor is refused
    too that transformers would leave out although it belongs to a layer of the model or to a
    further block, such as an undeclared bias. Other unused tensors are logged.
    """
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise UserError(
            f"{source} is not a whole model: {len(missing)} of its weights are missing, "
            f"{some(missing)}. Fetch the model again, or correct its config.json."
        )
    wrong = sorted(str(name) for name, *_ in info.get("mismatched_keys", ()))
    if wrong:
        raise UserError(
            f"{source}: {len(wrong)} weights do not have the shapes that its config.json says, "
            f"{some(wrong)}. Its weights and its config.json belong to two models."
        )
    if info.get("conversion_errors"):
        raise UserError(f"{source}: transformers cannot convert {some(info['conversion_errors'])}.")
    unknown = sorted(info.get("unexpected_keys", ()))
    lost = [name for name in unknown if extra and _belongs(model, name)]
    if lost:
        raise UserError(
            f"{source} has {len(lost)} weights without a place in its config.json, {some(lost)}: "
            "without them it would be another model. Its weights and its config.json belong to two "
            "models."
        )
    if unknown and extra:
        log.warning("%s: %d tensors are not used, %s.", source, len(unknown), some(unknown))


def _belongs(model: Any, name: str) -> bool:
    """Return whether a tensor belongs to a layer with weights, or to a block that is missing.

    Blocks that the configuration declares for predicting further tokens are not missing.
    """
    modules = dict(model.named_modules())
    layer = modules.get(name.rpartition(".")[0])
    if layer is not None:
        return any(True for _ in layer.parameters(recurse=False))
    text = model.config.get_text_config(decoder=True)
    declared = max((getattr(text, one, None) or 0 for one in PREDICTING), default=0)
    parts = name.split(".")
    for at, part in enumerate(parts):
        blocks = modules.get(".".join(parts[:at]))
        if part.isdigit() and blocks is not None:
            there = dict(blocks.named_children())
            predicting = 0 <= int(part) - len(there) < declared
            return part not in there and not predicting
    return False


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


def _refuse_twins(folder: Path, names: Iterable[str], prefix: str) -> None:
    """Raise UserError if a tensor is there twice, with and without the decoder's prefix."""
    there = set(names)
    if twins := sorted(n for n in there if f"{prefix}.{n}" in there):
        raise UserError(
            f"{folder} holds {twins[0]!r} and {prefix + '.' + twins[0]!r}, which are the same "
            "weight. Leave one of them in its files."
        )


def _refuse_no_numbers(folder: Path, kinds: Mapping[str, str]) -> None:
    """Raise UserError if a weight is of a type that no layer computes with as it is."""
    odd = {n: k for n, k in kinds.items() if k not in FLOATS and n.endswith((".weight", ".bias"))}
    for name, kind in odd.items():
        raise UserError(
            f"{folder}: weight {name!r} is stored as {kind}; weights are {', '.join(FLOATS)}. "
            "Fetch the unquantized model."
        )


def refuse_long_windows(model: Model, seq_len: int) -> None:
    """Raise UserError if windows of `seq_len` tokens are longer than the model's positions.

    Beyond them GPT-2 and OPT have no embedding; other libraries cut such windows silently.
    """
    limit = examine(model.path).positions
    if limit and seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is more than model {model.name!r} takes: at most {limit}. Give "
            f"seq_len={limit} or less."
        )


def refuse_unknown_ids(model: Model, largest: int, what: str) -> None:
    """Raise UserError if `largest`, the largest token id in `what`, has no embedding."""
    rows = examine(model.path).rows
    if largest >= rows:
        raise UserError(
            f"{what} holds the token id {largest}, and model {model.name!r} has embeddings for "
            f"0 to {rows - 1} only: its tokenizer is larger than the model. Take the tokenizer "
            "that belongs to it, or resize the embedding (resize_token_embeddings) and save it."
        )


def refuse_quantized(model: Model) -> None:
    if files.is_quantized(model.path):
        raise UserError(f"model {model.name!r} is quantized already: name the original.")


def refuse_not_finite(model: Model) -> None:
    """Raise UserError if a weight of the model is infinite or NaN.

    Each weight is read once; the result is kept by the model's revision.
    """
    name = f"finite/{facts_digest(model.revision, str(model.path))}.json"
    bad = kept_json(name, lambda: _not_finite(model.path))
    if bad:
        raise UserError(
            f"model {model.name!r} has {len(bad)} weights with infinite or NaN values, {bad[0]!r} "
            "among them: its perplexity would be NaN. Take an undamaged copy."
        )


def _not_finite(folder: Path) -> list[str]:
    import torch
    from safetensors import safe_open

    unused = set(examine(folder).unused)
    bad = []
    for file in weight_files(folder):
        reader: Any = None
        read = 0
        for name in stored([file]):
            # Every page once read counts as this process's memory until its file is unmapped.
            if reader is None or read > MAPPED:
                reader, read = safe_open(file, framework="pt"), 0
            tensor = reader.get_tensor(name)
            read += tensor.nbytes
            if name in unused or not tensor.is_floating_point() or not tensor.numel():
                continue
            if tensor.element_size() < 2:  # 8 bit floats have no aminmax
                tensor = tensor.to(torch.float32)
            # The least and the largest are NaN if any value is.
            if not all(torch.isfinite(value) for value in torch.aminmax(tensor)):
                bad.append(name)
    return bad
