"""GPTQModel for real, on tiny random models: what it writes can be read, and is reproducible."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file, save_file

from colazero.blocks.probe import open_sequence
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense
from colazero.gptq import dequantize
from colazero.quantizers import QUANTIZERS
from colazero.store.provenance import manifest, weights_digest
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
WINDOWS = np.random.default_rng(0).integers(10, 250, size=(4, 128), dtype=np.int32)
CALIBRATION = CalibrationSet(WINDOWS, [], {})


def quantize(
    model: Path,
    out: Path,
    settings: QuantizationSettings = SETTINGS,
    quantizer: str = "gptqmodel",
    calibration: CalibrationSet = CALIBRATION,
) -> QuantizationReport:
    steps: list[tuple[int, int]] = []
    given = Work(model, calibration, settings, out, "cpu", lambda *step: steps.append(step))
    report = QUANTIZERS.get(quantizer)(given)
    assert steps[-1][0] == steps[-1][1], "progress ends with the last layer"
    return report


def digest(checkpoint: Path) -> str:
    return weights_digest(manifest(checkpoint))


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama") / "checkpoint"
    quantize(tiny_llama, out)
    return out


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt", "tiny_mistral"])
def test_dense_weights_are_near_the_originals(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original = request.getfixturevalue(family)
    report = quantize(original, tmp_path / "checkpoint")
    assert report.quant_time_sec > 0
    assert len(report.modules) == (12 if family == "tiny_opt" else 14)
    assert report.rtn_fallbacks == 0
    assert report.damp_max == pytest.approx(0.05)
    before, after = (  # what GPTQModel does not quantize it saves in bfloat16
        {n: p.bfloat16() for n, p in load_dense(folder, "cpu").named_parameters()}
        for folder in (original, tmp_path / "checkpoint")
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len(report.modules), "exactly the quantized layers changed"
    for name in changed:
        error = (before[name] - after[name]).float().norm() / before[name].float().norm()
        assert 0.01 < error < 0.25, f"{name}: 4 bits should lose a tenth, not {error}"


def test_layers_may_have_bits_of_their_own(tiny_llama: Path, tmp_path: Path) -> None:
    """As with GPTQModel's `dynamic`, which config.json names by patterns."""
    quantize(tiny_llama, tmp_path / "8", replace(SETTINGS, quant_bits=8), "rtn")
    quantize(tiny_llama, tmp_path / "4", quantizer="rtn")
    eight, four = (load_file(tmp_path / bits / "model.safetensors") for bits in "84")
    expected = load_dense(tmp_path / "8", "cpu").state_dict()
    layer = "model.layers.1.mlp.up_proj."
    mixed = {name: (eight if name.startswith(layer) else four)[name] for name in four}
    save_file(mixed, tmp_path / "4" / "model.safetensors")
    found = load_dense(tmp_path / "4", "cpu").state_dict()
    assert torch.equal(found[f"{layer}weight"], expected[f"{layer}weight"])
    by_block = open_sequence(tmp_path / "4", "cpu").weights
    dense = by_block.dense(f"{layer}weight", "cpu", expected[f"{layer}weight"].dtype)
    assert torch.equal(dense, expected[f"{layer}weight"])


def test_a_model_that_does_not_fit_gives_the_same(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(tiny_llama, tmp_path / "whole")
    small = SimpleNamespace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: small)
    quantize(tiny_llama, tmp_path / "checkpoint")
    assert digest(tmp_path / "checkpoint") == digest(tmp_path / "whole")


