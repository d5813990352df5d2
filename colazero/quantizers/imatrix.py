"""llama.cpp's importance matrix of a calibration set (its tools/imatrix, GGUF since 2025).

For each linear layer of the blocks: the sum of x² of each input over all tokens, the diagonal of
GPTQ's Hessian, under the unquantized model, and the number of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazero.errors import UserError
from colazero.models.files import model_type
from colazero.quantizers.onepass import TOKENS_PER_BATCH

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARCHITECTURES = {"mistral": "llama", "mixtral": "llama"}
"""Model types whose architecture llama.cpp calls otherwise."""


def write(model_dir: Path, windows: NDArray[Any], device: str, dataset: str, file: Path) -> int:
    """Write the importance matrix of windows [windows, tokens] to `file`; return its layers.

    `dataset`: the windows' source, for the file. UserError if llama.cpp has no name for the
    architecture or a layer, or if the model cannot be run block by block.
    """
    import gguf
    import numpy as np

    from colazero.blocks.probe import linears, open_sequence
    from colazero.gptq.pruning import Norms

    sequence = open_sequence(model_dir, device, to_quantize=True)
    architecture, names = _names(model_type(model_dir), len(sequence))
    stream = sequence.begin(windows, max(1, TOKENS_PER_BATCH // windows.shape[1]))
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, len(windows))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, windows.shape[1])
    count = 0
    for index in range(len(sequence)):
        layers = linears(sequence.blocks[index])
        norms = {name: Norms(layer.in_features, device) for name, layer in layers.items()}
        with sequence.filled(index):
            sequence.observe(index, stream, norms)
        for layer, one in norms.items():
            known = sequence.at(index, layer)
            name = names.get_name(known)
            if name is None:
                raise UserError(f"imatrix=true: llama.cpp has no name for layer {known!r}.")
            squares = one.squares.cpu().numpy()[None]
            writer.add_tensor(f"{name}.weight.in_sum2", squares)
            writer.add_tensor(f"{name}.weight.counts", np.array([[one.tokens]], dtype=np.float32))
            count += 1
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def _names(kind: str, blocks: int) -> tuple[str, Any]:
    """Return llama.cpp's name of a model type, and its map of tensor names; UserError if none."""
    import gguf

    wanted = ARCHITECTURES.get(kind, kind)
    plain = wanted.replace("_", "").replace("-", "")
    for architecture, name in gguf.MODEL_ARCH_NAMES.items():
        if plain == name.replace("-", ""):
            return name, gguf.get_tensor_name_map(architecture, blocks)
    raise UserError(f"imatrix=true: llama.cpp's gguf has no architecture for model_type {kind!r}.")
