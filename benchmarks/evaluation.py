"""Evaluation and quantization, each against what it is to be held against.

`python benchmarks/evaluation.py [--json] [--repeats=N] [any parameter of single]` takes the cell
of preset demo (unless said otherwise) and measures, in one run:

- `eval_speed_ratio`: tokens a second of the quantized model / of the unquantized one, evaluated in
  turns; the best of N each.
- `perplexity_relative_difference`: from GPTQModel's own kernels on the same checkpoint and windows.
- `perplexity_in_float32`: of the same weights, what bfloat16's arithmetic costs being left out.
- `quantize_ratio_to_default_call`: seconds to load and quantize / GPTQModel's default call on the
  same calibration set (fresh process each, after one warm-up), and both perplexities.
- `cell_ratio`: seconds to quantize, save, evaluate (perplexity and divergence) and verify / the
  same with GPTQModel's default call.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._harness import options_of, read, told
from colazero.settings import RunConfig
from colazero.suite_settings import parse

KERNEL_WINDOWS = 4
"""Windows evaluated by GPTQModel's kernels too: on a CPU they are several times slower."""


def prepared(given: dict[str, str]) -> tuple[Any, Any, Any]:
    """Return the resolved configuration, the model and the calibration set."""
    from colazero import models, pipeline

    config = parse(RunConfig, {"preset": "demo"} | given)
    model = models.fetch(config.model)
    config = pipeline.resolve(config, model)
    return config, model, pipeline.calibrate(config, model)[0]


def cell_here(given: dict[str, str], out: Path) -> dict[str, float]:
    """Quantize, save, evaluate and verify as a cell does; return the seconds of its stages."""
    from colazero import pipeline

    config, model, calibration = prepared(given)
    evaluator = pipeline.evaluator(config, model)  # keeps the unquantized model's hidden states
    begin = time.perf_counter()
    report = pipeline.quantize(config, model, calibration, out, lambda *_: None, evaluator)
    evaluation = pipeline.evaluate(config, model, out, lambda *_: None, evaluator)
    pipeline.verify(config, model, out, evaluation)
    cell = time.perf_counter() - begin - (report.warm_up_time_sec or 0.0)
    return {"quantize_sec": report.quant_time_sec, "cell_sec": cell}


def cell_by_default(given: dict[str, str], out: Path) -> dict[str, float]:
    """Call GPTQModel as its README does, on the same windows; return seconds to load and quantize.

    And those of the cell: saved, then evaluated and verified from the checkpoint as here. Only what
    the checkpoint must have in common is set: bits, group size, and the other settings of the
    method. Nothing of colazero's tuning is installed in this process.
    """
    import torch

    from colazero import pipeline
    from colazero.evaluation import through_blocks
    from colazero.types import Evaluation

    config, model, calibration = prepared(given)
    from gptqmodel import GPTQModel, QuantizeConfig

    def load(path: Path) -> Any:
        settings = QuantizeConfig(
            bits=config.quant_bits,
            group_size=int(config.group_size),
            desc_act=config.desc_act,
            sym=config.sym,
            damp_percent=config.damp_percent,
            act_group_aware=bool(config.act_group_aware),
        )
        return GPTQModel.load(str(path), settings, device=config.device)

    rows = [{"input_ids": torch.from_numpy(w)[None].long()} for w in calibration.windows]
    short = [{"input_ids": rows[0]["input_ids"][:, :64]}]
    load(model.path).quantize(short)  # what is compiled once is compiled now
    begin = time.perf_counter()
    loaded = load(model.path)
    loaded.quantize(rows)
    seconds = time.perf_counter() - begin
    loaded.save(str(out))
    del loaded
    texts = pipeline.evaluation_texts(config, model)
    spent = time.perf_counter()
    known = through_blocks.references(model, config.device, texts)
    begin += time.perf_counter() - spent  # kept, as above
    found = through_blocks.perplexities(out, config.device, texts, lambda *_: None, known)
    pipeline.verify(config, model, out, Evaluation(found))
    return {"quantize_sec": seconds, "cell_sec": time.perf_counter() - begin}


