"""Quantize a model directory with AutoGPTQ, in an environment of its own (conda.yaml)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path


def older_config(config: dict[str, object]) -> dict[str, object]:
    """Return a config.json of transformers 5 as transformers 4.38 reads it.

    The older one would not see `rope_parameters` and take its own base without a word.
    """
    rope = config.get("rope_parameters")
    found = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype")}
    found.setdefault("torch_dtype", config.get("dtype") or "float16")
    if isinstance(rope, dict):
        if rope.get("rope_type", "default") != "default":
            sys.exit(f"this model has rope_type={rope['rope_type']!r}: AutoGPTQ knows `default`.")
        found["rope_theta"] = rope["rope_theta"]
    return found


def copy_with_older_config(model: Path, folder: Path) -> None:
    """Link a model's files into `folder` beside a config that transformers 4.38 reads."""
    for file in model.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(older_config(config)))


def quantize(options: argparse.Namespace) -> float:
    """Write the checkpoint to `options.out` and return the seconds that quantizing took."""
    import torch
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
    from safetensors.torch import load_file

    config = BaseQuantizeConfig(
        bits=int(options.bits),
        group_size=int(options.group_size),
        desc_act=options.desc_act == "true",
        sym=options.sym == "true",
        damp_percent=float(options.damp_percent),
    )
    windows = load_file(options.calibration)["input_ids"].long()
    examples = [{"input_ids": w[None], "attention_mask": torch.ones_like(w)[None]} for w in windows]
    with tempfile.TemporaryDirectory() as folder:
        copy_with_older_config(options.model, Path(folder))
        begin = time.perf_counter()
        model = AutoGPTQForCausalLM.from_pretrained(folder, config)
        model.quantize(examples)
        seconds = time.perf_counter() - begin
        model.save_quantized(str(options.out))
    # The model's own config, which AutoGPTQ read in an older form.
    written = json.loads((options.model / "config.json").read_text())
    about = json.loads((options.out / "quantize_config.json").read_text())
    written["quantization_config"] = about | {"quant_method": "gptq"}
    (options.out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calibration", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("bits", "group_size", "desc_act", "sym", "damp_percent"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("AutoGPTQ quantizes on a CUDA device only, and torch finds none here.")
    seconds = quantize(options)
    (options.out / "seconds.json").write_text(json.dumps({"quant_time_sec": seconds}) + "\n")


if __name__ == "__main__":
    main()
