"""Weights of one module at a time: read from a model's safetensors, written to a checkpoint's."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from colazero import devices
from colazero.errors import UserError
from colazero.models import is_quantized
from colazero.models.files import NEEDED, PACKED, packed_settings, packings, weight_files

log = logging.getLogger(__name__)

SHARD_BYTES = 2**28
"""Bytes of tensors after which a new shard is written."""


class Refused(UserError):
    """A model that cannot be run, or quantized, one block at a time. `why`: the reason."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the model cannot be run one block at a time: {why}.")


def eval_dtype(model_dir: Path, device: str) -> Any:
    """Return the torch dtype to compute in, the same for quantized and unquantized models.

    On CUDA it is the model's own half precision. Otherwise it is bfloat16, or float32 on CPUs
    without bfloat16 instructions, where bfloat16 is several times slower.
    """
    import torch
    from transformers import AutoConfig

    if devices.cpu_dtype(device) == "float32":
        return torch.float32
    own = AutoConfig.from_pretrained(model_dir).dtype
    if device == "cpu" or own not in (torch.float16, torch.bfloat16):
        own = torch.bfloat16
    if own == torch.bfloat16 and not devices.multiplies_bfloat16(device):
        warn_of_float16(model_dir.name)
        return torch.float16
    return own


@lru_cache
def warn_of_float16(model: str) -> None:
    log.warning(
        "%s is computed in float16, not bfloat16, which GPUs of a compute capability below %d "
        "multiply slowly or not at all. Numbers above 65,504 would become infinite.",
        *(model, devices.BFLOAT16_SINCE),
    )


def fingerprint(weight: Any) -> str:
    """Return 16 hex digits over a matrix's bits, computed on its device.

    A GPU hashes rows and columns, and only these hashes are copied.
    """
    import torch

    if weight.device.type == "cpu":
        parts = [weight.contiguous().view(torch.uint8)]
    else:
        parts = [torch.hash_tensor(weight, dim).cpu() for dim in (0, 1)]
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.numpy().data)
    return whole.hexdigest()[:16]


class Weights:
    """The tensors in a directory's safetensors, by the names of the model's modules.

    Files are memory-mapped: a tensor takes memory while it is used. transformers' own renaming of
    stored names is applied. The prefix of the decoder's names may be missing in the files.
    """

    def __init__(self, model_dir: Path, model: Any) -> None:
        from safetensors import SafetensorError, safe_open
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, apply_renamings

        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._found: dict[str, tuple[Path, str]] = {}  # also with the decoder's prefix
        self._opened: dict[Path, Any] = {}
        self._settings: dict[str, Any] = {}
        try:
            for path in weight_files(model_dir):
                file = safe_open(path, framework="pt")
                names: list[str] = list(file.keys())  # type: ignore[no-untyped-call]
                for name in names:
                    self._found[apply_renamings(name, renamings)] = (path, name)
            if is_quantized(model_dir):
                self._settings = packed_settings(model_dir)
        except (SafetensorError, OSError, ValueError) as error:
            raise Refused(f"its weights cannot be read: {error}") from error
        self._packings = packings(model, self._found)
        prefix = f"{model.base_model_prefix}."
        self._found = {prefix + n: place for n, place in self._found.items()} | self._found
        self._packings = {prefix + n: one for n, one in self._packings.items()} | self._packings
        self._ahead: _Ahead | None = None
        self._staged: dict[str, Any] = {}

    def stored_name(self, name: str) -> str:
        """Return a tensor's name in the files; KeyError if there is none."""
        return self._found[name][1]

    def __contains__(self, name: str) -> bool:
        if name in self._found:
            return True
        layers = self._packings[name].layers if name in self._packings else ()
        needed = [layer + part in self._found for layer in layers for part in NEEDED]
        return bool(needed) and all(needed)

    def stored(self, name: str) -> Any:
        """Return a stored tensor, memory-mapped; KeyError if there is none."""
        path, stored = self._found[name]
        if stored in self._staged:
            return self._staged[stored]
        if path not in self._opened:
            from safetensors import safe_open

            self._opened[path] = safe_open(path, framework="pt")
        return self._opened[path].get_tensor(stored)

    def release(self) -> None:
        """Unmap the files, so that pages that were read do not count as this process's memory.

        Staged tensors are dropped: a GPU must have copied them before.
        """
        self._opened.clear()
        self._staged = {}

    def read_ahead(self, index: int, names: Iterable[str], pinned: bool) -> None:
        """Start reading the weights of block `index` in a thread; `take_ahead` waits for them.

        A GPU then copies from page-locked memory while Python continues, instead of waiting for
        pages of a mapped file.
        """
        places = []
        for name in names:
            parts = [name]
            if name not in self._found and name in self._packings:
                parts = [layer + part for layer in self._packings[name].layers for part in PACKED]
            places += [self._found[part] for part in parts if part in self._found]
        self._ahead = self._ahead or _Ahead(pinned)
        self._ahead.begin(index, places)

    def take_ahead(self, index: int) -> None:
        """Let `stored` return the tensors that were read ahead for a block, if any."""
        if self._ahead:
            self._staged = self._ahead.take(index)

    def stop_ahead(self) -> None:
        """Free the buffers after the last block."""
        self._ahead = None

    def dense(self, name: str, device: str, dtype: Any) -> Any:
        """Return a tensor on `device` in `dtype`, dequantized if it is packed; KeyError if none."""
        if name in self._found:
            tensor = self.stored(name)
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, kind, non_blocking=bool(self._staged))
        packing = self._packings[name]
        return packing.joined([self._dequantized(layer, device, dtype) for layer in packing.layers])

    def _dequantized(self, layer: str, device: str, dtype: Any) -> Any:
        from colazero.gptq import dequantize

        parts = {
            part: self.stored(layer + part).to(device, non_blocking=bool(self._staged))
            for part in PACKED
            if part in NEEDED or layer + part in self._found
        }
        return dequantize(**parts, **self._settings).to(dtype)


