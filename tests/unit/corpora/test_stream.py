"""A text in pieces has the tokens that it has whole, with every kind of tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from colazero.corpora import stream as module
from colazero.corpora.stream import stream
from colazero.corpora.tokens import SEPARATOR, build_pool
from colazero.types import Corpus


def texts(count: int = 300) -> list[str]:
    """Documents of all lengths, with what tokenizers treat specially."""
    rng = random.Random(0)
    odd = [
        "",
        " ",
        "\n",
        "Größe 東京 🙂",
        "  lead",
        "trail  ",
        "(a)",
        "I'd",
        "a" * 40,
        "1234567 89",
    ]
    words = ["bado", "kemi", "zora", "the", "don't", "naïve", "x9", "—", "\t", "A.B"]
    plain = [" ".join(rng.choices(words, k=rng.randrange(1, 60))) for _ in range(count)]
    return [text for pair in zip(plain, rng.choices(odd, k=count), strict=True) for text in pair]


def llama() -> Tokenizer:
    """No pre-tokenizer, and a space in front of every text."""
    found = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    found.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    return trained(found, trainers.BpeTrainer(vocab_size=700, special_tokens=special))


def byte_level() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(found, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))


def with_prefix() -> Tokenizer:
    found = byte_level()
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return found


def metaspace() -> Tokenizer:
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(found, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"]))


def unigram() -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.normalizer = normalizers.NFKC()
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>"])
    return trained(found, trainer)


def word_piece() -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(found, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"]))


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


KINDS = [llama, byte_level, with_prefix, metaspace, unigram, word_piece]


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 700)
    monkeypatch.setattr(module, "CONTEXT", 150)
    monkeypatch.setattr(module, "BATCH", 3)


def joined(documents: list[str], tokenizer: Tokenizer) -> list[int]:
    parts = list(stream(documents, SEPARATOR, tokenizer))
    at = np.concatenate([part.at for part in parts])
    assert (np.diff(at) >= 0).all()
    return np.concatenate([part.ids for part in parts]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_the_tokens_of_the_whole(kind: Callable[[], Tokenizer]) -> None:
    tokenizer, documents = kind(), texts()
    whole = tokenizer.encode(SEPARATOR.join(documents), add_special_tokens=False).ids
    assert joined(documents, tokenizer) == whole


@pytest.mark.parametrize(
    "text", ["a" * 9000, "ab" * 3000, " " * 5000, "\n" * 5000, "東" * 3000, "x" * 1000 + " y" * 900]
)
@pytest.mark.parametrize("kind", [llama, byte_level, metaspace])
def test_a_text_without_borders_too(kind: Callable[[], Tokenizer], text: str) -> None:
    tokenizer, documents = kind(), ["begin", text, "end"]
    whole = tokenizer.encode(SEPARATOR.join(documents), add_special_tokens=False).ids
    assert joined(documents, tokenizer) == whole


@pytest.mark.parametrize("documents", [[], [""], ["a"], ["", ""], ["a", ""]])
def test_hardly_a_text(documents: list[str]) -> None:
    tokenizer = byte_level()
    whole = tokenizer.encode(SEPARATOR.join(documents)).ids
    assert [i for part in stream(documents, SEPARATOR, tokenizer) for i in part.ids] == whole


@pytest.mark.parametrize("kind", [llama, byte_level])
def test_a_token_belongs_to_the_document_in_which_it_begins(
    kind: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    tokenizer, documents = kind(), texts()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pool = build_pool(Corpus("toy", "1", documents, []), fast, tmp_path)
    tokenizer.post_processor = None
    offsets = tokenizer.encode(SEPARATOR.join(documents), add_special_tokens=False).offsets
    begin = 0
    for document, start, stop in zip(documents, pool.starts, pool.stops, strict=True):
        inside = [i for i, (a, _) in enumerate(offsets) if begin <= a < begin + len(document)]
        assert inside == list(range(start, stop)) or not document
        begin += len(document) + len(SEPARATOR)


def test_the_pool_decodes_to_the_text_with_a_tokenizer_like_llamas(tmp_path: Path) -> None:
    tokenizer, documents = llama(), texts()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pool = build_pool(Corpus("toy", "1", documents, []), fast, tmp_path)
    assert tokenizer.decode(pool.tokens.tolist()) == " " + SEPARATOR.join(documents)


def test_special_tokens_that_a_text_spells_out_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    documents = ["a <s> b", "</s></s>", "<pad", "none"]
    pool = build_pool(Corpus("toy", "1", documents, []), tokenizer, tmp_path)
    assert pool.written == 3
    assert not np.isin(pool.tokens, list(pool.forbidden)).any()
