"""GPTQ (Frantar et al. 2023, arXiv 2210.17323) block by block, each block run once.

A linear layer is solved as soon as all calibration windows have reached it. It then computes its
output with quantized weights, and the layers after it are calibrated on that output. Layers with
the same input share its Hessian and its factor.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazero import devices
from colazero.cache import new_entry
from colazero.quantizers import QUANTIZERS, copy_other_files
from colazero.types import QuantizationReport, QuantizationSettings, Work

if TYPE_CHECKING:
    from colazero import gptq
    from colazero.blocks.sequence import Sequence, Stream

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 4096
"""Calibration tokens in a micro-batch, unless one window has more."""
MICRO_BATCHES = 32
"""The largest number of micro-batches: each is a thread with memory of its own."""


@QUANTIZERS.register("onepass")
def quantize(work: Work) -> QuantizationReport:
    """Quantize a model and write a Hugging Face GPTQ checkpoint.

    A block's packed tensors are written as soon as it is solved, into a folder that becomes the
    checkpoint at the end. Refused, before any work, if the model cannot be run block by block.
    """
    from colazero.blocks.probe import open_sequence
    from colazero.blocks.weights import Shards
    from colazero.gptq import columns

    started = time.perf_counter()
    settings, device, rider = work.settings, work.device, work.rider
    columns.for_device(device.partition(":")[0], settings.group_size)  # compiles what it runs
    begin = time.perf_counter()
    sequence = open_sequence(work.model_dir, device, to_quantize=True)
    windows = work.calibration.windows
    at_once = max(1, TOKENS_PER_BATCH // windows.shape[1], -(-len(windows) // MICRO_BATCHES))
    stream = sequence.begin(windows, at_once)
    rows: list[dict[str, Any]] = []
    solved: dict[str, str] = {}
    saving, warned = 0.0, False
    if rider:
        rider.board(sequence)
    with new_entry(work.out_dir) as draft, Shards(draft) as shards:
        for index in range(len(sequence)):
            solver = Solver(sequence, index, settings)
            with sequence.filled(index, solver.solves) as block:
                solver.run(block, stream)
                if rider:
                    rider.advance(index)
            rows += solver.rows
            solved |= solver.solved
            if solver.run_again and not warned:
                log.warning(
                    "memory holds %d of %d micro-batches of a block. The others are run again for "
                    "each input of its layers: slower, with the same result.",
                    *(len(stream.batches) - solver.run_again, len(stream.batches)),
                )
                warned = True
            saved = time.perf_counter()
            shards.add(solver.tensors)
            saving += time.perf_counter() - saved
            work.progress(index + 1, len(sequence))
        at_once, halved = stream.at_once, stream.halved
        del stream
        if rider:
            rider.finish()
        saved = time.perf_counter()
        shards.add(rest(sequence))
        files = shards.close()
        describe(work.model_dir, draft, settings)
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
    """Quantizes the linear layers of one block. `tensors`: to be saved; `rows`: one per layer."""

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
        """Return True if this solver quantizes the parameter of that name."""
        return name.removesuffix(".weight") in self._layers and name.endswith(".weight")

    def run(self, block: Any, stream: Stream) -> None:
        """Run the block on the stream and solve its layers. It holds its other parameters."""
        from colazero.blocks.lockstep import halved, run_if_fits

        ended: list[slice] = []
        while not run_if_fits(partial(self._in_lockstep, stream, ended), stream.at_once):
            if ended:  # all layers are solved: the rest need no lockstep
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
        """Solve all layers. Append to `ended` each batch that has passed the whole block."""
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
        """Add a layer's input in a micro-batch to its Hessian; return True if it is in it."""
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
        weight = (
            self._sequence.weights.stored(known)
            .to(self._sequence.device, non_blocking=True)
            .float()
        )
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
        """Keep tensors to save, under the stored name of `known` with another ending."""
        stem = self._sequence.weights.stored_name(known).removesuffix(ending)
        self.tensors |= {stem + part: tensor.cpu() for part, tensor in tensors.items()}


def _left(stream: Stream, ended: list[slice]) -> Stream:
    """Halve a stream's batches, and return the stream of those that have not ended."""
    from colazero.blocks.lockstep import halved

    left = [part for part in stream.batches if part not in ended]
    stream.batches[:] = halved(stream.batches)
    return replace(stream, batches=halved(left))


class Input:
    """The input of one or several layers: a tensor [..., inputs] per micro-batch."""

    def __init__(self) -> None:
        self._hessian: gptq.Hessian | None = None
        self._parts: dict[int, tuple[Any, int]] = {}
        self.prepared: Any = None
        self.tokens = 0

    def has(self, member: int, x: Any) -> bool:
        """Return True if `x` was added for this micro-batch and has not been written to since."""
        if member not in self._parts:
            return False
        old, version = self._parts[member]
        now, then = (x.data_ptr(), x._version), (old.data_ptr(), version)
        return now == then and (x.shape, x.stride()) == (old.shape, old.stride())

    def add(self, member: int, x: Any, device: str, *, keep: bool = True) -> None:
        """Add a micro-batch's input to the Hessian. `keep`: remember it for `has`.

        RuntimeError if a layer was already solved with the Hessian.
        """
        from colazero import gptq

        if self.prepared is not None:
            raise RuntimeError("a layer has another one's input in some micro-batches alone")
        self._hessian = self._hessian or gptq.Hessian(x.shape[-1], device)
        self._hessian.add(x)
        if keep:
            self._parts[member] = x, x._version

    def prepare(self, settings: QuantizationSettings) -> None:
        """Factor the Hessian into `prepared`, once for all layers with this input."""
        from colazero import gptq

        if self._hessian is not None:
            self.tokens = self._hessian.tokens
            self.prepared = gptq.prepare(self._hessian, settings)
            self._hessian = None


def rest(sequence: Sequence) -> dict[str, Any]:
    """Return the tensors outside the blocks, as stored."""
    names = [n for n in sequence.model.state_dict() if not n.startswith(f"{sequence.name}.")]
    known = [name for name in names if name in sequence.weights]
    return {sequence.weights.stored_name(n): sequence.weights.stored(n) for n in known}


def describe(model_dir: Path, out_dir: Path, settings: QuantizationSettings) -> None:
    """Write the checkpoint's configuration, and copy every file that holds no weights."""
    config = json.loads((model_dir / "config.json").read_text())
    quantization = quantization_config(settings)
    (out_dir / "config.json").write_text(
        json.dumps(config | {"quantization_config": quantization}, indent=2)
    )
    (out_dir / "quantize_config.json").write_text(json.dumps(quantization, indent=2))
    copy_other_files(model_dir, out_dir)


def quantization_config(settings: QuantizationSettings) -> dict[str, Any]:
    """Return the settings that loaders of GPTQ checkpoints read, under GPTQModel's names."""
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
