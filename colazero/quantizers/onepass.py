"""GPTQ (arXiv 2210.17323) and other methods, block by block, each block run once.

A linear layer is solved as soon as all calibration windows have reached it. It then computes its
output with its new weights, and the layers after it are calibrated on that output. Layers with the
same input share its statistic (GPTQ: the Hessian) and what is prepared of it (its factor).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from colazero import devices
from colazero.cache import new_entry
from colazero.models.files import copy_other_files
from colazero.quantizers import QUANTIZERS
from colazero.types import QuantizationReport, QuantizationSettings, Work

if TYPE_CHECKING:
    from colazero.blocks.sequence import Sequence, Stream

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 4096
"""Calibration tokens in a micro-batch, unless one window has more."""
MICRO_BATCHES = 32
"""The largest number of micro-batches: each is a thread with memory of its own."""


class Layerwise(Protocol):
    """A way of making new weights for a linear layer from a statistic of its inputs."""

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """Return the weights' format for config.json; None for plain weights."""

    def statistic(self, inputs: int, device: str) -> Any:
        """Return an empty statistic: it has `add(x)` and `tokens`.

        x: [windows, tokens, inputs], or [tokens, inputs] where it has another number of tokens.
        """

    def prepare(self, statistic: Any) -> Any:
        """Return what layers with one input share."""

    def solve(self, weight: Any, prepared: Any, dtype: Any) -> Solution:
        """Solve a layer. weight: as stored, on the device. dtype: what the model computes in.

        prepared: None where nothing calibrates.
        """


Solution = tuple[Any, dict[str, Any], dict[str, Any]]
"""A layer's new weight, its tensors to be saved by their endings, and its row of the report."""


class Gptq:
    """GPTQ, saved in the Hugging Face GPTQ format."""

    def __init__(self, settings: QuantizationSettings) -> None:
        self._settings = settings
        self.quantization = quantization_config(settings)

    def statistic(self, inputs: int, device: str) -> Any:
        from colazero import gptq

        weight = self._settings.position_weight
        return gptq.Hessian(inputs, device, 1.0 if weight == "attention" else weight)

    def prepare(self, statistic: Any) -> Any:
        from colazero import gptq

        return gptq.prepare(statistic, self._settings)

    def solve(self, weight: Any, prepared: Any, dtype: Any) -> Solution:
        """Quantize a layer; see `Layerwise.solve`."""
        from colazero import gptq

        solved = gptq.solve(weight.float(), prepared, self._settings)
        row = {
            "loss": solved.loss,
            "damp": solved.damp,
            "rtn_fallback": solved.rtn_fallback,
            "kernel": solved.kernel,
            "first_position_share": prepared.first_share,
        }
        return solved.weight(dtype), gptq.pack(solved, self._settings.quant_bits), row


@QUANTIZERS.register("onepass")
def quantize(work: Work) -> QuantizationReport:
    """Quantize a model and write a Hugging Face GPTQ checkpoint, see `by_blocks`."""
    from colazero.gptq import columns

    started = time.perf_counter()
    columns.for_device(work.device.partition(":")[0], work.settings.group_size)  # compiles
    warm_up_time_sec = time.perf_counter() - started
    by_attention = work.settings.position_weight == "attention"
    report = by_blocks(work, Gptq(work.settings), by_attention=by_attention)
    return replace(report, warm_up_time_sec=warm_up_time_sec)


