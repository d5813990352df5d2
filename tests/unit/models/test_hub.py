"""A download that broke off is no model; an earlier one stands in for a lost connection alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from colazero import models
from colazero.errors import UserError
from colazero.models import source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a download of `a/tiny` left in the cache: two shards, an index, a tokenizer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    models.fetch.cache_clear()
    repository = tmp_path / "hub" / "models--a--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = Path(shutil.copytree(tiny_llama, repository / "snapshots" / COMMIT))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    table = {}
    for number, names in enumerate((list(state)[:9], list(state)[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in names}, folder / file, {"format": "pt"})
        table |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return folder


@pytest.mark.usefixtures("no_hub")
def test_a_whole_snapshot_needs_no_hub(snapshot: Path) -> None:
    models.check("a/tiny")
    assert models.fetch("a/tiny").path == snapshot


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "gone",
    [
        ["model-00002-of-00002.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["model.safetensors.index.json"],
        ["model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ["config.json"],
    ],
    ids=len,
)
def test_a_snapshot_that_broke_off_is_no_model(snapshot: Path, gone: list[str]) -> None:
    for name in gone:
        (snapshot / name).unlink()
    for ask in (models.check, models.fetch):
        with pytest.raises(UserError, match=r"cannot be reached, and .*Connect to the network"):
            ask("a/tiny")


@pytest.mark.usefixtures("no_hub")
def test_a_shard_without_some_of_its_tensors_is_no_model(snapshot: Path) -> None:
    file = snapshot / "model-00002-of-00002.safetensors"
    state = load_file(file)
    state.pop("model.norm.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"'model.norm.weight'"):
        models.fetch("a/tiny")


@pytest.mark.usefixtures("snapshot")
@pytest.mark.parametrize(
    ("status", "stands_in"), [(400, False), (401, False), (429, False), (500, True), (503, True)]
)
def test_the_cache_stands_in_for_a_hub_that_serves_nobody(
    hub_says: Callable[..., None], status: int, stands_in: bool
) -> None:
    hub_says(status)
    if stands_in:
        models.check("a/tiny")
    else:
        with pytest.raises(UserError):
            models.check("a/tiny")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no")])
def test_a_download_that_failed_otherwise_is_not_replaced_by_an_earlier_one(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    assert snapshot.is_dir()
    with pytest.raises(UserError, match="could not be downloaded"):
        source.download("a/tiny", None)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model*.safetensors"]),
        (["model.safetensors.index.json", "pytorch_model.bin"], ["model*.safetensors"]),
        (["gptq_model-4bit.safetensors"], ["*.safetensors"]),
        (["pytorch_model.bin.index.json", "x/y.safetensors"], ["pytorch_model*.bin"]),
        (["README.md"], []),
    ],
)
def test_one_set_of_weights_is_fetched(names: list[str], patterns: list[str]) -> None:
    assert source._weights(names) == patterns
