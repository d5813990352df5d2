"""Packed GPTQ layers, written by GPTQModel's own code, come back as the codes that were packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from colazero.evaluation.loading import dequantized, quantization_settings

IN, OUT, GROUP = 128, 64, 32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["in order", "desc_act", "no g_idx"])
@pytest.mark.parametrize("v1", [True, False])
def test_what_gptqmodel_packs_is_unpacked(bits: int, order: str, v1: bool) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    generator = torch.Generator().manual_seed(bits)
    group = torch.arange(IN) // GROUP
    if order == "desc_act":
        group = group[torch.randperm(IN, generator=generator)]
    scales = torch.rand(OUT, IN // GROUP, generator=generator) + 0.5
    zeros = torch.randint(0, 2**bits, scales.shape, generator=generator).float()
    codes = torch.randint(0, 2**bits, (OUT, IN), generator=generator)
    weight = (codes - zeros[:, group]) * scales[:, group]
    layer = torch.nn.Linear(IN, OUT, bias=False)
    layer.weight.data = weight.clone()
    packed = TorchLinear(
        bits=bits,
        group_size=GROUP,
        desc_act=order == "desc_act",
        sym=False,
        in_features=IN,
        out_features=OUT,
        bias=False,
        register_buffers=True,
    )
    packed.pack_original(layer, scales, zeros, group.int())
    if v1:
        convert_gptq_v2_to_v1_format_module(packed, _QuantizeConfig(bits))
    g_idx = None if order == "no g_idx" else packed.g_idx
    tensors = (packed.qweight, packed.qzeros, packed.scales, g_idx)
    found = dequantized(*tensors, bits=bits, v1=v1).T
    expected = (codes - zeros[:, group]) * scales.half().float()[:, group]
    torch.testing.assert_close(found, expected)


class _QuantizeConfig:
    """What GPTQModel's conversion asks of its configuration."""

    def __init__(self, bits: int) -> None:
        self.bits, self.pack_dtype, self.runtime_format = bits, torch.int32, None


def test_the_settings_are_found_where_the_writer_put_them(tmp_path: Path) -> None:
    settings = {"bits": 4, "group_size": 128, "quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert quantization_settings(tmp_path) == {"bits": 4, "v1": True}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").write_text('{"bits": 3, "checkpoint_format": "gptq_v2"}')
    assert quantization_settings(tmp_path) == {"bits": 3, "v1": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4, "quant_method": "awq"}, "'awq'"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"bits": 5}, "5 bits"),
    ],
)
def test_what_is_no_gptq_is_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(ValueError, match=message):
        quantization_settings(tmp_path)
