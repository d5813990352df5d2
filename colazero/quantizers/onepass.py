"""GPTQ (Frantar et al. 2023, arXiv 2210.17323) a block at a time, each block run once.

Every linear layer is solved the moment its input is there for all calibration windows, and then
computes its output with its quantized weights: those are what the layers after it are calibrated
on. Layers with the same input share its Hessian and its factor.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazero import devices
from colazero.cache import new_entry
from colazero.quantizers import QUANTIZERS
from colazero.types import (
    CalibrationSet,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    Rider,
)

if TYPE_CHECKING:
    from colazero import gptq
    from colazero.blocks.sequence import Sequence, Stream

log = logging.getLogger(__name__)

TOKENS_A_BATCH = 4096
"""Calibration tokens in a micro-batch, if that is more than one window."""
MICRO_BATCHES = 32
"""At most so many: each is a thread with memory of its own."""
COPIED = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model", "*.jinja")
"""Files of a model directory that its checkpoint has too, beside `generation_config.json`."""


@QUANTIZERS.register("onepass")
def quantize(
    model_dir: Path,
    calibration: CalibrationSet,
    settings: QuantizationSettings,
    out_dir: Path,
    device: str,
    progress: Progress,
    rider: Rider | None = None,
) -> QuantizationReport:
    """Quantize the model in `model_dir` and write a Hugging Face GPTQ checkpoint to `out_dir`.

    A block's packed tensors are written when it is finished, into a folder that becomes `out_dir`
    at the end. UserError, before any work, if the model's blocks cannot be taken one at a time.
    """
    from colazero.blocks.probe import open_sequence
    from colazero.blocks.weights import Shards
    from colazero.gptq import columns

    started = time.perf_counter()
    columns.for_device(device.partition(":")[0], settings.group_size)  # compiles what it runs
    begin = time.perf_counter()
    sequence = open_sequence(model_dir, device, to_quantize=True)
    count, length = calibration.windows.shape
    at_once = max(1, TOKENS_A_BATCH // length, -(-count // MICRO_BATCHES))
    stream = sequence.begin(calibration.windows, at_once)
    rows: list[dict[str, Any]] = []
    solved: dict[str, str] = {}
    saving, told = 0.0, False
    if rider:
        rider.board(sequence)
    with new_entry(out_dir) as draft:
        shards = Shards(draft)
        for index in range(len(sequence)):
            solver = Solver(sequence, index, settings)
            with sequence.filled(index, solver.solves) as block:
                solver.run(block, stream)
                if rider:
                    rider.advance(index)
            rows += solver.rows
            solved |= solver.solved
            if solver.run_again and not told:
                log.warning(
                    "memory holds %d of %d micro-batches of a block: the others are run again for "
                    "each input of its layers, which takes longer and gives the same",
                    *(len(stream.batches) - solver.run_again, len(stream.batches)),
                )
                told = True
            saved = time.perf_counter()
            shards.add(solver.tensors)
            saving += time.perf_counter() - saved
            progress(index + 1, len(sequence))
        at_once, halved = stream.at_once, stream.halved
        del stream
        if rider:
            rider.finish()
        saved = time.perf_counter()
        shards.add(rest(sequence))
        files = shards.close()
        describe(model_dir, draft, settings)
        saving += time.perf_counter() - saved
    devices.settle(device)
    riding = rider.seconds if rider else 0.0
    return QuantizationReport(
        time.perf_counter() - begin - saving - riding,
        saving,
        rows,
        warm_up_time_sec=begin - started,
        windows_at_once=at_once,
        halved=halved,
        files=files,
        solved=solved,
    )


class Solver:
    """Quantizes the linear layers of one block: `tensors` to save, and a row each in `rows`."""

    def __init__(self, sequence: Sequence, index: int, settings: QuantizationSettings) -> None:
        from colazero.blocks.probe import linears

        self.tensors: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.solved: dict[str, str] = {}
        self._sequence, self._index, self._settings = sequence, index, settings
        self._layers = linears(sequence.blocks[index])
        self._input = Input()
        self.run_again = 0

    def solves(self, name: str) -> bool:
        """Tell whether a parameter of the block is quantized here."""
        return name.removesuffix(".weight") in self._layers and name.endswith(".weight")

    def run(self, block: Any, stream: Stream) -> None:
        """Run the block, which holds all else, on the stream; quantized weights join them."""
        from colazero.blocks.lockstep import halved, run_if_fits

        ended: list[slice] = []
        while not run_if_fits(partial(self._in_lockstep, stream, ended), stream.at_once):
            if ended:  # so all layers are solved: the others need not meet again
                self._sequence.advance(self._index, _left(stream, ended))
                break
            self.tensors, self.rows, self._input = {}, [], Input()
            stream.batches[:] = halved(stream.batches)
        self._input = Input()
        for name in block.state_dict():
            known = self._sequence.at(self._index, name)
            if not self.solves(name) and known in self._sequence.weights:
                self._keep(known, "", {"": self._sequence.weights.stored(known).clone()})

    def _in_lockstep(self, stream: Stream, ended: list[slice]) -> None:
        """Solve all layers; `ended` gets the batches whose hidden states are the next block's."""
        from colazero.blocks.lockstep import Headroom, Lockstep, stopping_at

        def work(member: int) -> None:
            self._sequence.run_block(self._index, stream, stream.batches[member])
            ended.append(stream.batches[member])

        room = Headroom(self._sequence.device)
        lockstep = Lockstep(len(stream.batches), self._see, self._solve, room.full)
        with stopping_at(self._layers, lockstep.arrive):
            lockstep.run(work)
        self.run_again = len(lockstep.left)

    def _see(self, member: int, x: Any, leaves: bool) -> bool:
        """Add what comes into a layer in a micro-batch to its Hessian; tell if it was there."""
        known = self._input.has(member, x)
        if member == 0 and not known:
            self._input = Input()
        if not known:
            self._input.add(member, x, self._sequence.device, keep=not leaves)
        return known

    def _solve(self, name: str) -> None:
        from torch import nn

        from colazero import gptq
        from colazero.blocks.weights import fingerprint

        self._input.prepare(self._settings)
        known = self._sequence.at(self._index, f"{name}.weight")
        weight = self._sequence.weights.stored(known).to(self._sequence.device).float()
        solved = gptq.solve(weight, self._input.prepared, self._settings)
        layer = self._layers[name]
        layer.weight = nn.Parameter(solved.weight(layer.weight.dtype), requires_grad=False)
        self.solved[known] = fingerprint(layer.weight.data)
        self._keep(known, "weight", gptq.pack(solved, self._settings.quant_bits))
        self.rows.append(
            {
                "layer": self._index,
                "module": name,
                "loss": solved.loss,
                "damp": solved.damp,
                "rtn_fallback": solved.rtn_fallback,
                "samples": self._input.tokens,
                "kernel": solved.kernel,
            }
        )

    def _keep(self, known: str, ending: str, tensors: Mapping[str, Any]) -> None:
        """Keep tensors to save; the files' name of `known`, less its `ending`, precedes theirs."""
        stem = self._sequence.weights.stored_name(known).removesuffix(ending)
        self.tensors |= {stem + part: tensor.cpu() for part, tensor in tensors.items()}


