"""llama.cpp's importance matrix, read back with gguf and held against the whole model's inputs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from colazero.blocks.weights import eval_dtype
from colazero.errors import UserError
from colazero.quantizers import imatrix

WINDOWS = np.random.default_rng(0).integers(10, 250, size=(40, 128), dtype=np.int32)
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output"}
NAMES |= {"self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
NAMES |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}


def test_it_is_the_sum_of_squares_of_each_layers_inputs(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = tmp_path / "imatrix.gguf"
    assert imatrix.write(tiny_llama, WINDOWS, "cpu", "random of sotu", file) == 14
    dtype = eval_dtype(tiny_llama, "cpu")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
    sums: dict[str, Any] = defaultdict(float)
    for name, layer in model.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            index, _, own = name.partition(".")
            key = f"blk.{index}.{NAMES[own]}.weight"

            def hook(_: Any, args: Any, key: str = key) -> None:
                sums[key] += args[0].double().square().sum((0, 1)).numpy()

            layer.register_forward_pre_hook(hook)
    with torch.no_grad():
        for window in WINDOWS:
            model(torch.from_numpy(window)[None].long())
    reader = GGUFReader(file)
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert set(read) == {f"{key}.{part}" for key in sums for part in ("in_sum2", "counts")}
    for key, expected in sums.items():
        tensor = read[f"{key}.in_sum2"]
        assert tensor.shape.tolist() == [len(expected), 1], "as GGUF counts: inputs, matrices"
        assert tensor.data[0] == pytest.approx(expected, rel=0.02)
        assert read[f"{key}.counts"].data.tolist() == [[WINDOWS.size]]
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix"
    assert fields["imatrix.datasets"] == ["random of sotu"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == WINDOWS.shape


def test_an_architecture_that_llama_cpp_lacks_is_refused(tiny_opt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no architecture for model_type 'opt'"):
        imatrix.write(tiny_opt, WINDOWS, "cpu", "", tmp_path / "imatrix.gguf")
    assert not list(tmp_path.iterdir())
