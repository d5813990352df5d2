"""What a cell needs of memory, from the heads of its model's files, and which models have none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from colazero import devices, pipeline
from colazero.blocks.sequence import SHARE_OF_DEVICE
from colazero.devices import cpu_dtype
from colazero.models.files import stored, weight_files
from colazero.quantizers import UNQUANTIZED, WITHOUT_CALIBRATION
from colazero.settings import Resolved
from colazero.suite.cells import Place
from colazero.suite.worker import Job
from colazero.types import Model

GB = 1e9
LIBRARIES = 0.6 * GB
"""Main memory that a worker takes before it computes: torch, transformers and MLflow, imported."""
BLOCK = re.compile(r".*?\.\d+(?=\.)|\d+(?=\.)")
"""What the names of a decoder block's tensors begin with: `model.layers.0`."""


@dataclass(frozen=True)
class Weights:
    """Numbers of weights: in the layers to be quantized, the others; in the largest block, in none.

    `widest`: the most inputs of a layer. `matrix`: the weights of the largest. `hidden`: the fewest
    inputs of a layer, for hidden states are no narrower.
    """

    layers: int
    others: int
    block: int
    outside: int
    widest: int
    matrix: int
    hidden: int

    @classmethod
    def of(cls, model: Model) -> Weights:
        """Read the headers; UserError if a file is missing, damaged or cut off."""
        layers = others = outside = 0
        blocks: dict[str, int] = {}
        inputs, sizes = [0], [0]
        for name, tensor in stored(weight_files(model.path)).items():
            begin = BLOCK.match(name)
            if begin:
                blocks[begin[0]] = blocks.get(begin[0], 0) + tensor.count
            else:
                outside += tensor.count
            if begin and len(tensor.shape) == 2:
                layers += tensor.count
                inputs.append(tensor.shape[1])
                sizes.append(tensor.count)
            else:
                others += tensor.count
        largest = max(blocks.values(), default=0)
        fewest = min(inputs[1:], default=0)
        return cls(layers, others, largest, outside, max(inputs), max(sizes), fewest)

    @property
    def dense(self) -> float:
        """Return the bytes in half precision."""
        return 2.0 * (self.layers + self.others)

    def quantized(self, bits: int) -> float:
        """Return the bytes of a checkpoint; scales and zeros of groups of 32 at most added."""
        return self.layers * (bits + 1) / 8 + 2.0 * self.others


@dataclass(frozen=True)
class Room:
    """The least bytes that a cell needs on its GPU (none on a CPU), and in main memory."""

    gpu: float
    main: float


def of_cell(config: Resolved, model: Model, free: float) -> Room:
    """Return what a cell needs where `free` bytes are free on its GPU.

    A block at a time: one block's weights and what is outside the blocks, the Hessian of the widest
    layer and its factor, the largest layer in float32 twice, and hidden states of all windows,
    which stay in main memory where they would fill more than half of a GPU. GPTQModel keeps the
    model in main memory, and downstream tasks have it whole on the device.
    """
    weights = Weights.of(model)
    solves = config.quantizer not in WITHOUT_CALIBRATION
    working = 8.0 * (weights.widest**2 + weights.matrix) if solves else 0.0
    number = 4.0 if cpu_dtype(config.device) == "float32" else 2.0
    computing = number * (weights.block + weights.outside) + working
    if config.do_downstream:
        computing = max(computing, weights.dense)
    hidden = number * weights.hidden * tokens(config, model)
    kept = 0.0 if config.quantizer in ("onepass", UNQUANTIZED) else weights.dense
    if config.device == "cpu":
        return Room(0.0, LIBRARIES + max(computing + hidden, kept))
    on_host = hidden if hidden > SHARE_OF_DEVICE * free else 0.0
    return Room(computing, LIBRARIES + kept + on_host)


def tokens(config: Resolved, model: Model) -> int:
    """Return how many tokens go through the blocks at once, of calibration and evaluation."""
    calibration = config.n_calibration_samples * config.seq_len
    texts = (
        pipeline.evaluation_text(model, name, config.evaluated_len, config.eval_windows)[0].size
        for name in config.eval_corpora
    )
    return sum(texts) + (0 if config.quantizer in WITHOUT_CALIBRATION else calibration)


def free_on_card(place: Place) -> tuple[str, float] | None:
    """Return name and free bytes of the GPU that has least, of those that cells get.

    None on CPUs. The GPUs were asked in a process that has ended.
    """
    mine = [devices.cards()[number] for number in place.gpus]
    least = min(mine, key=lambda card: card.free, default=None)
    return None if least is None else (least.name, float(least.free))


def rooms(place: Place, jobs: Sequence[Job]) -> dict[str, Room]:
    """Return model → what its most demanding cell needs.

    Nothing if cells run on other machines, whose memory is not known here.
    """
    found: dict[str, Room] = {}
    if not place.here:
        return found
    card = free_on_card(place)
    for job in jobs:
        one, before = of_cell(job.config, job.model, card[1] if card else 0.0), Room(0.0, 0.0)
        before = found.get(job.model.name, before)
        found[job.model.name] = Room(max(one.gpu, before.gpu), max(one.main, before.main))
    return found


def too_large(place: Place, jobs: Sequence[Job]) -> dict[str, str]:
    """Return model → why not even one of its cells has room on this machine."""
    found = {}
    card = free_on_card(place)
    main = devices.main_memory()
    for name, room in rooms(place, jobs).items():
        if card and room.gpu > card[1]:
            where = f"on {card[0]}, which has {card[1] / GB:,.1f} GB free"
            found[name] = f"a cell needs at least {room.gpu / GB:,.1f} GB {where}"
        elif room.main > main:
            where = f"of main memory, of which {main / GB:,.1f} GB are free"
            found[name] = f"a cell needs at least {room.main / GB:,.1f} GB {where}"
    return found
