"""A checkpoint's weights written as they come, so that memory never holds all of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

OS_ERROR = re.compile(r"\(os error (\d+)\)")

SHARD_BYTES = 2**28
"""Tensors are kept until they are so many bytes, then written to a file of their own."""


class Shards:
    """Safetensors files in a directory, named and indexed as Hugging Face's loaders expect it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, Any] = {}
        self._bytes = 0
        self._files: list[tuple[Path, list[str]]] = []
        self._total = 0

    def add(self, tensors: dict[str, Any]) -> None:
        """Take tensors by name, and write a file if there are enough."""
        self._waiting |= {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        self._bytes = sum(tensor.nbytes for tensor in self._waiting.values())
        if self._bytes >= SHARD_BYTES:
            self._write()

    def close(self) -> None:
        """Write what is left, give the files their names and write the index of several."""
        self._write()
        count = len(self._files)
        if count == 1:
            self._files[0][0].rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (file, names) in enumerate(self._files, 1):
            final = f"model-{number:05}-of-{count:05}.safetensors"
            file.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _write(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if not self._waiting:
            return
        file = self._folder / f"part-{len(self._files)}.safetensors"
        try:
            save_file(self._waiting, file, metadata={"format": "pt"})
        except SafetensorError as error:  # what the file system said is in its words alone
            if code := OS_ERROR.search(str(error)):
                number = int(code[1])
                raise OSError(number, os.strerror(number), str(file)) from error
            raise
        self._files.append((file, list(self._waiting)))
        self._total += self._bytes
        self._waiting, self._bytes = {}, 0
