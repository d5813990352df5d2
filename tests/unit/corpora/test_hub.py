"""Any data set in the Hub's layouts is read: splits, configurations and fields, or a sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from colazero import corpora
from colazero.corpora import hub
from colazero.corpora.chat import Conversation
from colazero.errors import UserError

TALK = [{"role": "user", "content": "Bado?"}, {"role": "assistant", "content": "kemi"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    corpora.load.cache_clear()
    yield
    corpora.load.cache_clear()


def texts(split: str, count: int = 20, field: str = "text") -> list[dict[str, Any]]:
    return [{field: f" {split} {number}\n", "id": number} for number in range(count)]


def parquet(folder: Path, **splits: list[dict[str, Any]]) -> None:
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        pd.DataFrame(rows).to_parquet(file)


def packed(folder: Path, **splits: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)


def configured(folder: Path, **configs: dict[str, list[dict[str, Any]]]) -> None:
    head = "---\nconfigs:\n"
    for config, splits in configs.items():
        head += f"- config_name: {config}\n  data_files:\n"
        for split, rows in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(folder / config / f"{split}.parquet")
            head += f"  - split: {split}\n    path: {config}/{split}.parquet\n"
    (folder / "README.md").write_text(head + "---\n# A data set\n")


@pytest.mark.parametrize("layout", [parquet, packed])
@pytest.mark.parametrize("splits", [("train",), ("train", "test"), ("train", "validation")])
def test_splits_have_their_parts(
    layout: Callable[..., None], splits: tuple[str, ...], tmp_path: Path
) -> None:
    layout(tmp_path / "set", **{split: texts(split) for split in splits})
    corpus = corpora.load(f"hf:{tmp_path}/set")
    assert {text.split()[0] for text in corpus.train} == {"train"}
    assert {text.split()[0] for text in corpus.test} == {splits[-1]}
    assert (len(corpus.train), len(corpus.test)) == ((18, 2) if len(splits) == 1 else (20, 20))
    assert corpus.train[0] == " train 0\n", "as it is"


def test_a_configuration_a_split_and_a_field_can_be_named(tmp_path: Path) -> None:
    configured(
        tmp_path / "set",
        en={"train": texts("en", field="body"), "test": texts("en-test", field="body")},
        de={"train_sft": texts("de", field="body"), "test_sft": texts("de-test", field="body"),
            "train_gen": texts("gen", field="body")},
    )  # fmt: skip
    name = f"hf:{tmp_path}/set"
    assert "de-test" in corpora.load(f"{name}:de::body").test[0]
    corpus = corpora.load(f"{name}:de:train_gen:body")
    assert ("gen" in corpus.train[0], "de-test" in corpus.test[0]) == (True, True)
    assert "en" in corpora.load(f"{name}:en:test:body").train[0]
    for wrong, words in (
        (name, ["several configurations", "en", "de", "CONFIG"]),
        (f"{name}:fr", ["could not be read"]),
        (f"{name}:de:nothing:body", ["no split 'nothing'", "train_sft"]),
        (f"{name}:de:train_sft", ["row 1", "'body'"]),
        (f"{name}:de:train_sft:nothing", ["no field 'nothing'"]),
    ):
        with pytest.raises(UserError) as caught:
            corpora.load(wrong)
        assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_conversations_are_read_from_lists(form: str, tmp_path: Path) -> None:
    turns = TALK
    if form == "conversations":
        turns = [{"from": "human", "value": "Bado?"}, {"from": "gpt", "value": "kemi"}]
    last = {"content": "zora", "role": "user", "value": "zora", "from": "human"}
    more = [{key: last[key] for key in turns[0]}]
    parquet(tmp_path / "set", train=[{form: more * n + turns, "source": "x"} for n in (3, 2, 1, 0)])
    one = corpora.load(f"hf:{tmp_path}/set").test[0]
    assert isinstance(one, Conversation)
    assert one.messages == TALK


def test_no_more_is_streamed_than_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "TRAIN_DOCUMENTS", 7)
    monkeypatch.setattr(hub, "TEST_DOCUMENTS", 3)
    packed(tmp_path / "set", train=texts("train"), test=texts("test"))
    corpus = corpora.load(f"hf:{tmp_path}/set")
    assert (len(corpus.train), len(corpus.test)) == (7, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:nothing", "hf:ORG/NAME"),
        ("hf:a/b:c:d:e:f", "hf:ORG/NAME"),
        ("hf:./nowhere", "no such folder"),
        ("hf:", "hf:ORG/NAME"),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_fetched(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        corpora.check(name)
    assert words in str(caught.value)


def test_naming_a_data_set_of_the_hub_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "opened", None)
    corpora.check("hf:org/name@main:config:train:field")
    found = hub.named("org/name@refs/pr/1:config:train")
    assert (found.repository, found.revision) == ("org/name", "refs/pr/1")
    assert (found.config, found.split, found.field) == ("config", "train", "")


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_it_is_told_what_can_be_done() -> None:
    with pytest.raises(UserError) as caught:
        corpora.load("hf:org/name")
    for words in ("cannot be reached", "'org/name'", "not in the local cache", "file:PATH"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("no_hub")
def test_without_the_hub_the_cache_is_read_at_its_commit(tmp_path: Path) -> None:
    import datasets

    parquet(tmp_path / "name", train=texts("train"), test=texts("test"))
    builder = datasets.load_dataset_builder(str(tmp_path / "name"))
    builder.download_and_prepare()
    commit = "0123456789abcdef0123456789abcdef01234567"
    target = tmp_path / "datasets-cache" / "org___name" / "default" / "0.0.0" / commit
    target.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(target)
    corpus = corpora.load("hf:org/name")
    assert {text.split()[0] for text in corpus.train} == {"train"}
    assert corpus.revision.startswith(commit)
    with pytest.raises(UserError, match=f"revision {commit}, not 'other'"):
        corpora.load("hf:org/name@other")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", "is not on the Hub"),
        (404, "RevisionNotFound", "no revision 'main'"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (400, "", "could not be read"),
    ],
)
def test_what_the_hub_answers_is_told(
    hub_says: Callable[..., None], status: int, code: str, words: str
) -> None:
    hub_says(status, code)
    with pytest.raises(UserError) as caught:
        corpora.load("hf:org/name@main")
    assert words in str(caught.value)
    assert "'org/name'" in str(caught.value)


def test_the_commit_is_part_of_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Hub calls main now is pinned: all that is read is read at that commit."""
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    def info(_: Any, name: str, revision: Any, **__: Any) -> Any:
        asked.append((name, revision))
        return SimpleNamespace(sha="c0ffee")

    rows = {"train": texts("train"), "test": texts("test")}

    def streamed(name: str, config: str, split: str, revision: str, streaming: bool) -> Any:
        assert (name, config, revision, streaming) == ("org/name", "default", "c0ffee", True)
        return rows[split]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda *_, **how: ["default"])
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **how: list(rows))
    monkeypatch.setattr(datasets, "load_dataset", streamed)
    corpus = corpora.load("hf:org/name@main")
    assert asked == [("org/name", "main")]
    assert corpus.revision.startswith("c0ffee-")
    assert corpus.name == "hf:name:default"
    place = {"path": "org/name", "config_name": "default", "revision": "c0ffee"}
    assert corpus.source == place
