"""vLLM's limits are the same in a model card and in a plan."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from colazero.quantizers.supported import refused_by_vllm
from colazero.settings import RunConfig
from colazero.suite.plan import unserved


@pytest.mark.parametrize(
    ("bits", "group", "sym", "words"),
    [
        (4, 128, True, ""),
        (8, -1, True, ""),
        (4, 32, True, ""),
        (3, 128, True, "3 bits"),
        (2, 64, True, "2 bits"),
        (4, 16, True, "group_size=16"),
        (4, 192, True, "group_size=192"),
        (4, 128, False, "sym=false"),
    ],
)
@pytest.mark.parametrize("quantizer", ["onepass", "gptqmodel", "rtn"])
def test_a_plan_says_what_vllm_does_not_load(
    bits: int, group: int, sym: bool, words: str, quantizer: str
) -> None:
    config = RunConfig(quant_bits=bits, group_size=group, sym=sym, quantizer=quantizer)
    lines = unserved([SimpleNamespace(config=config)] * 2)  # type: ignore[list-item]
    assert lines == ([refused_by_vllm(bits, group, sym)] if words else [])
    assert all(words in line for line in lines)


@pytest.mark.parametrize("change", [{"save_model": "none"}, {"quantizer": "none"}])
def test_a_plan_of_checkpoints_that_nobody_loads_says_nothing(change: dict[str, str]) -> None:
    config = RunConfig(quant_bits=3, group_size=16, **change)
    assert unserved([SimpleNamespace(config=config)]) == []  # type: ignore[list-item]
