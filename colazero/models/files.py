"""Which files of a model directory hold its weights, and what their heads say: read one way by all.

A directory may hold more than one set of weights (Mistral's `consolidated.safetensors` beside the
shards, an adapter, an earlier download): what is not named below is no part of the model.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from colazero.errors import UserError, first_line

KINDS = (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))
"""Of each kind the one file that holds everything, and what others may be called; safest first."""
INDEX = "model.safetensors.index.json"
"""What says which files hold the parts of a model."""
SHARD = re.compile(r"-(\d{5})-of-(?!00001\.)(\d{5})(?=\.\w+$)")
"""What stands before the ending of a file that is a part of several: the one of one is whole."""
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `dtype` as safetensors writes it (`BF16`)."""

    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def count(self) -> int:
        """Return the number of its elements."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a directory's weights: all safetensors, or else all .bin.

    `model.safetensors`, else the files that `model.safetensors.index.json` names, else the one
    *.safetensors there is; without any, `pytorch_model.bin` in the same ways. UserError if there
    are none, if several could be meant, or if a part is not there.
    """
    for whole, others in KINDS:
        if (folder / whole).is_file():
            return [folder / whole]
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return _indexed(index)
        found = sorted(folder.glob(others))
        if gone := [file.name for file in found if not file.is_file()]:
            raise UserError(
                f"directory {str(folder)!r}: {gone[0]!r} is no file, or a link to one that is not "
                "there. Fetch the model again."
            )
        if len(found) == 1 and not SHARD.search(found[0].name):
            return found
        if found:
            raise UserError(
                f"directory {str(folder)!r} does not say which of its files are the model: "
                f"{_some([file.name for file in found])}. It needs {whole}, or {index.name} that "
                "names the parts: fetch the model again, or leave one file there."
            )
    raise UserError(f"directory {str(folder)!r} has no weights (*.safetensors or *.bin).")


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names, each once; UserError if one is not there."""
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
            f"them are not there: {_some(missing or outside)}. Fetch the model again."
        )
    return [index.parent / name for name in names]


def refuse_shard(file: Path) -> None:
    """Raise UserError for a file that holds one part of several and has no index beside it."""
    if match := SHARD.search(file.name):
        raise UserError(
            f"model file {file.name!r} is part {int(match[1])} of {int(match[2])}, no whole model. "
            "Join the parts first (llama.cpp: llama-gguf-split --merge), or name a directory of "
            "safetensors."
        )


def stored(files: Sequence[Path]) -> dict[str, Stored]:
    """Return name → shape, type and file of every tensor in safetensors, from their heads alone.

    UserError if a file is damaged or cut off, or if two hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    for file in files:
        for name, one in _header(file).items():
            if name in found:
                raise UserError(
                    f"tensor {name!r} is in {found[name].file.name!r} and in {file.name!r} of "
                    f"{str(file.parent)!r}: which one is meant is not said."
                )
            found[name] = Stored(tuple(one["shape"]), one["dtype"], file)
    return found


def _header(file: Path) -> dict[str, Any]:
    """Return name → shape, type and place of each tensor (format: huggingface/safetensors)."""
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            (length,) = struct.unpack("<Q", start)
            if LFS_POINTER.startswith(start):
                raise UserError(
                    f"{file} is no weights but what Git LFS left in their place: run `git lfs pull`"
                    " there, or fetch the model again."
                )
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        size = 8 + length + max((one["data_offsets"][1] for one in header.values()), default=0)
        whole = all("dtype" in one and "shape" in one for one in header.values())
        there = file.stat().st_size
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file can make of the lines above
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


def _some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first of many names, and how many there are more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
