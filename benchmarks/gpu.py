"""What a cell costs at the size of real models, beside GPTQModel's own default call and the floor.

    python benchmarks/gpu.py                      # all three shapes, on the first CUDA device
    python benchmarks/gpu.py --shapes opt-6.7b
    python benchmarks/gpu.py --tiny               # a toy on the CPU: that the script works
    python benchmarks/gpu.py --cpu --shapes llama-2-7b  # 4 windows of 512 tokens; 13 GB in /tmp

The models have the published shapes and random weights, made on the spot: time and memory do not
depend on what the weights say. The floor is what the arithmetic and the bytes alone would take at
the speed that this device reaches in one large product and one large copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._memory import peak_resident

LLAMA = {"vocab_size": 32_000, "max_position_embeddings": 4096}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 32},
    "llama-2-13b": LLAMA
    | {"hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40}
    | {"num_attention_heads": 40, "num_key_value_heads": 40},
    "opt-6.7b": {"vocab_size": 50_272, "max_position_embeddings": 2048, "hidden_size": 4096}
    | {"ffn_dim": 16_384, "word_embed_proj_dim": 4096}
    | {"num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"vocab_size": 512, "max_position_embeddings": 256, "hidden_size": 128}
    | {"intermediate_size": 256, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 4},
}
STAGES = ("select", "quantize", "save", "evaluate", "verify")


def make_model(shape: str, device: str, folder: Path) -> None:
    """Write a random model of the shape, and a tokenizer trained on the corpus."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedTokenizerFast

    from colazero import corpora

    sizes = SHAPES[shape]
    config = (OPTConfig if "ffn_dim" in sizes else LlamaConfig)(**sizes)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=sizes["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpora.load("sotu").train[: 4 * sizes["vocab_size"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(folder)


def ours(folder: Path, device: str, samples: int, seq_len: int, windows: int) -> dict[str, float]:
    """Return the seconds of each stage of a cell, and the peaks of memory in GiB."""
    from colazero import models, pipeline, preconditions
    from colazero.blocks.probe import open_sequence
    from colazero.evaluation.through_blocks import Evaluator, evaluate
    from colazero.settings import RunConfig
    from colazero.types import Text

    model = models.fetch(str(folder))
    config = RunConfig(
        model=str(folder), n_calibration_samples=samples, seq_len=seq_len, device=device
    )
    config = preconditions.resolve(config, model)
    calibration, times = pipeline.calibrate(config, model)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(0).integers(3, vocabulary, size=(windows, seq_len))
    rider = Evaluator([Text("random", ids, ids[:, 0])])
    out = folder / "out"
    report = pipeline.quantize(config, model, calibration, out, lambda *_: None, rider)
    found = {
        "select": times["selection_time_sec"],
        "quantize": report.quant_time_sec,
        "save": report.save_time_sec,
        "evaluate": rider.seconds,
    }
    one = Text("random", ids[:1], ids[:1, 0])
    _, found["verify"] = timed(lambda: evaluate(open_sequence(out, device), [one]), device)
    found["checkpoint_gib"] = sum(f.stat().st_size for f in (folder / "out").iterdir()) / 2**30
    return found | peaks(device)


def default_call(folder: Path, device: str, samples: int, seq_len: int, _: int) -> dict[str, float]:
    """Return the seconds that GPTQModel takes as its documentation calls it.

    A toy goes first here as it does in `ours`: what is started and compiled once is not counted.
    """
    import torch

    from colazero.quantizers.gptqmodel import contained

    with contained():
        from gptqmodel import GPTQModel, QuantizeConfig

        def load(path: Path) -> Any:
            config = QuantizeConfig(bits=4, group_size=128)
            return GPTQModel.load(str(path), config, device=device)

        ids = torch.randint(3, 500, (samples, 1, seq_len), generator=torch.Generator())
        with tempfile.TemporaryDirectory() as toy:
            make_model("tiny", device, Path(toy))
            load(Path(toy)).quantize([{"input_ids": ids[0, :, :64]}])
        begin = time.perf_counter()
        model = load(folder)
        model.quantize([{"input_ids": row} for row in ids])
        quantized = time.perf_counter()
        model.save(str(folder / "default"))
        saved = time.perf_counter()
    return {"quantize": quantized - begin, "save": saved - quantized} | peaks(device)


def timed(work: Callable[[], Any], device: str) -> tuple[Any, float]:
    """Return what `work` returns and its seconds, the device's queue emptied."""
    import torch

    begin = time.perf_counter()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return result, time.perf_counter() - begin


def peaks(device: str) -> dict[str, float]:
    """Return the most memory that was in use, in GiB."""
    import torch

    cuda = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0
    return {"peak_host_gib": peak_resident(), "peak_cuda_gib": cuda}


def floor(shape: str, device: str, samples: int, seq_len: int, windows: int) -> dict[str, float]:
    """Return the seconds that counted arithmetic and bytes take at the device's own best speed.

    Quantize: one forward pass, a Hessian for each distinct input (tokens·in²: of a symmetric
    product half is enough), its inverse's factor (4/3·in³) and the error passed on (out·in²).
    Evaluate: one forward pass with the head. Attention is causal: half of all pairs.
    Save: the bytes of the 4-bit weights, at the speed of a copy.
    """
    sizes = SHAPES[shape]
    h, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    m = sizes.get("intermediate_size", sizes.get("ffn_dim"))
    gated = "intermediate_size" in sizes
    linear = 4 * h * h + (3 if gated else 2) * h * m
    attention = seq_len * h  # multiply-adds a token: scores and values, half of the window each
    tokens, evaluated = samples * seq_len, windows * seq_len
    solve = 3 * (4 / 3 * h**3) + 4 / 3 * m**3 + 4 * h * h**2 + (2 if gated else 1) * m * h**2
    hessians = tokens * (3 * h**2 + m**2)
    quantize = layers * (tokens * 2 * (linear + attention) + hessians + solve + h * m**2)
    head = 2 * h * sizes["vocab_size"]
    evaluate = evaluated * (layers * 2 * (linear + attention) + head)
    flops, bandwidth = device_speed(device)
    weights = layers * linear + 2 * h * sizes["vocab_size"]
    return {
        "quantize": quantize / flops,
        "save": weights / 2 / bandwidth,
        "evaluate": evaluate / flops,
    }


def device_speed(device: str, size: int | None = None) -> tuple[float, float]:
    """Return the best of ten: FLOP/s of a product in what models compute in, bytes/s of a copy."""
    import torch

    from colazero.devices import cpu_dtype

    n = size or (8192 if device != "cpu" else 1024)
    dtype = torch.float16 if device != "cpu" else getattr(torch, cpu_dtype(device))
    a = torch.randn(n, n, device=device, dtype=dtype)
    product = min(timed(lambda: a @ a, device)[1] for _ in range(10))
    copy = min(timed(lambda: a.clone(), device)[1] for _ in range(10))
    return 2 * n**3 / product, 2 * a.nbytes / copy


def table(results: dict[str, Any]) -> str:
    """Return the results as a markdown table, seconds and GiB."""
    lines = ["| shape | stage | here | GPTQModel's default call | floor |", "|---|---|--:|--:|--:|"]
    for shape, found in results.items():
        for stage in (*STAGES, "peak_host_gib", "peak_cuda_gib"):
            cells = [found.get(who, {}).get(stage) for who in ("here", "default", "floor")]
            words = ["–" if value is None else f"{value:.3g}" for value in cells]
            lines.append(f"| {shape} | {stage} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="llama-2-7b,llama-2-13b,opt-6.7b")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="without GPTQModel's call")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, size = "cuda:0", (128, 2048, 166)
    if options.tiny or options.cpu:
        device, size = "cpu", (8, 128, 6) if options.tiny else (4, 512, 4)
    if options.worker:
        who, folder = options.worker
        print(json.dumps({"here": ours, "default": default_call}[who](Path(folder), device, *size)))
        return
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                "this needs a CUDA device; --tiny shows on a CPU that the script works, --cpu "
                "takes a real shape and few tokens there."
            )
    results: dict[str, Any] = {}
    for shape in ["tiny"] if options.tiny else options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            make_model(shape, device, Path(folder))
            results[shape] = {"floor": floor(shape, device, *size)}
            # each in a process of its own: peaks, patches, caches
            for who in ("here",) if options.cpu else ("here", "default"):
                command = [sys.executable, __file__, "--worker", who, folder]
                command += ["--tiny"] * options.tiny + ["--cpu"] * options.cpu
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results[shape][who] = json.loads(said.stdout.splitlines()[-1])
    print(json.dumps(results) if options.json else table(results))


if __name__ == "__main__":
    main()