# Of v1 only 3 bits: for others this function of GPTQModel adds 1 inside each code, and not to the
# words as its own writer and kernels do (tests/unit/test_loading.py holds us against the writer).
@pytest.mark.parametrize(
    ("bits", "v1"), [(2, False), (3, False), (3, True), (4, False), (8, False)]
)
def test_dequantizing_agrees_with_gptqmodels_own(bits: int, v1: bool, tmp_path: Path) -> None:
    from gptqmodel.utils.model_dequant import convert_gptq_file
    from safetensors.torch import save_file

    inputs, outputs, group = 96, 64, 32
    draw = torch.Generator().manual_seed(bits)
    words = {"low": -(2**31), "high": 2**31, "dtype": torch.int32, "generator": draw}
    parts = {
        "qweight": torch.randint(size=(inputs * bits // 32, outputs), **words),
        "qzeros": torch.randint(size=(inputs // group, outputs * bits // 32), **words),
        "scales": torch.rand(inputs // group, outputs, generator=draw).half(),
        "g_idx": torch.randperm(inputs, generator=draw).int() // group,
    }
    save_file({f"layer.{name}": value for name, value in parts.items()}, tmp_path / "file")
    form = "gptq" if v1 else "gptq_v2"
    settings = {"bits": bits, "checkpoint_format": form}
    theirs = convert_gptq_file(tmp_path / "file", torch.float32, settings, "cpu")["layer.weight"]
    assert torch.equal(dequantize(**parts, bits=bits, v1=v1).T, theirs)


def test_a_checkpoint_with_a_weight_missing_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    for gone in ("model.norm.weight", "model.layers.0.mlp.up_proj.scales"):
        rest = {name: value for name, value in tensors.items() if name != gone}
        save_file(rest, tmp_path / "c" / "model.safetensors")
        with pytest.raises(UserError, match=gone):
            load_dense(tmp_path / "c", "cpu")


@torch._dynamo.config.patch(disable=True)  # half a minute of compiling
def test_dense_weights_compute_what_gptqmodels_kernel_computes(checkpoint: Path) -> None:
    from gptqmodel import BACKEND, GPTQModel

    kernel = GPTQModel.load(str(checkpoint), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    ids = torch.from_numpy(WINDOWS[:1]).long()
    with torch.inference_mode():
        theirs = kernel(input_ids=ids).logits.float()
        ours = load_dense(checkpoint, "cpu")(input_ids=ids).logits.float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(theirs.abs().max()) * 0.02)


@torch._dynamo.config.patch(disable=True)
def test_transformers_loads_the_checkpoint(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, device_map="cpu")
    ids = torch.from_numpy(WINDOWS[:1]).long()
    with torch.inference_mode():
        a = theirs(input_ids=ids).logits.float().flatten()
        b = load_dense(checkpoint, "cpu")(input_ids=ids).logits.float().flatten()
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999


def test_the_checkpoint_has_what_others_need_to_load_it(checkpoint: Path) -> None:
    names = {file.name for file in checkpoint.iterdir()}
    assert {"config.json", "quantize_config.json", "tokenizer.json", "quant_log.csv"} <= names
    assert any(name.endswith(".safetensors") for name in names)


def test_same_bits_again_here_and_in_another_process(
    checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    quantize(tiny_llama, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(checkpoint)
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_quantizer import quantize\n"
        f"quantize(Path({str(tiny_llama)!r}), Path({str(tmp_path / 'other')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert digest(tmp_path / "other") == digest(checkpoint)


def test_leaves_no_logs_and_the_random_state_alone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = torch.random.get_rng_state()
    quantize(tiny_llama, tmp_path / "out")
    assert list(here.iterdir()) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_relative_paths_mean_the_users_directory(
    tiny_llama: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(tiny_llama)
    monkeypatch.chdir(tmp_path)
    quantize(Path("model"), Path("out"))
    assert digest(tmp_path / "out") == digest(checkpoint)
    load_dense(Path("out"), "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        QuantizationSettings(2, 64, False, False, 0.1, False),
        QuantizationSettings(3, 32, False, True, 0.05, True),
        QuantizationSettings(8, 128, True, True, 0.01, False),
    ],
    ids=["2bit-asym", "3bit", "8bit-desc_act"],
)
def test_settings_reach_the_checkpoint(
    settings: QuantizationSettings, tiny_llama: Path, tmp_path: Path
) -> None:
    import json

    quantize(tiny_llama, tmp_path / "out", settings)
    written = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert written["bits"] == settings.quant_bits
    assert written["group_size"] == settings.group_size
    assert written["desc_act"] == settings.desc_act
    assert written["sym"] == settings.sym
    assert written["meta"]["damp_percent"] == settings.damp_percent
    assert written["meta"]["act_group_aware"] == settings.act_group_aware
    load_dense(tmp_path / "out", "cpu")