def alone(
    work: Callable[[dict[str, str], Path], dict[str, float]], given: dict[str, str], out: Path
) -> dict[str, float]:
    """Do one of the two above in a process of its own; what it prints goes to stderr."""
    with ProcessPoolExecutor(1, get_context("spawn"), _print_to_stderr) as pool:
        return pool.submit(work, given, out).result()


def _print_to_stderr() -> None:
    sys.stdout = sys.stderr


def kernel_nll(checkpoint: Path, device: str, windows: Any, dtype: Any) -> list[float]:
    """Return the summed negative log-likelihoods of `windows` by GPTQModel's own kernels."""
    import torch
    from gptqmodel import GPTQModel

    from colazero.evaluation.perplexity import perplexity
    from colazero.quantizers.gptqmodel import contained

    with contained(), torch._dynamo.config.patch(disable=True):
        model = GPTQModel.load(str(checkpoint), device=device, dtype=dtype).model
        return list(perplexity(model, "", windows, windows[:, 0]).nll)


def measure(given: dict[str, str], repeats: int) -> dict[str, float]:
    """Return all figures by name."""
    import numpy as np

    from colazero import pipeline
    from colazero.evaluation.perplexity import eval_dtype, load_dense, perplexity

    config, model, _ = prepared(given)
    corpus = config.eval_corpora[0]
    text = pipeline.evaluation_text(model, corpus, config.evaluated_len, config.eval_windows)
    windows, starts = text.windows, text.starts
    with tempfile.TemporaryDirectory() as work:
        ours, default = Path(work) / "ours", Path(work) / "default"
        here, by_their_call = alone(cell_here, given, ours), alone(cell_by_default, given, default)
        print("one pass:", here, "\nGPTQModel's default call:", by_their_call, file=sys.stderr)
        both = {
            "quantized": load_dense(ours, config.device),
            "unquantized": load_dense(model.path, config.device),
        }
        best = dict.fromkeys(both, float("inf"))
        results = {}
        for _ in range(repeats):
            for name, loaded in both.items():
                begin = time.perf_counter()
                results[name] = perplexity(loaded, corpus, windows, starts)
                best[name] = min(best[name], time.perf_counter() - begin)
        some = windows[:KERNEL_WINDOWS]
        dense = perplexity(both["quantized"], corpus, some, starts[:KERNEL_WINDOWS])
        dtype = eval_dtype(ours, config.device)
        kernels = np.exp(sum(kernel_nll(ours, config.device, some, dtype)) / dense.tokens.sum())
        by_default = perplexity(load_dense(default, config.device), corpus, windows, starts)
        exact = {n: perplexity(m.float(), corpus, windows, starts) for n, m in both.items()}
    return {
        "eval_speed_ratio": best["unquantized"] / best["quantized"],
        "perplexity_relative_difference": abs(dense.perplexity / float(kernels) - 1),
        "quantize_ratio_to_default_call": here["quantize_sec"] / by_their_call["quantize_sec"],
        "cell_ratio": here["cell_sec"] / by_their_call["cell_sec"],
        "perplexity": results["quantized"].perplexity,
        "perplexity_default_call": by_default.perplexity,
        "perplexity_unquantized": results["unquantized"].perplexity,
        "perplexity_in_float32": exact["quantized"].perplexity,
        "perplexity_unquantized_in_float32": exact["unquantized"].perplexity,
        "tokens_per_sec": windows.size / best["quantized"],
        "tokens_per_sec_unquantized": windows.size / best["unquantized"],
        **here,
        **{f"{name}_default_call": value for name, value in by_their_call.items()},
    }


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options, given = read(parser, RunConfig)
    with contextlib.redirect_stdout(sys.stderr), told():  # GPTQModel greets at import
        found = measure(given, options.repeats)
    if options.json:
        print(json.dumps({name: round(value, 6) for name, value in found.items()}))
        return
    for name, value in found.items():
        print(f"{name:34} {value:12.6g}")


if __name__ == "__main__":
    main()
