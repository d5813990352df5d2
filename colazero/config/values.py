"""What stands on a command line → the values of parameters, and their types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field


def _items(value: object) -> object:
    """Split `a,b` into its items; what is already a list stays as it is.

    A comma inside the path of a file or folder that is there is part of the path.
    """
    if not isinstance(value, str):
        return value
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
    try:
        return Path(item.removeprefix("file:")).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or nobody's home
        return False


def _seeds(value: object) -> object:
    """Expand `42,43` and `42-46` into integers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    items = _items(value)
    if not isinstance(items, list):
        return items
    seeds: list[object] = []
    for item in items:
        if isinstance(item, str) and (span := re.fullmatch(r"(\d+)-(\d+)", item)):
            first, last = int(span[1]), int(span[2])
            if last < first:
                raise ValueError(f"the range {item!r} runs backwards")
            if last - first >= 10_000:
                raise ValueError(f"the range {item!r} holds more than 10,000 seeds")
            seeds.extend(range(first, last + 1))
        elif isinstance(item, str) and not re.fullmatch(r"\d+", item):
            raise ValueError(f"{item!r} is no non-negative integer and no range like 42-46")
        else:
            seeds.append(item)
    return seeds


def _some(value: object) -> object:
    """Split as `_items`, and leave `none` out."""
    items = _items(value)
    return [item for item in items if item != "none"] if isinstance(items, list | tuple) else items


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or any(v == "" for v in values):
        raise ValueError("the list is empty or has an empty item")
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    return values


def _digits(value: object) -> object:
    """Let a command line's `4` match a literal 4."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _values(value: object) -> object:
    """Split as `_items`; a single value is a list of one."""
    return _items(value) if isinstance(value, str | list | tuple) else [value]


Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], BeforeValidator(_values), AfterValidator(_distinct)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_items), AfterValidator(_distinct)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_seeds), AfterValidator(_distinct)]
Controls = Annotated[tuple[Literal["rtn"], ...], BeforeValidator(_some)]
Looks = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_some)]
Bits = Annotated[Literal[2, 3, 4, 8], BeforeValidator(_digits)]
WholeRow = Annotated[Literal[-1], BeforeValidator(lambda v: -1 if v == "-1" else v)]
GroupSize = Literal["auto"] | WholeRow | Annotated[int, Field(ge=16)]
Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=16)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")]
