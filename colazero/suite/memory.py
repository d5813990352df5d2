"""Estimate the memory that a cell takes, from the headers of its model's files."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from colazero import devices, pipeline
from colazero.blocks.sequence import SHARE_OF_DEVICE
from colazero.devices import cpu_dtype
from colazero.models.files import stored, weight_files
from colazero.quantizers import BY_BLOCKS, UNQUANTIZED, WITHOUT_CALIBRATION
from colazero.settings import PRUNING, Resolved
from colazero.suite.cells import Place
from colazero.suite.worker import Job
from colazero.types import Model

GB = 1e9
LIBRARIES = 0.6 * GB
"""Main memory of a worker before it computes: torch, transformers and MLflow, imported."""
LIBRARIES_CUDA = 2.5 * GB
"""The same where CUDA's libraries are loaded too (estimated)."""
CONTEXT = 0.8 * GB
"""GPU memory outside PyTorch's tensors (estimated): CUDA's context and cuBLAS's workspaces. On a
Hopper GPU, 32 micro-batches may take 0.8 GB more."""
HESSIANS = 3.1
"""Matrices of a Hessian's size at once: the sum, the ordered copy and the factor (counted)."""
SOLVING = 16.0
"""Bytes per weight of the layer that is solved: stored, in float32, corrected, codes (counted)."""
WHOLE_MODEL = ("cola", "self")
"""Methods that run the whole unquantized model to choose a set."""
BATCH = 4096
"""Tokens that pass a block at once in evaluation, if that is more than one window."""
BLOCK = re.compile(r".*?\.\d+(?=\.)|\d+(?=\.)")
"""The start of the names of a decoder block's tensors: `model.layers.0`."""


@dataclass(frozen=True)
class Weights:
    """Weight counts: quantizable, other, largest block, outside the blocks.

    `hidden`: the fewest inputs of a layer, which is the width of hidden states; `widest`: the most.
    `attention`: outputs of the largest block's layers that are neither from nor to the widest.
    `matrix`: weights of the largest layer.
    """

    layers: int
    others: int
    block: int
    outside: int
    hidden: int
    widest: int
    attention: int
    matrix: int

    @classmethod
    def of(cls, model: Model) -> Weights:
        """Read the headers; UserError if a file is missing, damaged or cut off."""
        layers = others = outside = 0
        sizes: defaultdict[str, int] = defaultdict(int)
        shapes: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
        for name, tensor in stored(weight_files(model.path)).items():
            start = BLOCK.match(name)
            if start:
                sizes[start[0]] += tensor.count
            else:
                outside += tensor.count
            if start and len(tensor.shape) == 2:
                layers += tensor.count
                shapes[start[0]].append(tensor.shape)
            else:
                others += tensor.count
        largest = max(sizes, key=lambda name: sizes[name], default="")
        every = [shape for block in shapes.values() for shape in block]
        widest = max((inputs for _, inputs in every), default=0)
        attention = [
            outputs for outputs, inputs in shapes[largest] if outputs % widest and inputs != widest
        ]
        return cls(
            layers,
            others,
            sizes[largest],
            outside,
            hidden=min((inputs for _, inputs in every), default=0),
            widest=widest,
            attention=sum(attention),
            matrix=max((outputs * inputs for outputs, inputs in every), default=0),
        )

    @property
    def dense(self) -> float:
        """Return the bytes in half precision."""
        return 2.0 * (self.layers + self.others)

    def quantized(self, bits: int) -> float:
        """Return the bytes of a checkpoint, with scales and zero points of groups of 32 at most."""
        return self.layers * (bits + 1) / 8 + 2.0 * self.others

    def checkpoint(self, config: Resolved) -> float:
        """Return the bytes of a cell's checkpoint; a pruned one is as large as the model."""
        return self.dense if config.quantizer in PRUNING else self.quantized(config.quant_bits)

    def waiting(self, tokens: float, number: float) -> float:
        """Return the most bytes that micro-batches hold inside a block.

        Counted: at the attention's output queries, keys, values, output and normed input; at the
        last layer hidden states, normed ones, and one as wide as its input.
        """
        return number * tokens * max(self.attention + self.hidden, 2 * self.hidden + self.widest)

    def solved(self, tokens: float, number: float) -> float:
        """Return the most bytes in use while one of a block's layers is solved."""

        def solving(inputs: int) -> float:
            return max(4 * HESSIANS * inputs**2, 4.0 * inputs**2 + SOLVING * self.matrix)

        attention = number * tokens * (self.attention + self.hidden) + solving(self.hidden)
        last = number * tokens * (2 * self.hidden + self.widest) + solving(self.widest)
        return max(attention, last)


