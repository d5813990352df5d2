"""Tensors that are not those of their model: each kind refused in a sentence, before any work."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from colazero.errors import UserError

log = logging.getLogger(__name__)

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that weights may have."""
EXPERT = re.compile(r"(?P<block>.*\bexperts\.)(?P<number>\d+)(?P<part>\..*)")
"""A tensor of one expert of a block."""


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


def refuse_gaps(folder: Path, names: Iterable[str]) -> None:
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


def refuse_twins(folder: Path, names: Iterable[str], prefix: str) -> None:
    """Raise UserError if a tensor is there twice, with and without the decoder's name before it."""
    there = set(names)
    if twins := sorted(n for n in there if f"{prefix}.{n}" in there):
        raise UserError(
            f"{folder} holds {twins[0]!r} and {prefix + '.' + twins[0]!r}: which one is meant is "
            "not said. Leave one of them in its files."
        )


def refuse_no_numbers(folder: Path, kinds: Mapping[str, str]) -> None:
    """Raise UserError if a weight is of a type that no layer computes with as it is."""
    odd = {n: k for n, k in kinds.items() if k not in FLOATS and n.endswith((".weight", ".bias"))}
    for name, kind in odd.items():
        raise UserError(
            f"{folder}: weight {name!r} is stored as {kind}; weights are {', '.join(FLOATS)}. "
            "Fetch the unquantized model."
        )


def _some(names: Any, limit: int = 3) -> str:
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(map(repr, listed[:limit])) + more
