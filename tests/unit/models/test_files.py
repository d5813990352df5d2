"""Which files are the model: one answer for whoever asks, and a sentence where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colazero import models
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense
from colazero.models.files import packed_settings, refuse_shard, stored, weight_files
from colazero.quantizers import gptqmodel
from colazero.suite.plan import Weights
from colazero.types import Model

SAFE, BIN = "model.safetensors", "pytorch_model.bin"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def folder_of(folder: Path, names: Sequence[str], index: Sequence[str] = ()) -> Path:
    """Make files of these names, and an index of safetensors that names `index`."""
    for number, name in enumerate(names):
        save_file({f"tensor{number}": torch.zeros(2, 3)}, folder / name)
    if index:
        table = {f"tensor{number}": name for number, name in enumerate(index)}
        (folder / f"{SAFE}.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        ([SAFE], (), [SAFE]),
        ([SAFE, "consolidated.safetensors", "z.safetensors"], (), [SAFE]),
        ([SAFE, *PARTS], PARTS, [SAFE]),
        ([*PARTS], PARTS, [*PARTS]),
        ([*PARTS, "model-00003-of-00003.safetensors", "consolidated.safetensors"], PARTS, PARTS),
        (["gptq_model-4bit-64g.safetensors"], (), ["gptq_model-4bit-64g.safetensors"]),
        (["weights.safetensors", BIN], (), ["weights.safetensors"]),
        (["model-00001-of-00001.safetensors"], (), ["model-00001-of-00001.safetensors"]),
        ([BIN], (), [BIN]),
        ([BIN, "training_args.bin"], (), [BIN]),
    ],
)
def test_the_files_of_a_model(
    tmp_path: Path, names: list[str], index: list[str], expected: Sequence[str]
) -> None:
    found = weight_files(folder_of(tmp_path, names, index))
    assert [file.name for file in found] == list(expected)


@pytest.mark.parametrize(
    ("names", "index", "words"),
    [
        ([], (), "has no weights"),
        (["a.safetensors", "b.safetensors"], (), "'a.safetensors', 'b.safetensors'"),
        ([*PARTS], (), "does not say which of its files"),
        ([PARTS[0]], (), PARTS[0]),
        ([PARTS[1]], PARTS, PARTS[0]),
        (["pytorch_model-00001-of-00002.bin"], (), "pytorch_model-00001-of-00002.bin"),
        ([SAFE.replace("model", "m")], ["../secret.safetensors"], "../secret.safetensors"),
        (["a.safetensors"], ["/etc/passwd"], "/etc/passwd"),
    ],
)
def test_what_could_be_another_model_is_refused(
    tmp_path: Path, names: list[str], index: list[str], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        weight_files(folder_of(tmp_path, names, index))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_told(tmp_path: Path, text: str) -> None:
    folder_of(tmp_path, PARTS)
    (tmp_path / f"{SAFE}.index.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        weight_files(tmp_path)


def test_a_shard_of_bin_files_that_is_not_there_is_named(tmp_path: Path) -> None:
    table = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / f"{BIN}.index.json").write_text(json.dumps({"weight_map": table}))
    (tmp_path / table["a"]).write_bytes(b"")
    with pytest.raises(UserError, match=table["b"]):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["big-00001-of-00002.gguf", "m.Q4_K-00003-of-00009.gguf"])
def test_a_part_of_a_gguf_is_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"part \d of \d.*--merge"):
        models.check(str(tmp_path / name))
    refuse_shard(Path("Tiny-7b-of-mine.gguf"))
    refuse_shard(Path("whole-00001-of-00001.gguf"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"\xff" * 40, "damaged"),
        (b"\x02\0\0\0\0\0\0\0[]", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_safetensors_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / SAFE).write_bytes(content)
    with pytest.raises(UserError, match=words):
        stored([tmp_path / SAFE])


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0"])
def test_a_file_of_another_length_than_its_head_says_is_told(
    tmp_path: Path, change: object
) -> None:
    file = folder_of(tmp_path, [SAFE]) / SAFE
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match="its header says"):
        stored([file])


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, PARTS, PARTS)
    shutil.copy(tmp_path / PARTS[0], tmp_path / PARTS[1])
    with pytest.raises(UserError, match="tensor0"):
        stored(weight_files(tmp_path))


def test_heads_tell_shapes_and_types(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / SAFE)
    (one,) = stored(weight_files(tmp_path)).values()
    assert (one.shape, one.dtype, one.count, one.file) == ((2, 3), "BF16", 6, tmp_path / SAFE)


def test_a_second_set_of_weights_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    """Not what is planned, nor the memory, the revision, or what is loaded."""
    plain = Path(shutil.copytree(tiny_llama, tmp_path / "plain"))
    other = Path(shutil.copytree(tiny_llama, tmp_path / "other"))
    state = load_file(other / SAFE)
    save_file({k: v + 1 for k, v in state.items()}, other / "z.safetensors", {"format": "pt"})
    a, b = models.fetch(str(plain)), models.fetch(str(other))
    assert a.revision == b.revision
    assert Weights.of(a) == Weights.of(b)
    assert gptqmodel.fits_in_memory(other)
    one, two = (load_dense(m.path, "cpu").state_dict() for m in (a, b))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_under_a_name_of_their_own_are_the_model(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (folder / SAFE).rename(folder / "tiny.safetensors")
    model = models.fetch(str(folder))
    before, after = load_file(tiny_llama / SAFE), load_file(model.path / SAFE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_plan_refuses_what_loading_refuses(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    shutil.move(folder / SAFE, folder / PARTS[0])
    for ask in (
        lambda: models.check(str(folder)),
        lambda: Weights.of(Model("m", folder, "0")),
        lambda: gptqmodel.fits_in_memory(folder),
    ):
        with pytest.raises(UserError, match=PARTS[0]):
            ask()


# --- adapters: PEFT's files are named for what they are


@pytest.mark.parametrize("weights", [(), (SAFE,), (BIN,), (*PARTS,)], ids=str)
@pytest.mark.parametrize(
    "files",
    [
        ("adapter_config.json", "adapter_model.safetensors"),
        ("adapter_config.json", "adapter_model.bin"),
        ("adapter_model.safetensors",),
    ],
    ids=str,
)
def test_an_adapter_is_named_alone_and_with_weights(
    tmp_path: Path, weights: Sequence[str], files: Sequence[str]
) -> None:
    folder_of(tmp_path, [name for name in (*weights, *files) if not name.endswith(".json")])
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if "adapter_config.json" in files:
        (tmp_path / files[0]).write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match=r"adapter.*merge_and_unload") as caught:
        models.check(str(tmp_path))
    assert ("org/base" in str(caught.value)) is ("adapter_config.json" in files)
    assert ("as well as" in str(caught.value)) is bool(weights)


@pytest.mark.parametrize(
    "part", ["q_proj.lora_A.weight", "q_proj.base_layer.weight", "q_proj.lora_B.default.weight"]
)
def test_weights_with_an_adapter_that_is_not_merged_are_named(
    tiny_llama: Path, tmp_path: Path, part: str
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    state = load_file(folder / SAFE)
    state[f"model.layers.0.self_attn.{part}"] = torch.zeros(4, 128)
    save_file(state, folder / SAFE, {"format": "pt"})
    with pytest.raises(UserError, match=rf"adapter.*{part}"):
        models.fetch(str(folder))


def test_the_settings_are_found_where_the_writer_put_them(tmp_path: Path) -> None:
    settings = {"bits": 4, "group_size": 128, "quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert packed_settings(tmp_path) == {"bits": 4, "v1": True}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quantize_config.json").write_text('{"bits": 3, "checkpoint_format": "gptq_v2"}')
    assert packed_settings(tmp_path) == {"bits": 3, "v1": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4, "quant_method": "awq"}, "'awq'"),
        ({"bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"bits": 5}, "bits=5"),
    ],
)
def test_what_is_not_packed_as_gptq_or_awq_is_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(ValueError, match=message):
        packed_settings(tmp_path)