@dataclass(frozen=True)
class Room:
    """Bytes that a cell takes: the least on its GPU, there at full speed, and of main memory.

    The first two are 0 on a CPU.
    """

    least: float
    full: float
    main: float


def of_cell(config: Resolved, model: Model, free: float) -> Room:
    """Return the memory that a cell takes if `free` bytes are free on its GPU.

    Block by block: one block's weights and what is outside the blocks, hidden states of all windows
    (in main memory if they would fill more than half of a GPU), intermediate results of waiting
    micro-batches, and a layer's Hessian and factor. With the least memory, three micro-batches of
    one window wait; the others stop and run again. GPTQModel keeps the model in main memory.
    Downstream tasks, and methods that run the model, need the whole model on the device.
    """
    weights = Weights.of(model)
    solves = config.quantizer not in WITHOUT_CALIBRATION
    number = 4.0 if cpu_dtype(config.device) == "float32" else 2.0
    hidden = number * weights.hidden * tokens(config, model)
    fixed = number * (weights.block + weights.outside)
    if config.quantizer == "awq":  # the block in float32, and the Hessians of its four inputs
        fixed += 4.0 * (weights.block + 3 * weights.hidden**2 + weights.widest**2)
    window = config.evaluated_len
    least = fixed + weights.waiting(window, number)
    full = fixed + hidden + weights.waiting(max(BATCH, window), number)
    if solves:
        calibration = config.n_calibration_samples * config.seq_len
        least = fixed + weights.solved(3 * config.seq_len, number)
        full = max(full, fixed + hidden + weights.solved(calibration, number))
    if config.do_downstream or (solves and config.method in WHOLE_MODEL):
        least, full = max(least, weights.dense), max(full, weights.dense)
    kept = 0.0 if config.quantizer in (*BY_BLOCKS, UNQUANTIZED) else weights.dense
    if config.device == "cpu":
        return Room(0.0, 0.0, LIBRARIES + max(least + hidden, kept))
    on_host = page_locked(hidden) if hidden > SHARE_OF_DEVICE * free else 0.0
    buffers = 2 * page_locked(number * weights.block)
    main = LIBRARIES_CUDA + kept + on_host + buffers
    return Room(CONTEXT + least, CONTEXT + full, main)


def page_locked(size: float) -> float:
    """Return the bytes that PyTorch allocates for page-locked memory: the next power of two."""
    return 2.0 ** math.ceil(math.log2(size)) if size else 0.0


def tokens(config: Resolved, model: Model) -> int:
    """Return the number of calibration and evaluation tokens that pass the blocks together."""
    calibration = config.n_calibration_samples * config.seq_len
    texts = sum(text.windows.size for text in pipeline.evaluation_texts(config, model))
    return texts + (0 if config.quantizer in WITHOUT_CALIBRATION else calibration)


def cached_hidden(config: Resolved, model: Model) -> float:
    """Return the bytes of the evaluation texts' last hidden states, which stay in the cache."""
    number = 4.0 if cpu_dtype(config.device) == "float32" else 2.0
    alone = config.model_copy(update={"quantizer": UNQUANTIZED})  # nothing is calibrated
    return number * Weights.of(model).hidden * tokens(alone, model)


def free_on_card(place: Place) -> tuple[str, float] | None:
    """Return the name and free bytes of the GPU with the least free memory; None on CPUs."""
    mine = [devices.cards()[number] for number in place.gpus]
    least = min(mine, key=lambda card: card.free, default=None)
    return None if least is None else (least.name, float(least.free))


def rooms(place: Place, jobs: Sequence[Job]) -> dict[str, Room]:
    """Return model → memory of its most demanding cell; empty if cells run on other machines."""
    found: dict[str, Room] = {}
    if not place.here:
        return found
    card = free_on_card(place)
    for job in jobs:
        one = of_cell(job.config, job.model, card[1] if card else 0.0)
        other = found.get(job.model.name, one)
        found[job.model.name] = Room(
            max(one.least, other.least), max(one.full, other.full), max(one.main, other.main)
        )
    return found


def too_large(place: Place, jobs: Sequence[Job]) -> dict[str, str]:
    """Return model → reason, for models of which not one cell fits this machine."""
    found = {}
    card = free_on_card(place)
    main = devices.main_memory()
    for name, room in rooms(place, jobs).items():
        if card and room.least > card[1]:
            where = f"on {card[0]}, which has {card[1] / GB:,.1f} GB free"
            found[name] = f"a cell needs at least {room.least / GB:,.1f} GB {where}"
        elif room.main > main:
            where = f"of main memory, of which {main / GB:,.1f} GB are free"
            found[name] = f"a cell needs at least {room.main / GB:,.1f} GB {where}"
    return found