def by_blocks(
    work: Work,
    method: Any,
    *,
    by_attention: bool = False,
    solver_of: Callable[..., Solver] | None = None,
    micro_batches: int = MICRO_BATCHES,
) -> QuantizationReport:
    """Solve a model's layers block by block and write a checkpoint.

    method: a `Layerwise`, or what another `solver_of` than `Solver` takes; its `quantization` goes
    into config.json. micro_batches: the most of them, unless one window has more tokens.

    by_attention: tokens count in the statistic by the attention that they get in the block, which
    runs once more for that, before its layers are solved.

    A block's tensors are written as soon as it is solved, into a folder that becomes the checkpoint
    at the end. Refused, before any work, if the model cannot be run block by block. Without
    calibration windows nothing is run, and layers are solved from their weights alone.
    """
    from colazero.blocks.probe import open_sequence
    from colazero.blocks.weights import Shards

    device, evaluator = work.device, work.evaluator
    begin = time.perf_counter()
    sequence = open_sequence(work.model_dir, device, to_quantize=True)
    windows, stream = work.calibration.windows, None
    if len(windows):
        at_once = max(1, TOKENS_PER_BATCH // windows.shape[1], -(-len(windows) // micro_batches))
        stream = sequence.begin(windows, at_once)
    rows: list[dict[str, Any]] = []
    solved: dict[str, str] = {}
    saving, warned = 0.0, False
    if evaluator:
        evaluator.begin(sequence)
    with new_entry(work.out_dir) as draft, Shards(draft) as shards:
        for index in range(len(sequence)):
            weights = _token_weights(sequence, index, stream) if stream and by_attention else None
            solver = (solver_of or Solver)(sequence, index, method, weights)
            with sequence.filled(index, solver.solves) as block:
                solver.run(block, stream)
                if evaluator:
                    evaluator.advance(index)
            rows += solver.rows
            solved |= solver.solved
            if stream and solver.run_again and not warned:
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
        at_once_at_last, halved = (stream.at_once, stream.halved) if stream else (None, False)
        del stream
        if evaluator:
            evaluator.finish()
        saved = time.perf_counter()
        shards.add(rest(sequence))
        files = shards.close()
        describe(work.model_dir, draft, method.quantization)
        saving += time.perf_counter() - saved
    devices.settle(device)
    evaluating = evaluator.seconds if evaluator else 0.0
    return QuantizationReport(
        time.perf_counter() - begin - saving - evaluating,
        saving,
        rows,
        windows_at_once=at_once_at_last,
        halved=halved,
        files=files,
        solved=solved,
    )


def _token_weights(sequence: Sequence, index: int, stream: Stream) -> Any:
    from colazero import gptq

    with sequence.filled(index, ahead=False):
        return gptq.token_weights(sequence.attended(index, stream))


class Solver:
    """Solves the linear layers of one block. `tensors`: to be saved; `rows`: one per layer.

    weights: [windows, tokens], how often each token counts; None: once.
    """

    def __init__(
        self, sequence: Sequence, index: int, method: Layerwise, weights: Any = None
    ) -> None:
        from colazero.blocks.probe import linears

        self.tensors: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.solved: dict[str, str] = {}
        self._sequence, self._index, self._method = sequence, index, method
        self._weights = weights
        self._layers = linears(sequence.blocks[index])
        self._input = Input(method)
        self.run_again = 0

    def solves(self, name: str) -> bool:
        """Return True if this solver quantizes the parameter of that name."""
        return name.removesuffix(".weight") in self._layers and name.endswith(".weight")

    def run(self, block: Any, stream: Stream | None) -> None:
        """Run the block on the stream and solve its layers. It holds its other parameters."""
        if stream:
            self._calibrated(stream)
        else:
            for name in self._layers:
                self._solve(name)
        for name in block.state_dict():
            known = self._sequence.at(self._index, name)
            if not self.solves(name) and known in self._sequence.weights:
                self._keep(known, "", {"": self._sequence.weights.stored(known).clone()})

    def _calibrated(self, stream: Stream) -> None:
        """Solve all layers while the stream passes them, in smaller batches if need be."""
        from colazero.blocks.lockstep import halved, run_if_fits

        ended: list[slice] = []
        while not run_if_fits(partial(self._in_lockstep, stream, ended), stream.at_once):
            if ended:  # all layers are solved: the rest need no lockstep
                self._sequence.advance(self._index, _left(stream, ended))
                break
            self.tensors, self.rows, self._input = {}, [], Input(self._method)
            stream.batches[:] = halved(stream.batches)
        self._input = Input(self._method)

    def _in_lockstep(self, stream: Stream, ended: list[slice]) -> None:
        """Solve all layers. Append to `ended` each batch that has passed the whole block."""
        from colazero.blocks.lockstep import Headroom, Lockstep, stopping_at

        def work(member: int) -> None:
            self._sequence.run_block(self._index, stream, stream.batches[member])
            ended.append(stream.batches[member])

        room = Headroom(self._sequence.device)
        see = partial(self._see, stream)
        lockstep = Lockstep(len(stream.batches), see, self._solve, room.full)
        with stopping_at(self._layers, lockstep.arrive):
            lockstep.run(work)
        self.run_again = len(lockstep.left)

    def _see(self, stream: Stream, member: int, x: Any, leaves: bool) -> bool:
        """Add a layer's input in a micro-batch to its statistic; return True if it was added."""
        known = self._input.has(member, x)
        if member == 0 and not known:
            self._input = Input(self._method)
        if not known:
            part = stream.batches[member]
            weights = None if self._weights is None else self._weights[part]
            windows = stream.ids[part].shape
            self._input.add(member, x, windows, self._sequence.device, weights, keep=not leaves)
        return known

    def _solve(self, name: str) -> None:
        from torch import nn

        from colazero.blocks.weights import fingerprint

        self._input.prepare()
        known = self._sequence.at(self._index, f"{name}.weight")
        stored = self._sequence.weights.stored(known)
        layer, weight = self._layers[name], stored.to(self._sequence.device, non_blocking=True)
        new, tensors, row = self._method.solve(weight, self._input.prepared, layer.weight.dtype)
        layer.weight = nn.Parameter(new, requires_grad=False)
        self.solved[known] = fingerprint(layer.weight.data)
        self._keep(known, "weight", tensors)
        where = {"layer": self._index, "module": name, "samples": self._input.tokens}
        self.rows.append(where | row)

    def _keep(self, known: str, ending: str, tensors: Mapping[str, Any]) -> None:
        """Keep tensors to save, under the stored name of `known` with another ending."""
        stem = self._sequence.weights.stored_name(known).removesuffix(ending)
        self.tensors |= {stem + part: tensor.cpu() for part, tensor in tensors.items()}


def _left(stream: Stream, ended: list[slice]) -> Stream:
    """Halve a stream's batches, and return the batches that have not ended."""
    from colazero.blocks.lockstep import halved

    left = [part for part in stream.batches if part not in ended]
    stream.batches[:] = halved(stream.batches)
    return replace(stream, batches=halved(left))


class Input:
    """The input of one or several layers: a tensor [..., inputs] per micro-batch."""

    def __init__(self, method: Layerwise) -> None:
        self._method = method
        self._statistic: Any = None
        self._parts: dict[int, tuple[Any, int]] = {}
        self.prepared: Any = None
        self.tokens = 0

    def has(self, member: int, x: Any) -> bool:
        """Return True if `x` was added for this micro-batch and is unchanged since."""
        if member not in self._parts:
            return False
        old, version = self._parts[member]
        now, then = (x.data_ptr(), x._version), (old.data_ptr(), version)
        return now == then and (x.shape, x.stride()) == (old.shape, old.stride())

    def add(
        self,
        member: int,
        x: Any,
        windows: tuple[int, int],
        device: str,
        weights: Any = None,
        *,
        keep: bool = True,
    ) -> None:
        """Add a micro-batch's input to the statistic. `keep`: remember it for `has`.

        windows: how many windows of how many tokens. weights: of these tokens. RuntimeError if a
        layer was already solved with the statistic.
        """
        if self.prepared is not None:
            raise RuntimeError("a layer has another one's input in some micro-batches alone")
        if self._statistic is None:
            self._statistic = self._method.statistic(x.shape[-1], device)
        shape = (*windows, x.shape[-1])
        whole = x.numel() == math.prod(shape)  # an expert gets some of the tokens
        x_by_window = x.reshape(shape) if whole else x
        if weights is None:
            self._statistic.add(x_by_window)
        else:
            self._statistic.add(x_by_window, weights)
        if keep:
            self._parts[member] = x, x._version

    def prepare(self) -> None:
        """Turn the statistic into `prepared`, once for all layers with this input."""
        if self._statistic is not None:
            self.tokens = self._statistic.tokens
            self.prepared = self._method.prepare(self._statistic)
            self._statistic = None


def rest(sequence: Sequence) -> dict[str, Any]:
    """Return the tensors outside the blocks, as stored."""
    names = [n for n in sequence.model.state_dict() if not n.startswith(f"{sequence.name}.")]
    known = [name for name in names if name in sequence.weights]
    return {sequence.weights.stored_name(n): sequence.weights.stored(n) for n in known}


def describe(model_dir: Path, out_dir: Path, quantization: Mapping[str, Any] | None) -> None:
    """Write the checkpoint's configuration, and copy every file that holds no weights."""
    config = json.loads((model_dir / "config.json").read_text())
    if quantization:
        config["quantization_config"] = quantization
    (out_dir / "config.json").write_text(json.dumps(config, indent=2))
    if quantization and quantization["quant_method"] == "gptq":
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
            "position_weight": settings.position_weight,
            "true_sequential": True,
        },
    }
