"""GPTQ (Frantar et al. 2023, arXiv 2210.17323) and round-to-nearest by GPTQModel."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero import devices
from colazero.blocks.lockstep import run_if_fits
from colazero.cache import kept_json
from colazero.errors import UserError
from colazero.models.files import copy_other_files, weight_files
from colazero.quantizers import QUANTIZERS
from colazero.types import Progress, QuantizationReport, QuantizationSettings, Work

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = 16_384
"""Calibration tokens that run at once. It changes how sums are rounded, and so the result: a batch
of 1 against one of 32 windows moved SmolLM2's perplexity by 0.5 %."""


@QUANTIZERS.register("gptqmodel")
def quantize(work: Work) -> QuantizationReport:
    """Quantize a model and write a Hugging Face GPTQ checkpoint.

    `quant_time_sec` begins after warm-up and covers GPTQModel's load and quantize, not its save.
    """
    import torch

    started = time.perf_counter()
    warm_up(work.device)
    warm_up_time_sec = time.perf_counter() - started
    windows = work.calibration.windows
    rows = [{"input_ids": torch.from_numpy(window)[None].long()} for window in windows]
    planned = at_once = min(len(rows), max(1, TOKENS_PER_BATCH // windows.shape[1]))

    def make(model_dir: Path) -> tuple[Any, Any]:
        nonlocal at_once
        done: list[tuple[Any, Any]] = []

        def run() -> None:
            model = _load(model_dir, work.settings, work.device)
            layers = model.model.config.get_text_config().num_hidden_layers
            model.layer_callback = _Layers(work.progress, layers)
            done.append((model, model.quantize(rows, batch_size=at_once)))

        while not run_if_fits(run, at_once):
            at_once = -(-at_once // 2)
        return done.pop()

    modules, quant_time_sec, save_time_sec = _saved(work, make)
    kernel = column_kernel(work.device)
    return QuantizationReport(
        quant_time_sec,
        save_time_sec,
        [_module(row) | {"kernel": kernel} for row in modules["gptq"]],
        warm_up_time_sec,
        windows_at_once=at_once,
        halved=at_once < planned,
    )


@QUANTIZERS.register("rtn")
def round_to_nearest(work: Work) -> QuantizationReport:
    """Round every weight to the nearest point of its group's grid, and write a GPTQ checkpoint.

    The calibration set, damp and the order of columns play no part. Nothing is scaled or clipped
    first: this is the control that calibration has to beat.
    """
    warm_up(work.device)

    def make(model_dir: Path) -> tuple[Any, Any]:
        from gptqmodel import GPTQModel
        from gptqmodel.quantization.config import RTNConfig

        config = RTNConfig(
            bits=work.settings.quant_bits,
            group_size=work.settings.group_size,
            sym=work.settings.sym,
            offload_to_disk=not fits_in_memory(model_dir),
        )
        model = GPTQModel.load(str(model_dir), config, device=work.device, trust_remote_code=False)
        return model, model.quantize(None)

    modules, quant_time_sec, save_time_sec = _saved(work, make)
    work.progress(1, 1)
    rows = [
        {
            "layer": int(row["layer"]),
            "module": row["module"],
            "loss": None,
            "damp": 0.0,
            "rtn_fallback": False,  # rounding is intended here
            "samples": 0,
        }
        for row in modules["weight_only_rtn"]
    ]
    return QuantizationReport(quant_time_sec, save_time_sec, rows)


def _saved(work: Work, make: Callable[[Path], tuple[Any, Any]]) -> tuple[Any, float, float]:
    """Save the model that `make` quantizes; return GPTQModel's log, the seconds of both steps."""
    # contained() changes the current directory
    model_dir, out_dir = work.model_dir.absolute(), work.out_dir.absolute()
    with contained():
        begin = time.perf_counter()
        with failures_explained(model_dir):
            model, modules = make(model_dir)
        quantized = time.perf_counter()
        model.save(str(out_dir))
        copy_other_files(model_dir, out_dir)
        saved = time.perf_counter()
    return modules, quantized - begin, saved - quantized


@contextlib.contextmanager
def failures_explained(model_dir: Path) -> Iterator[None]:
    """Raise UserError for what GPTQModel raises on a model that it cannot handle.

    Errors of memory and of the file system pass: they do not depend on the architecture.
    """
    import torch

    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:
        words = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"GPTQModel {version('gptqmodel')} cannot quantize the model in {model_dir.name!r}: "
            f"{type(error).__name__}: {words}. Use another quantizer or another model."
        ) from error


def column_kernel(device: str) -> str:
    """Return what computed GPTQModel's columns: its `cuda` extension, or plain `torch`.

    Warn where it was torch on a GPU. nvcc compiles the extension at first use, and PyTorch's wheels
    do not include nvcc. Without it GPTQModel says nothing and takes several times longer.
    """
    if not device.startswith("cuda"):
        return "torch"
    from gptqmodel.quantization.gptq_cuda import block_update_available

    if block_update_available():
        return "cuda"
    where = shutil.which("nvcc")
    why = f"{where} did not compile it" if where else "nvcc is not installed (the CUDA toolkit)"
    log.warning(
        "GPTQModel's columns were computed by plain torch, not by its CUDA extension: %s. "
        "quantizer=onepass needs no nvcc.",
        why,
    )
    return "torch"


def fits_in_memory(model_dir: Path) -> bool:
    """Return True if the model can stay in main memory; else GPTQModel offloads layers to disk."""
    return 2 * sum(file.stat().st_size for file in weight_files(model_dir)) < devices.main_memory()


class _Layers:
    """Reports progress. GPTQModel calls `layer_complete` twice per block; the second ends it."""

    def __init__(self, progress: Progress, layers: int) -> None:
        self._progress, self._layers = progress, layers

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            self._progress(layer_idx + 1, self._layers)


def _load(model_dir: Path, settings: QuantizationSettings, device: str, skip: str = "") -> Any:
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=settings.quant_bits,
        group_size=settings.group_size,
        desc_act=settings.desc_act,
        sym=settings.sym,
        damp_percent=settings.damp_percent,
        act_group_aware=settings.act_group_aware,
        offload_to_disk=not fits_in_memory(model_dir),
        dynamic={f"-:{skip}": {}} if skip else None,
    )
    return GPTQModel.load(str(model_dir), config, device=device, trust_remote_code=False)


def _module(row: dict[str, str]) -> dict[str, Any]:
    """Convert a row of GPTQModel's log. Where it fell back to rounding, `loss` holds a text."""
    loss = str(row["loss"])
    fallback = "fallback" in loss
    return {
        "layer": int(row["layer"]),
        "module": row["module"],
        "loss": None if fallback else float(loss),
        "damp": float(row["damp"]),
        "rtn_fallback": fallback,
        "samples": int(row["samples"]),
    }


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Contain GPTQModel's side effects: its ./logs folder, its printing, its random draws.

    It writes into the current directory, so a temporary one takes its place. Its output is logged
    only if it fails.
    """
    import torch

    said = io.StringIO()
    here, level = os.getcwd(), logging.root.manager.disable
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        try:
            with (
                torch.random.fork_rng(devices=[]),
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
            ):
                logging.disable(logging.INFO)
                torch.manual_seed(0)
                yield
        except Exception:
            logging.disable(level)
            log.error("GPTQModel said:\n%s", said.getvalue()[-4000:])
            raise
        finally:
            logging.disable(level)
            os.chdir(here)
            _forget()
    for line in said.getvalue().splitlines():
        if "OOM" in line:  # it continued in main memory, many times slower
            log.warning("GPTQModel: %s", line.strip())


def _forget() -> None:
    """Release the model's activations and tensors.

    GPTQModel ends each forward pass by raising the same exception object. Its traceback keeps the
    frames, and their tensors, until it is raised again.
    """
    from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION

    STOP_FORWARD_EXCEPTION.__traceback__ = STOP_FORWARD_EXCEPTION.__context__ = None


@lru_cache
def warm_up(device: str) -> None:
    """Quantize a one-layer model, so that GPTQModel compiles and starts what it needs.

    In a fresh installation its first call compiles an extension for more than half a minute. That
    belongs to no method's cost.
    """
    from transformers import LlamaConfig

    size = 64
    toy = LlamaConfig(
        hidden_size=size,
        intermediate_size=size,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_hidden_layers=1,
        vocab_size=size,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    _quantize_random(toy, device)


def _quantize_random(config: Any, device: str, *, forward_only: bool = False) -> None:
    """Quantize a random model of a configuration on four rows of 64 tokens, and discard it.

    `forward_only`: quantize none of its layers, but run them as GPTQModel runs them.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    size = 64
    words = WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="w0", bos_token="w1", eos_token="w2"
    )
    settings = QuantizationSettings(4, 32, False, True, 0.05, True)
    with tempfile.TemporaryDirectory() as folder, contained():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        del model
        tokenizer.save_pretrained(folder)
        loaded = _load(Path(folder), settings, device, skip=".*" if forward_only else "")
        loaded.quantize([{"input_ids": torch.arange(size)[None]}] * 4, batch_size=4)


