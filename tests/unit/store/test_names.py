"""Names for a store: taken by MLflow's own validators and by file systems, and never two in one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_logged_model_name, _validate_metric_name

from colazero.store import client

KINDS = (client.model_name, client.file_name, client.result_name, client.corpus_name)
ODD = (
    *("mymod:last·seed1·tiny-0.1b", "opt-6.7b", "a·b", "a__b", "a_·b", "a·_b", "a___b", "a____b"),
    *("o'neil", 'say "so"', "50%", "a/b", "a_b", "a.b"),
    *(
        "",
        ".",
        "..",
        "../up",
        "/tmp/walk/corpus.txt",
        "Prüfung",
        "模型",
        "a b",
        "a\tb\n",
        "x" * 400,
    ),
    *("x" * 401, "file:a/text.txt", "file:b/text.txt", "file:a_text.txt", "file:.", "file:/"),
    *("file:" + "folder/" * 60 + "corpus.txt", "\udcff", "a#b?c&d", "A:b", "A.b"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD)
def test_a_store_takes_every_name(kind: object, name: str, tmp_path: Path) -> None:
    assert callable(kind)
    made = kind(name)
    _validate_metric_name(f"perplexity.{made}")
    assert len(f"downstream.{made}") <= 250
    (tmp_path / f"windows_{made}.parquet").touch()
    (tmp_path / made).mkdir()
    if kind is client.model_name:
        _validate_logged_model_name(made)
    assert made.isascii()


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_names_become_one(kind: object) -> None:
    assert callable(kind)
    assert len({kind(name) for name in ODD}) == len(ODD)


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_two_texts_become_one_name(one: str, other: str) -> None:
    for kind in (*KINDS, client.run_name, client.dataset_name):
        assert (kind(one) == kind(other)) == (one == other)
        assert len(kind(one)) <= 250


def test_names_that_need_no_mending_stay_as_they_are() -> None:
    cell = client.run_name("cola_zero", "seed42", "smollm2-135m")
    assert cell == "cola_zero·seed42·smollm2-135m"
    assert client.model_name(cell) == client.file_name(cell) == "cola_zero__seed42__smollm2-135m"
    assert client.corpus_name("wikitext2") == "wikitext2"
    assert client.result_name("arc_easy.acc") == "arc_easy.acc"
    assert client.run_name("mymod:last·seed1·tiny-0.1b") == "mymod:last·seed1·tiny-0.1b"


def test_a_corpus_of_ones_own_is_called_by_its_files_stem() -> None:
    stem, _, digest = client.corpus_name("file:some where/my.corpus.jsonl").partition("-")
    assert stem == "my_corpus"
    assert len(digest) == 8
