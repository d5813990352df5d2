"""One pass for real, on tiny random models: what it writes, what rides along, what it leaves."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo

from colazero.blocks import lockstep
from colazero.blocks import weights as shards
from colazero.blocks.probe import open_sequence
from colazero.blocks.weights import Refused
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import Evaluator, evaluate
from colazero.quantizers import onepass
from colazero.quantizers.onepass import quantize
from colazero.store.provenance import manifest, weights_digest
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Text, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(6, 128), dtype=np.int32), [], {})
TEXT = Text("text", RNG.integers(10, 250, size=(5, 128)), np.arange(5) * 128)


def run(
    model: Path,
    out: Path,
    settings: QuantizationSettings = SETTINGS,
    evaluator: Evaluator | None = None,
) -> QuantizationReport:
    steps: list[tuple[int, int]] = []
    given = Work(
        model, CALIBRATION, settings, out, "cpu", lambda *step: steps.append(step), evaluator
    )
    report = quantize(given)
    assert steps[-1][0] == steps[-1][1] == len(steps)
    return report


def digest(checkpoint: Path) -> str:
    return weights_digest(manifest(checkpoint))


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onepass") / "checkpoint"
    run(tiny_llama, out)
    return out


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt", "tiny_mistral"])
def test_exactly_the_linear_layers_of_the_blocks_changed_a_little(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original = request.getfixturevalue(family)
    report = run(original, tmp_path / "checkpoint")
    before = dict(load_dense(original, "cpu").named_parameters())
    after = dict(load_dense(tmp_path / "checkpoint", "cpu").named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    rows = {f"layers.{row['layer']}.{row['module']}.weight" for row in report.modules}
    assert len(rows) == len(report.modules) == (12 if family == "tiny_opt" else 14)
    assert {name[name.index("layers.") :] for name in changed} == rows
    for name in changed:
        error = (before[name] - after[name]).float().norm() / before[name].float().norm()
        assert 0.01 < error < 0.25, f"{name}: 4 bits should lose a tenth, not {error}"
    for row in report.modules:
        assert row["loss"] > 0
        assert row["damp"] == pytest.approx(SETTINGS.damp_percent)
        assert not row["rtn_fallback"]
        assert row["samples"] == CALIBRATION.windows.size
        assert row["kernel"] in ("numba", "torch")


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt", "tiny_mistral"])
def test_what_rode_along_is_what_the_checkpoint_gives_in_one_piece(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original, out = request.getfixturevalue(family), tmp_path / "checkpoint"
    evaluator = Evaluator([TEXT, replace(TEXT, windows=TEXT.windows[:2], starts=TEXT.starts[:2])])
    run(original, out, evaluator=evaluator)
    whole = perplexity(load_dense(out, "cpu"), "text", TEXT.windows, TEXT.starts)
    by_blocks = evaluate(open_sequence(out, "cpu"), [TEXT])[0]
    assert evaluator.perplexities[0].nll.tolist() == by_blocks.nll.tolist() == whole.nll.tolist()
    assert evaluator.perplexities[1].nll == pytest.approx(whole.nll[:2])
    assert evaluator.seconds > 0
    dense = perplexity(load_dense(original, "cpu"), "text", TEXT.windows, TEXT.starts)
    assert not np.allclose(dense.nll, whole.nll, rtol=1e-6), "quantized, not the original"


def test_a_rider_changes_nothing(checkpoint: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run(tiny_llama, tmp_path / "checkpoint", evaluator=Evaluator([TEXT]))
    assert digest(tmp_path / "checkpoint") == digest(checkpoint)


def test_same_bits_again_here_and_in_another_process(
    checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    run(tiny_llama, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_onepass import run\n"
        f"run(Path({str(tiny_llama)!r}), Path({str(tmp_path / 'other')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert digest(tmp_path / "again") == digest(tmp_path / "other") == digest(checkpoint)


def codes(checkpoint: Path, layer: str) -> torch.Tensor:
    sequence = open_sequence(checkpoint, "cpu")
    return sequence.weights.stored(f"{layer}.qweight")


def test_micro_batches_in_lockstep_see_the_same_tokens(
    checkpoint: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []
    arrive = lockstep.Lockstep.arrive
    monkeypatch.setattr(
        lockstep.Lockstep, "arrive", lambda self, *a: (met.append(1), arrive(self, *a))[1]
    )
    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 256)
    first = run(tiny_llama, tmp_path / "a")
    assert len(met) == 3 * 14, "three micro-batches of two windows at each of 14 layers"
    assert {row["samples"] for row in first.modules} == {CALIBRATION.windows.size}
    again = run(tiny_llama, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert [row["loss"] for row in again.modules] == [row["loss"] for row in first.modules]
    for layer in ("q_proj", "k_proj", "v_proj"):  # after them, roundings differ
        ours, whole = (
            codes(c, f"model.layers.0.self_attn.{layer}") for c in (tmp_path / "a", checkpoint)
        )
        assert (ours.view(torch.uint8) == whole.view(torch.uint8)).float().mean() > 0.999


def short_at(monkeypatch: pytest.MonkeyPatch, arrivals: list[int]) -> None:
    """Let memory be short at these arrivals of micro-batches that may leave; at all if none."""
    asked = iter(range(10**6))
    monkeypatch.setattr(
        "colazero.blocks.lockstep.Headroom.full", lambda _: next(asked) in arrivals or not arrivals
    )


@pytest.mark.parametrize("short", [[], [0], [5], [3, 8, 9, 60]])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
def test_micro_batches_that_memory_does_not_hold_are_run_again_to_the_same_bits(
    short: list[int],
    family: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = request.getfixturevalue(family)
    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 128)
    held = run(model, tmp_path / "held", evaluator=Evaluator([TEXT]))
    assert not caplog.messages
    short_at(monkeypatch, short)
    evaluator = Evaluator([TEXT])
    again = run(model, tmp_path / "again", evaluator=evaluator)
    assert digest(tmp_path / "again") == digest(tmp_path / "held")
    assert again.modules == held.modules
    (said,) = caplog.messages
    assert "of 6 micro-batches of a block" in said
    if not short:
        assert said.startswith("memory holds 2 of 6"), "the first and the last stay"


def test_what_leaves_holds_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 128)
    inputs: list[weakref.ref[Any]] = []
    most = {"held": 0, "again": 0}

    def count(name: str) -> None:
        see, solve = onepass.Solver._see, onepass.Solver._solve

        def seen(self: Any, stream: Any, member: int, x: Any, leaves: bool) -> bool:
            inputs.append(weakref.ref(x))
            return see(self, stream, member, x, leaves)

        def solved(self: Any, layer: str) -> None:
            alive = {x.data_ptr() for ref in inputs if (x := ref()) is not None}
            most[name] = max(most[name], len(alive))
            solve(self, layer)

        with monkeypatch.context() as here:
            here.setattr(onepass.Solver, "_see", seen)
            here.setattr(onepass.Solver, "_solve", solved)
            run(tiny_llama, tmp_path / name)
        inputs.clear()

    count("held")
    short_at(monkeypatch, [])
    count("again")
    two = 2  # what the last two layers with an input of their own got: gate's and down's
    assert most == {"held": 6 * two, "again": 2 * two}


def test_layers_with_one_input_share_what_is_made_of_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colazero import gptq

    made: list[Any] = []
    prepare = gptq.prepare
    monkeypatch.setattr(gptq, "prepare", lambda *a: (made.append(a), prepare(*a))[1])
    run(tiny_llama, tmp_path / "checkpoint")
    assert len(made) == 2 * 4, "q/k/v, o, gate/up and down of two blocks"


def test_an_input_that_was_written_into_is_another() -> None:
    x = torch.randn(3, 4)
    known = onepass.Input(onepass.Gptq(SETTINGS))
    known.add(0, x, (1, 3), "cpu")
    known.add(1, x[1:], (1, 3), "cpu")
    assert known.has(0, x)
    assert known.has(1, x[1:])
    assert not known.has(0, x.clone())
    assert not known.has(1, x)
    assert not known.has(2, x)
    x[2] += 1
    assert not known.has(0, x)


def test_an_input_that_micro_batches_do_not_agree_on_is_an_error() -> None:
    known = onepass.Input(onepass.Gptq(SETTINGS))
    known.add(0, torch.randn(40, 32), (4, 10), "cpu")
    known.prepare()
    with pytest.raises(RuntimeError, match="in some micro-batches alone"):
        known.add(1, torch.randn(40, 32), (4, 10), "cpu")


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("tokens", [128, 4096])
def test_what_is_interrupted_leaves_nothing(
    error: BaseException, tokens: int, tiny_llama: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import threading

    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", tokens)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    written: list[list[str]] = []

    def progress(_done: int, _total: int) -> None:
        written.append([file.name for file in tmp_path.rglob("*.safetensors")])
        raise error

    before = threading.active_count()
    with pytest.raises(type(error)):
        quantize(Work(tiny_llama, CALIBRATION, SETTINGS, tmp_path / "out", "cpu", progress))
    assert len(written) == 1, "it was interrupted after the first block"
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


def test_an_error_in_one_micro_batch_ends_all(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colazero import gptq

    def fail(*_: Any) -> Any:
        raise ValueError("nothing to be solved")

    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 128)
    monkeypatch.setattr(gptq, "solve", fail)
    with pytest.raises(ValueError, match="nothing to be solved"):
        run(tiny_llama, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", [2, 7], ids=["at the beginning", "to run one again"])
def test_threads_that_cannot_be_started_leave_nothing_waiting(
    last: int, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    left, start = [last], threading.Thread.start

    def limited(self: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 128)
    short_at(monkeypatch, [])
    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run(tiny_llama, tmp_path / "out")
    assert left[0] < 0
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_finished_blocks_weights_are_gone(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colazero.quantizers.onepass import Solver

    alive: list[weakref.ref[Any]] = []
    largest: list[int] = []
    real = Solver.run

    def watched(self: Solver, block: Any, stream: Any) -> None:
        gc.collect()
        deadline = time.monotonic() + 60  # the thread that writes the checkpoint holds them last
        while (held := sum(ref() is not None for ref in alive)) and time.monotonic() < deadline:
            time.sleep(0.01)
        largest.append(held)
        real(self, block, stream)
        alive.extend(weakref.ref(p) for p in block.parameters())
        alive.extend(weakref.ref(t) for t in self.tensors.values())

    monkeypatch.setattr(Solver, "run", watched)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    run(tiny_llama, tmp_path / "checkpoint")
    assert largest == [0, 0]
    assert len(alive) > 50


def test_shards_are_named_and_indexed(
    checkpoint: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    run(tiny_llama, tmp_path / "c")
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [file.name for file in sorted(tmp_path.glob("c/*.safetensors"))] == names
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    one, several = (load_dense(c, "cpu").state_dict() for c in (checkpoint, tmp_path / "c"))
    assert all(torch.equal(one[name], several[name]) for name in one)


def kernel_logits(checkpoint: Path, how: str) -> torch.Tensor:
    ids = torch.from_numpy(TEXT.windows[:1])
    if how == "GPTQModel":
        from gptqmodel import BACKEND, GPTQModel

        model = GPTQModel.load(str(checkpoint), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(checkpoint, device_map="cpu")
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


@torch._dynamo.config.patch(disable=True)  # half a minute of compiling
@pytest.mark.parametrize("how", ["GPTQModel", "transformers"])
@pytest.mark.parametrize("shard", [1, 2**28])
def test_others_load_the_checkpoint_and_compute_the_same(
    how: str, shard: int, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", shard)
    run(tiny_llama, tmp_path / "c")
    theirs = kernel_logits(tmp_path / "c", how)
    with torch.inference_mode():
        ours = load_dense(tmp_path / "c", "cpu")(torch.from_numpy(TEXT.windows[:1])).logits.float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=float(theirs.abs().max()) * 0.02)


@pytest.mark.parametrize(
    "settings",
    [
        QuantizationSettings(2, 64, False, False, 0.1, False),
        QuantizationSettings(3, 32, False, True, 0.05, True),
        QuantizationSettings(8, 128, True, True, 0.01, False),
        QuantizationSettings(4, -1, False, True, 0.05, False),
    ],
    ids=["2bit-asym", "3bit", "8bit-desc_act", "whole rows"],
)
def test_settings_reach_the_checkpoint(
    settings: QuantizationSettings, tiny_llama: Path, tmp_path: Path
) -> None:
    evaluator = Evaluator([TEXT])
    run(tiny_llama, tmp_path / "out", settings, evaluator)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written == json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    for name in ("group_size", "desc_act", "sym", "damp_percent"):
        assert written[name] == getattr(settings, name)
    assert written["bits"] == settings.quant_bits
    assert written["meta"]["act_group_aware"] == settings.act_group_aware
    whole = perplexity(load_dense(tmp_path / "out", "cpu"), "text", TEXT.windows, TEXT.starts)
    assert evaluator.perplexities[0].nll.tolist() == whole.nll.tolist()


def test_the_tokenizer_is_there(checkpoint: Path, tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    text = "Bada gomo li."
    ours, original = (AutoTokenizer.from_pretrained(p)(text) for p in (checkpoint, tiny_llama))
    assert ours.input_ids == original.input_ids


def test_a_model_whose_blocks_are_not_taken_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=300, n_positions=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(Refused, match=r"is not in an nn\.Linear"):
        run(tmp_path / "gpt2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