def why_not(model_dir: Path, device: str) -> str:
    """Return why GPTQModel cannot run a model's blocks, '' if it can.

    It is tried once per configuration and versions, in a process of its own: GPTQModel replaces
    classes of transformers for the architectures that it loads.
    """
    versions = [f"{name} {version(name)}" for name in ("gptqmodel", "transformers")]
    told = "\n".join([(model_dir / "config.json").read_text(), *versions])
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]

    def tried() -> str:
        program = (
            f"import sys; sys.path[:0] = {sys.path!r}\n"
            "from colazero.quantizers.gptqmodel import failure\n"
            "print('tried:', failure(*sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, str(model_dir), device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = [line for line in done.stdout.splitlines() if line.startswith("tried:")]
        why = said[-1].removeprefix("tried:").strip() if said else ""
        return f"{versions[0]} fails on its blocks: {why}" if why else ""

    return str(kept_json(f"gptqmodel/{digest}.json", tried))


def failure(model_dir: str, device: str) -> str:
    """Return GPTQModel's error on a random model with few of a model's blocks, '' without one.

    Errors of memory and of the file system do not count.
    """
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_dir)
        _quantize_random(shortened(config), device, forward_only=True)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return ""


def shortened(config: Any) -> Any:
    """Return a configuration with the fewest first blocks (at least 2) that hold each kind.

    Attributes with one entry per block, such as `layer_types`, name the kinds.
    """
    text = config.get_text_config()
    depth = text.num_hidden_layers
    per_block = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, (list, tuple)) and len(value) == depth
    }
    kinds = list(zip(*per_block.values(), strict=True))
    least = max((kinds.index(kind) + 1 for kind in set(map(tuple, kinds))), default=1)
    blocks = min(depth, max(2, least))
    for name, value in per_block.items():
        setattr(text, name, value[:blocks])
    text.num_hidden_layers = blocks
    return config
