"""Weights on their way: read ahead into buffers of our own, and written while the next are made."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_believe import DEVICE, machine
from safetensors.torch import load_file, save_file

from colazero.blocks import weights as module
from colazero.blocks.probe import open_sequence
from colazero.blocks.weights import Shards, Weights
from colazero.evaluation.through_blocks import Evaluator, evaluate
from colazero.quantizers.onepass import quantize
from colazero.types import CalibrationSet, QuantizationSettings, Text, Work

RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(4, 64), dtype=np.int32), (), {})
TEXT = Text("text", RNG.integers(10, 250, size=(3, 64)), np.arange(3) * 64)
SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)


def tensors(seed: int, count: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    kinds = (torch.float16, torch.bfloat16, torch.int32, torch.float32)
    return {
        f"layer{seed}.{i}": torch.randn(7 + i, 5, generator=draw).to(kinds[i % 4])
        for i in range(count)
    }


@pytest.mark.parametrize("limit", [1, 600, 2**28])
def test_files_are_what_safetensors_itself_writes_and_their_digests_are_known(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", limit)
    blocks = [tensors(seed, 6) for seed in range(4)]
    shards = Shards(tmp_path)
    for block in blocks:
        shards.add(block)
    digests = shards.close()
    files = sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert sorted(digests) == files
    assert digests == {f: hashlib.sha256((tmp_path / f).read_bytes()).hexdigest() for f in files}
    found: dict[str, Any] = {}
    for name in files:
        inside = load_file(tmp_path / name)
        save_file(inside, tmp_path / "again", metadata={"format": "pt"})
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
        found |= inside
    expected = {name: tensor for block in blocks for name, tensor in block.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(expected)


def test_files_are_written_in_another_thread_and_at_most_one_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    begun, go_on, write = threading.Semaphore(0), threading.Semaphore(0), module.write_tensors
    threads: set[int] = set()

    def slow(*given: Any) -> str:
        threads.add(threading.get_ident())
        begun.release()
        go_on.acquire()
        return write(*given)

    monkeypatch.setattr(module, "write_tensors", slow)
    shards = Shards(tmp_path)
    shards.add(tensors(0, 2))
    assert begun.acquire(timeout=10), "and `add` has returned"
    second = threading.Thread(target=shards.add, args=(tensors(1, 2),))
    second.start()
    second.join(0.2)
    assert second.is_alive(), "it waits until the first is written"
    for _ in range(2):
        go_on.release()
    second.join(10)
    assert len(shards.close()) == 2
    assert threading.get_ident() not in threads


def test_a_full_disk_is_an_error_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_tensors", full)
    shards = Shards(tmp_path)
    shards.add(tensors(0, 1))
    with pytest.raises(OSError, match="No space left"):
        shards.close()


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
def test_a_device_does_not_wait_for_the_pages_of_files(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """All blocks but the first come from the buffers, unquantized and packed."""
    original, out = request.getfixturevalue(family), tmp_path / "out"
    with machine():
        open_sequence(original, DEVICE, to_quantize=True)  # the probe, once per model
    with machine() as traffic:
        sequence = open_sequence(original, DEVICE)
        begun, waited = traffic.there, traffic.waited
        plain = evaluate(sequence, [TEXT])[0]
        block = sum(
            tensor.nbytes
            for name, tensor in load_file(original / "model.safetensors").items()
            if ".layers.0." in name
        )
        assert traffic.there - begun > 2 * block, "of two blocks"
        assert block <= traffic.waited - waited < 1.1 * block, "it waited for one"
        quantize(Work(original, CALIBRATION, SETTINGS, out, DEVICE, evaluator=Evaluator([TEXT])))
        packed = evaluate(open_sequence(out, DEVICE), [TEXT])[0]
    assert plain.nll == pytest.approx(
        evaluate(open_sequence(original, "cpu"), [TEXT])[0].nll, rel=0.02
    )
    assert packed.nll == pytest.approx(evaluate(open_sequence(out, "cpu"), [TEXT])[0].nll, rel=0.02)


def test_a_buffer_is_not_written_while_its_tensors_are_in_use(tiny_llama: Path) -> None:
    sequence = open_sequence(tiny_llama, "cpu")
    names = [
        [sequence.at(i, name) for name in block.state_dict()]
        for i, block in enumerate(sequence.blocks)
    ]
    weights = Weights(tiny_llama, sequence.model)
    expected = [{name: weights.stored(name).clone() for name in some} for some in names]
    for index in (0, 1, 0, 1, 1):
        weights.read_ahead(index, names[index], pinned=False)
        weights.take_ahead(index)
        mine = {name: weights.stored(name) for name in names[index]}
        weights.read_ahead(1 - index, names[1 - index], pinned=False)
        assert weights._ahead is not None
        assert weights._ahead._reading is not None
        weights._ahead._reading[1].result()
        assert all(torch.equal(mine[name], expected[index][name]) for name in mine)
        weights.release()