def _left(stream: Stream, ended: list[slice]) -> Stream:
    """Return the batches of a stream that have not ended; its own are halved from here on."""
    from colazero.blocks.lockstep import halved

    left = [part for part in stream.batches if part not in ended]
    stream.batches[:] = halved(stream.batches)
    return replace(stream, batches=halved(left))


class Input:
    """What comes into one layer, or several, [..., inputs] in each micro-batch."""

    def __init__(self) -> None:
        self._hessian: gptq.Hessian | None = None
        self._parts: dict[int, tuple[Any, int]] = {}
        self.prepared: Any = None
        self.tokens = 0

    def has(self, member: int, x: Any) -> bool:
        """Tell whether `x` was added for this micro-batch, and not written into since."""
        if member not in self._parts:
            return False
        old, version = self._parts[member]
        now, then = (x.data_ptr(), x._version), (old.data_ptr(), version)
        return now == then and (x.shape, x.stride()) == (old.shape, old.stride())

    def add(self, member: int, x: Any, device: str, *, keep: bool = True) -> None:
        """Add a micro-batch's input to the Hessian; `keep` it to be known again.

        RuntimeError if the Hessian was solved with.
        """
        from colazero import gptq

        if self.prepared is not None:
            raise RuntimeError("a layer has another one's input in some micro-batches alone")
        self._hessian = self._hessian or gptq.Hessian(x.shape[-1], device)
        self._hessian.add(x)
        if keep:
            self._parts[member] = x, x._version

    def prepare(self, settings: QuantizationSettings) -> None:
        """Factor the Hessian, as `prepared`; once for all layers that have this input."""
        from colazero import gptq

        if self._hessian is not None:
            self.tokens = self._hessian.tokens
            self.prepared = gptq.prepare(self._hessian, settings)
            self._hessian = None


def rest(sequence: Sequence) -> dict[str, Any]:
    """Return what is outside the blocks, as it is stored."""
    names = [n for n in sequence.model.state_dict() if not n.startswith(f"{sequence.name}.")]
    known = [name for name in names if name in sequence.weights]
    return {sequence.weights.stored_name(n): sequence.weights.stored(n) for n in known}


def describe(model_dir: Path, out_dir: Path, settings: QuantizationSettings) -> None:
    """Write the checkpoint's configuration, and copy what belongs to the tokenizer."""
    config = json.loads((model_dir / "config.json").read_text())
    quantization = quantization_config(settings)
    (out_dir / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantization}, indent=2)
    )
    (out_dir / "quantize_config.json").write_text(json.dumps(quantization, indent=2))
    for pattern in (*COPIED, "generation_config.json"):
        for file in model_dir.glob(pattern):
            shutil.copy(file, out_dir / file.name)


def quantization_config(settings: QuantizationSettings) -> dict[str, Any]:
    """Return what loaders of GPTQ checkpoints read, by the names that GPTQModel gives it."""
    from colazero import __version__

    return {
        "bits": settings.quant_bits,
        "group_size": settings.group_size,
        "desc_act": settings.desc_act,
        "sym": settings.sym,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "damp_percent": settings.damp_percent,
        "true_sequential": True,
        "meta": {
            "quantizer": [f"colazero:{__version__}"],
            "damp_percent": settings.damp_percent,
            "act_group_aware": settings.act_group_aware,
            "true_sequential": True,
        },
    }