class _Ahead:
    """Two buffers in main memory: a block's weights are read into one while the other is used."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._buffers: list[Any] = [None, None]
        self._reading: tuple[int, Future[dict[str, Any]]] | None = None
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def begin(self, index: int, places: list[tuple[Path, str]]) -> None:
        """Read a block's tensors (file, name) into the buffer that is not in use."""
        self._reading = index, self._thread.submit(self._read, places)

    def take(self, index: int) -> dict[str, Any]:
        """Return a block's tensors by name after waiting; empty if another block was read."""
        reading, self._reading = self._reading, None
        tensors = reading[1].result() if reading else {}
        return tensors if reading and reading[0] == index else {}

    def _read(self, places: list[tuple[Path, str]]) -> dict[str, Any]:
        import torch
        from safetensors import safe_open

        files: dict[Path, Any] = {path: safe_open(path, framework="pt") for path, _ in places}
        mapped = {name: files[path].get_tensor(name) for path, name in places}
        starts = [0, *accumulate(-(-tensor.nbytes // 64) * 64 for tensor in mapped.values())]
        self._buffers.reverse()
        if self._buffers[0] is None or len(self._buffers[0]) < starts[-1]:
            self._buffers[0] = None  # before the larger one is made
            self._buffers[0] = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=self._pinned)
        staged = {}
        for start, (name, tensor) in zip(starts, mapped.items(), strict=False):
            place = self._buffers[0][start : start + tensor.nbytes].view(tensor.dtype)
            staged[name] = place.view(tensor.shape).copy_(tensor)
        return staged


class Shards:
    """Safetensors files in a directory, named and indexed as Hugging Face's loaders expect it.

    A thread serializes, hashes and writes them while the next block is computed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: list[Future[str]] = []
        self._waiting: dict[str, Any] = {}
        self._bytes = 0
        self._files: list[tuple[Path, list[str]]] = []
        self._total = 0

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, tensors: dict[str, Any]) -> None:
        """Add tensors by name; write a file if there are enough bytes."""
        self._waiting |= {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        self._bytes = sum(tensor.nbytes for tensor in self._waiting.values())
        if self._bytes >= SHARD_BYTES:
            self._write()

    def close(self) -> dict[str, str]:
        """Write the remaining tensors, name the files and write the index, if there are several.

        Return file name → SHA-256. Raise OSError if a file could not be written.
        """
        self._write()
        digests = [writing.result() for writing in self._writing]
        count = len(self._files)
        if count == 1:
            self._files[0][0].rename(self._folder / "model.safetensors")
            return {"model.safetensors": digests[0]}
        weight_map: dict[str, str] = {}
        named = {}
        for number, (file, names) in enumerate(self._files, 1):
            final = f"model-{number:05}-of-{count:05}.safetensors"
            file.rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
            named[final] = digests[number - 1]
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
        return named

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._writing:
            self._writing[-1].result()  # at most two files' tensors are in memory
        file = self._folder / f"part-{len(self._files)}.safetensors"
        self._writing.append(self._thread.submit(write_tensors, self._waiting, file))
        self._files.append((file, list(self._waiting)))
        self._total += self._bytes
        self._waiting, self._bytes = {}, 0


def write_tensors(tensors: dict[str, Any], file: Path) -> str:
    from safetensors.torch import save

    data = save(tensors, metadata={"format": "pt"})
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
