"""Quantize a model directory with AutoGPTQ, in an environment of its own (conda.yaml).

For comparisons with checkpoints that AutoGPTQ made; GPTQModel is its successor. The newest torch
and transformers that it works with have published holes (CVE-2025-32434, CVE-2026-24747): a file
of pickled weights can run code. So only safetensors are read.
"""

from __future__ import annotations

import argparse
import json
import os
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
    """Link a model's safetensors into `folder`, with a config that transformers 4.38 reads.

    Nothing else reaches the older libraries. Exits if the model has no safetensors.
    """
    if not any(model.glob("*.safetensors")):
        sys.exit(
            f"the model {model} has no .safetensors file. Convert it: AutoGPTQ's libraries "
            "are too old to read other weights safely."
        )
    for file in model.iterdir():
        if file.suffix in (".safetensors", ".json") and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(older_config(config)))


def visible(device: str, before: str | None) -> str:
    """Return the CUDA_VISIBLE_DEVICES that leaves of those visible `before` only `cuda:N`.

    AutoGPTQ takes the first device, whatever is asked for.
    """
    index = device.partition(":")[2] or "0"
    return before.split(",")[int(index)] if before else index


def quantize(options: argparse.Namespace) -> dict[str, float]:
    """Write the checkpoint to `options.out` and return the seconds that it took."""
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
        quantized = time.perf_counter()
        model.save_quantized(str(options.out))
        saved = time.perf_counter()
    # The model's own config, which AutoGPTQ read in an older form.
    written = json.loads((options.model / "config.json").read_text())
    about = json.loads((options.out / "quantize_config.json").read_text())
    written["quantization_config"] = about | {"quant_method": "gptq"}
    (options.out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return {"quant_time_sec": quantized - begin, "save_time_sec": saved - quantized}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "calibration", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("bits", "group_size", "desc_act", "sym", "damp_percent", "device"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible(options.device, before)
    import torch  # only now: it looks at that variable once

    if not torch.cuda.is_available():
        sys.exit("AutoGPTQ quantizes on a CUDA device only, and torch finds none here.")
    seconds = quantize(options)
    (options.out / "seconds.json").write_text(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
