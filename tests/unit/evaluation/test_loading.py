"""A checkpoint's settings are found wherever its writer put them, and other kinds refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colazero.evaluation.perplexity import quantization_settings


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
