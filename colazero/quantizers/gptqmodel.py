"""GPTQ (Frantar et al. 2023, arXiv 2210.17323) by GPTQModel, the successor of AutoGPTQ."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from colazero import devices
from colazero.blocks.lockstep import run_if_fits
from colazero.models.files import weight_files
from colazero.quantizers import QUANTIZERS
from colazero.types import (
    CalibrationSet,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    Rider,
)

TOKENS_A_BATCH = 16_384
"""Calibration tokens run at once. It changes how sums are rounded, and so the result: a batch of
1 against one of 32 windows moved SmolLM2's perplexity by 0.5 %."""


@QUANTIZERS.register("gptqmodel")
def quantize(
    model_dir: Path,
    calibration: CalibrationSet,
    settings: QuantizationSettings,
    out_dir: Path,
    device: str,
    progress: Progress,
    rider: Rider | None = None,
) -> QuantizationReport:
    """Quantize the model in `model_dir` and write a Hugging Face GPTQ checkpoint to `out_dir`.

    `quant_time_sec` begins after warm-up and covers GPTQModel's load and quantize, not its save.
    """
    import torch

    started = time.perf_counter()
    warm_up(device)
    warm_up_time_sec = time.perf_counter() - started
    rows = [{"input_ids": torch.from_numpy(window)[None].long()} for window in calibration.windows]
    seq_len = calibration.windows.shape[1]
    model_dir, out_dir = model_dir.absolute(), out_dir.absolute()  # contained() goes elsewhere
    with contained():
        begin = time.perf_counter()
        done: list[tuple[Any, Any]] = []

        def work(at_once: int) -> None:
            model = _load(model_dir, settings, device)
            model.layer_callback = _Layers(progress, model.model.config.num_hidden_layers)
            done.append((model, model.quantize(rows, batch_size=at_once)))

        at_once = min(len(rows), max(1, TOKENS_A_BATCH // seq_len))
        planned = at_once
        while not run_if_fits(partial(work, at_once), at_once):
            at_once = -(-at_once // 2)
        model, log = done.pop()
        quantized = time.perf_counter()
        model.save(str(out_dir))
        saved = time.perf_counter()
    kernel = column_kernel(device)
    return QuantizationReport(
        quantized - begin,
        saved - quantized,
        [_module(row) | {"kernel": kernel} for row in log["gptq"]],
        warm_up_time_sec,
        windows_at_once=at_once,
        halved=at_once < planned,
    )


def column_kernel(device: str) -> str:
    """Return what GPTQModel's loop over columns ran on: its `cuda` extension, or plain `torch`.

    A warning says that it was torch on a GPU. The extension is compiled by nvcc at first use, which
    PyTorch's wheels do not bring; without it GPTQModel says nothing and takes several times longer.
    """
    if not device.startswith("cuda"):
        return "torch"
    from gptqmodel.quantization.gptq_cuda import block_update_available

    if block_update_available():
        return "cuda"
    where = shutil.which("nvcc")
    why = f"{where} did not compile it" if where else "nvcc is not installed (the CUDA toolkit)"
    logging.getLogger(__name__).warning(
        "GPTQModel's columns were computed by plain torch, not by its CUDA extension: %s. "
        "quantizer=onepass needs no nvcc.",
        why,
    )
    return "torch"


def fits_in_memory(model_dir: Path) -> bool:
    """Tell whether the model can stay in main memory while it is quantized.

    If not, GPTQModel writes finished layers to disk.
    """
    return 2 * sum(file.stat().st_size for file in weight_files(model_dir)) < devices.main_memory()


class _Layers:
    """GPTQModel calls `layer_complete` twice a layer; the second time its layers are packed."""

    def __init__(self, progress: Progress, layers: int) -> None:
        self._progress, self._layers = progress, layers

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            self._progress(layer_idx + 1, self._layers)


def _load(model_dir: Path, settings: QuantizationSettings, device: str) -> Any:
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=settings.quant_bits,
        group_size=settings.group_size,
        desc_act=settings.desc_act,
        sym=settings.sym,
        damp_percent=settings.damp_percent,
        act_group_aware=settings.act_group_aware,
        offload_to_disk=not fits_in_memory(model_dir),
    )
    return GPTQModel.load(str(model_dir), config, device=device, trust_remote_code=False)


def _module(row: dict[str, str]) -> dict[str, Any]:
    """Type a row of GPTQModel's log; where it fell back to rounding, `loss` is words."""
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
    """Keep GPTQModel's habits inside: its ./logs folder, its printing, its random draws.

    It writes into the current directory, so that is a temporary one meanwhile. What it prints is
    kept and shown only if it fails.
    """
    import torch

    said = io.StringIO()
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as elsewhere:
        os.chdir(elsewhere)
        try:
            with (
                torch.random.fork_rng(devices=[]),
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
                _quiet_logging(),
            ):
                torch.manual_seed(0)
                yield
            for line in said.getvalue().splitlines():
                if "OOM" in line:  # it went on in main memory, many times slower
                    logging.getLogger(__name__).warning("GPTQModel: %s", line.strip())
        except Exception:
            logging.getLogger(__name__).error("GPTQModel said:\n%s", said.getvalue()[-4000:])
            raise
        finally:
            os.chdir(here)
            _forget()


def _forget() -> None:
    """Let go of the model's activations and tensors.

    GPTQModel stops a forward pass by raising one and the same exception each time, which keeps the
    frames that it went through until it is raised again.
    """
    from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION

    STOP_FORWARD_EXCEPTION.__traceback__ = STOP_FORWARD_EXCEPTION.__context__ = None


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


@lru_cache
def warm_up(device: str) -> None:
    """Quantize a model of one tiny layer: GPTQModel compiles and starts what it needs then.

    In a fresh installation the first call compiles an extension, over half a minute, which is no
    part of any method's cost.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = 64
    config = LlamaConfig(
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
    words = WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="w0", bos_token="w1", eos_token="w2"
    )
    with tempfile.TemporaryDirectory() as folder, contained():
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = _load(Path(folder), QuantizationSettings(4, 32, False, True, 0.05, True), device)
        model.quantize([{"input_ids": torch.arange(size)[None]}] * 4, batch_size=4)
