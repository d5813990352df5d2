"""Types of parameters' values: how the text of a command line becomes a value, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

NO_OPTIONS = "none"
"""The value of `chat_template_kwargs` without any."""


def _items(value: object) -> Sequence[Any]:
    """Split `a,b` into its items; any other single value is a list of one.

    A comma inside the path of a file or folder that is there is part of the path.
    """
    if not isinstance(value, str):
        return value if isinstance(value, list | tuple) else [value]
    parts = value.split(",") if value.strip() else []
    items = []
    while parts:
        joined = (",".join(parts[:count]).strip() for count in range(len(parts), 1, -1))
        item = next((path for path in joined if _is_path(path)), parts[0].strip())
        if item.startswith("mix:"):
            item = ",".join(parts[: _mixed(parts)]).strip()
        del parts[: item.count(",") + 1]
        items.append(item)
    return items


def _mixed(parts: Sequence[str]) -> int:
    """Return how many parts a mix of corpora takes: until its shares add up to 1, or all there are.

    A part without a share is the beginning of a path with a comma in it.
    """
    total, last = 0.0, 0
    for count, part in enumerate(parts, start=1):
        if share := re.search(r"=([0-9]*\.?[0-9]+)$", part.strip()):
            total, last = total + float(share[1]), count
        if total > 1 - 1e-6:
            break
    return last or 1


def _is_path(item: str) -> bool:
    """Return whether a file or folder is there, named with or without `:SPLIT` and `:FIELD`."""
    path, named = re.sub(r"^(file|hf):", "", item), ""
    while path and "," not in named:
        try:
            if Path(path).expanduser().exists():
                return True
        except (OSError, ValueError, RuntimeError):  # too long, or nobody's home
            return False
        path, _, named = path.rpartition(":")
    return False


def _seeds(value: object) -> object:
    """Expand `42,43` and `42-46` into integers."""
    seeds: list[object] = []
    for item in _items(value):
        if isinstance(item, str) and (span := re.fullmatch(r"(\d+)-(\d+)", item)):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise ValueError(f"the range {item!r} runs backwards")
            if last - first >= 10_000:
                raise ValueError(f"the range {item!r} holds more than 10,000 seeds")
            seeds.extend(range(first, last + 1))
        elif isinstance(item, str) and not re.fullmatch(r"\d+", item):
            raise ValueError(f"{item!r} is not a whole number of at least 0, or a range like 42-46")
        else:
            seeds.append(item)
    return seeds


def _some(value: object) -> object:
    """Split as `_items`, and leave `none` out."""
    return [item for item in _items(value) if item != "none"]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or any(v == "" for v in values):
        raise ValueError("the list is empty or has an empty item")
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}. Name each once")
    return values


def _digits(value: object) -> object:
    """Let a command line's `4` match a literal 4."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d+", value) else value


def _json_object(value: object) -> object:
    """Write a JSON object in one way, so that equal ones have one key; `none` stands for `{}`."""
    if isinstance(value, str) and value != NO_OPTIONS:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"must be a JSON object: {error}") from None
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True) if value else NO_OPTIONS
    if value != NO_OPTIONS:
        raise ValueError('must be a JSON object, such as {"enable_thinking": false}, or none')
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        near = "; a GPU is called cuda" if value.lower() in ("gpu", "nvidia") else ""
        raise ValueError(f"must be auto, cpu, cuda or cuda:N{near}")
    return value


def _one_seed(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d+\s*[-,].*", value):
        raise ValueError("must be one whole number; the entry point suite takes seeds=42-46")
    return value


Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], BeforeValidator(_items), AfterValidator(_distinct)]
Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_one_seed)]
Name = Annotated[str, Field(min_length=1)]
Names = Several[str]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds), AfterValidator(_distinct)]
Controls = Annotated[tuple[Literal["rtn"], ...], BeforeValidator(_some)]
Looks = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_some)]
Bits = Annotated[Literal[2, 3, 4, 8], BeforeValidator(_digits)]
Chat = Literal["auto", "template", "plain"]
Options = Annotated[str, BeforeValidator(_json_object)]
WholeRow = Annotated[Literal[-1], BeforeValidator(_digits)]
GroupSize = Literal["auto"] | WholeRow | Annotated[int, Field(ge=16)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=16)]
Weight = Literal["attention"] | Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Device = Annotated[str, AfterValidator(_device)]
