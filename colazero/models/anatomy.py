"""What a model directory is made of, told by its configuration and the heads of its files alone.

The directory's tensors are loaded as shapes without numbers (torch's `meta` device) by transformers
itself, so that its own rules for renamed, fused and tied weights hold. Whatever would be filled
with random numbers, or left out, is refused here, before any work.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import facts_digest, file_digest, kept_json
from colazero.errors import UserError, first_line
from colazero.models import misfit
from colazero.models.files import Stored, stored, weight_files
from colazero.models.misfit import refuse_gaps, refuse_misfit, refuse_no_numbers, refuse_twins
from colazero.models.packed import NEEDED, PACKED, packings
from colazero.models.settings import gptq_bits, is_quantized

log = logging.getLogger(__name__)

POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
    *("seq_length", "n_ctx", "max_target_positions"),
)
"""What configurations call the longest input, the most usual first; one may have several."""


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
    text = [file_digest(file) for file in settings]
    key = facts_digest(
        *text,
        json.dumps(shapes),
        version("transformers"),
        file_digest(Path(__file__)),
        file_digest(Path(misfit.__file__)),
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
    refuse_gaps(folder, heads)
    quantized = is_quantized(folder)
    refuse_twins(folder, heads, model_class.base_model_prefix)
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
        refuse_no_numbers(folder, {name: heads[name].dtype for name in used})
    layers = (_layer(model, name, shape) for name, shape in used.items())
    return Anatomy(
        _positions(config),
        int(model.get_input_embeddings().weight.shape[0]),
        tuple(layer for layer in layers if layer),
        tuple(unused),
    )


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
