"""Tokens are those of the joined documents, kept on disk once, whatever happens to the disk."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filling import fill_twenty

from colazero import cache
from colazero.cache import new_entry
from colazero.calibration.sets import cut
from colazero.corpora import tokens as module
from colazero.corpora.tokens import SEPARATOR, build_pool, need_tokens, tokenizer_digest
from colazero.errors import UserError
from colazero.types import Corpus, Model, Selection, Span, TokenPool

DOCUMENTS = ["Bado kemi.", "Zora <s> fin</s> <pad>", "", "Größe: 東京 🙂", "x" * 300, "last"]
CORPUS = Corpus("toy", "1", DOCUMENTS, ["held out"])


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "tokens").iterdir())


def never(*_: Any) -> Any:
    raise AssertionError("tokenised again")


def test_the_tokens_are_those_of_the_joined_documents(tokenizer: Any, tmp_path: Path) -> None:
    pool = build_pool(CORPUS, tokenizer, tmp_path)
    assert pool.tokens.dtype == np.int32
    assert len(pool.starts) == len(pool.stops) == len(DOCUMENTS)
    text = SEPARATOR.join(DOCUMENTS)
    whole = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert pool.tokens.tolist() == whole
    assert tokenizer.decode(pool.tokens) == text


def test_each_document_is_found_and_a_blank_line_between_each_two(
    tokenizer: Any, tmp_path: Path
) -> None:
    pool = build_pool(CORPUS, tokenizer, tmp_path)
    for text, start, stop in zip(DOCUMENTS, pool.starts, pool.stops, strict=True):
        assert tokenizer.decode(pool.tokens[start:stop]) == text
    for stop, start in zip(pool.stops[:-1], pool.starts[1:], strict=True):
        assert tokenizer.decode(pool.tokens[stop:start]) == SEPARATOR
    assert pool.starts[0] == 0
    assert pool.stops[-1] == len(pool.tokens)


def test_special_tokens_written_in_a_text_stay_text(tokenizer: Any, tmp_path: Path) -> None:
    assert tokenizer.bos_token_id in tokenizer("Zora <s> fin", add_special_tokens=False).input_ids
    pool = build_pool(CORPUS, tokenizer, tmp_path)
    assert pool.forbidden == {0, 1, 2} == set(tokenizer.all_special_ids)
    assert not np.isin(pool.tokens, list(pool.forbidden)).any()


def test_building_leaves_the_tokenizer_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    before = tokenizer("Zora <s> fin").input_ids
    build_pool(CORPUS, tokenizer, tmp_path)
    assert tokenizer("Zora <s> fin").input_ids == before


def test_a_tokenizer_that_was_told_to_cut_and_pad_does_not(tokenizer: Any, tmp_path: Path) -> None:
    digest = tokenizer_digest(tokenizer)
    try:
        tokenizer(DOCUMENTS, truncation=True, max_length=4, padding="max_length")
        assert tokenizer_digest(tokenizer) == digest
        pool = build_pool(CORPUS, tokenizer, tmp_path)
    finally:
        tokenizer(DOCUMENTS)  # takes the settings back
    assert tokenizer.decode(pool.tokens) == SEPARATOR.join(DOCUMENTS)


def test_the_digest_changes_with_the_tokenizer(tokenizer: Any) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    other = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    other.add_tokens(["bado"])
    other_fast = PreTrainedTokenizerFast(tokenizer_object=other)
    assert tokenizer_digest(other_fast) != tokenizer_digest(tokenizer)


def test_a_slow_tokenizer_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"object .*tokenizer\.json"):
        tokenizer_digest(object())


def test_the_second_time_nothing_is_tokenized_and_the_disk_is_mapped(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_pool(CORPUS, tokenizer, tmp_path)
    monkeypatch.setattr(module, "_tokenize", never)
    second = build_pool(CORPUS, tokenizer, tmp_path)
    for pool in (first, second):
        assert isinstance(pool.tokens.base, np.memmap)
        assert not pool.tokens.flags.writeable
    assert np.array_equal(first.tokens, second.tokens)


def test_another_revision_or_tokenizer_or_corpus_is_another_entry(
    tokenizer: Any, tmp_path: Path
) -> None:
    build_pool(CORPUS, tokenizer, tmp_path)
    for corpus in (
        Corpus("toy", "2", DOCUMENTS, []),
        Corpus("other", "1", DOCUMENTS, []),
        Corpus("toy", "1", DOCUMENTS[:-1], []),
    ):
        before = len(entries(tmp_path))
        build_pool(corpus, tokenizer, tmp_path)
        assert len(entries(tmp_path)) == before + 1


def _flip_a_byte(entry: Path) -> None:
    file = entry / "tokens.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a flipped bit": _flip_a_byte,
    "a file cut short": lambda entry: (entry / "tokens.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{"
    ),
    "an empty file": lambda entry: (entry / "starts.npy").write_bytes(b""),
    "a file missing": lambda entry: (entry / "stops.npy").unlink(),
    "half written": lambda entry: (entry / "digests.json").unlink(),
    "digests cut short": lambda entry: (entry / "digests.json").write_text('{"tokens": "'),
    "digests of nothing": lambda entry: (entry / "digests.json").write_text("[]"),
    "digests not text": lambda entry: (entry / "digests.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_again(tokenizer: Any, tmp_path: Path, damage: str) -> None:
    good = np.array(build_pool(CORPUS, tokenizer, tmp_path).tokens)
    (entry,) = entries(tmp_path)
    DAMAGE[damage](entry)
    assert np.array_equal(build_pool(CORPUS, tokenizer, tmp_path).tokens, good)
    assert entries(tmp_path) == [entry], "mended in its place, and no draft left behind"
    assert cache._read(entry, module.ARRAYS) is not None


def test_the_tokenizer_is_loaded_only_where_there_is_something_to_tokenize(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path))
    first = build_pool(CORPUS, tokenizer)
    vocabulary, model = module.vocabulary.__wrapped__, Model("m", tmp_path, "revision")
    monkeypatch.setattr(module, "tokenizer", lambda _: tokenizer)
    known = vocabulary(model)
    monkeypatch.setattr(module, "tokenizer", never)
    assert known == vocabulary(model) == module.vocabulary_of(tokenizer)
    again = module.open_pool(CORPUS, known, never)
    assert np.array_equal(again.tokens, first.tokens)
    assert again.forbidden == first.forbidden
    (file,) = (tmp_path / "vocabularies").iterdir()
    file.write_text('{"digest": ')
    monkeypatch.setattr(module, "tokenizer", lambda _: tokenizer)
    assert vocabulary(model) == known
    monkeypatch.setattr(module, "tokenizer", never)
    with pytest.raises(AssertionError):
        vocabulary(Model("m", tmp_path, "another revision"))


def test_files_are_read_through_only_where_they_changed_since_they_were_found_good(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_pool(CORPUS, tokenizer, tmp_path)
    (entry,) = entries(tmp_path)
    read: list[str] = []
    digest = cache.file_digest
    monkeypatch.setattr(cache, "file_digest", lambda file: read.append(file.name) or digest(file))
    build_pool(CORPUS, tokenizer, tmp_path)
    assert read == []
    (entry / "stops.npy").touch()  # unchanged, but who can know
    build_pool(CORPUS, tokenizer, tmp_path)
    assert sorted(read) == ["starts.npy", "stops.npy", "tokens.npy", "written.npy"]
    build_pool(CORPUS, tokenizer, tmp_path)
    assert len(read) == 4
    (entry / "verified.json").write_text("{")
    build_pool(CORPUS, tokenizer, tmp_path)
    assert len(read) == 8


def test_an_interrupted_build_leaves_nothing(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_file: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "file_digest", stop)
        with pytest.raises(KeyboardInterrupt):
            build_pool(CORPUS, tokenizer, tmp_path)
    assert entries(tmp_path) == []
    assert len(build_pool(CORPUS, tokenizer, tmp_path).tokens)


def test_an_entry_that_vanishes_right_away_does_no_harm(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_read", lambda *_: None)
    pool = build_pool(CORPUS, tokenizer, tmp_path)
    assert tokenizer.decode(pool.tokens) == SEPARATOR.join(DOCUMENTS)


def test_an_entry_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "kind" / "entry"
    with new_entry(target) as draft:
        (draft / "file").write_text("first")
        assert not target.exists()
        inode = draft.stat().st_ino
    assert target.stat().st_ino == inode, "moved in one step, not copied"
    with new_entry(target) as draft:
        (draft / "file").write_text("second")
    assert (target / "file").read_text() == "first", "who comes later gives way"
    with pytest.raises(ZeroDivisionError), new_entry(tmp_path / "kind" / "other"):
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == [target]


def test_two_processes_that_fill_the_same_entry_do_no_harm(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, str(file), DOCUMENTS, tmp_path, results)
    workers = [context.Process(target=fill_twenty, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in range(40)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(set(found)) == 1
    assert len(entries(tmp_path)) == 20, "no draft left behind"
    assert {file.name for file in entries(tmp_path)[0].iterdir()} == {
        *("digests.json", "verified.json", "tokens.npy", "starts.npy", "stops.npy"),
        "written.npy",
    }


TOY = TokenPool(
    ["a", "b"],
    np.arange(10, 30, dtype=np.int32),
    np.array([0, 11]),
    np.array([10, 20]),
    frozenset({1, 2}),
)


def windows(*spans: tuple[int, int]) -> Selection:
    return Selection([[Span(0, start, stop)] for start, stop in spans], {"thought": 1})


def test_cut_gives_the_windows_the_spans_and_the_notes() -> None:
    selection = Selection([[Span(0, 0, 3), Span(1, 11, 12)], [Span(0, 4, 8)]], {"thought": 1})
    chosen = cut(TOY, selection, 2, 4)
    assert chosen.windows.tolist() == [[10, 11, 12, 21], [14, 15, 16, 17]]
    assert chosen.windows.dtype == np.int32
    assert chosen.spans == selection.windows
    assert chosen.notes == {"thought": 1}


@pytest.mark.parametrize(
    "selection",
    [windows((0, 4)), windows((0, 4), (4, 7)), windows((0, 4), (4, 8), (8, 12)), windows()],
    ids=["too few", "too short", "too many", "none"],
)
def test_cut_refuses_what_is_not_n_windows_of_seq_len(selection: Selection) -> None:
    with pytest.raises(ValueError, match="asked for 2 × 4 tokens"):
        cut(TOY, selection, 2, 4)


def test_cut_refuses_a_special_token() -> None:
    tokens = TOY.tokens.copy()
    tokens[5] = 2
    pool = TokenPool(TOY.texts, tokens, TOY.starts, TOY.stops, TOY.forbidden)
    with pytest.raises(UserError, match=r"window 2 of 2 .* token 2"):
        cut(pool, windows((0, 4), (4, 8)), 2, 4)
    cut(pool, windows((0, 4), (6, 10)), 2, 4)


def test_cut_refuses_a_window_twice_and_says_what_to_do() -> None:
    pool = TokenPool(TOY.texts, np.tile(TOY.tokens[:4], 5), TOY.starts, TOY.stops, frozenset())
    with pytest.raises(UserError, match=r"only 1 of the 2 .*n_calibration_samples"):
        cut(pool, windows((0, 4), (4, 8)), 2, 4)


def test_a_place_that_is_chosen_twice_is_the_methods_fault() -> None:
    with pytest.raises(ValueError, match="2 times, tokens 4 to 8"):
        cut(TOY, windows((4, 8), (4, 8)), 2, 4)


def test_the_digest_of_a_calibration_set_depends_on_shape_and_tokens() -> None:
    one = cut(TOY, windows((0, 4), (4, 8)), 2, 4).digest
    assert one == cut(TOY, windows((0, 4), (4, 8)), 2, 4).digest
    assert one != cut(TOY, windows((0, 8)), 1, 8).digest
    assert one != cut(TOY, windows((0, 4), (5, 9)), 2, 4).digest
    assert len(one) == 16


def test_a_set_in_another_order_is_the_same_set() -> None:
    one, other = (cut(TOY, windows(*spans), 2, 4) for spans in (((0, 4), (4, 8)), ((4, 8), (0, 4))))
    assert one.digest == other.digest
    assert one.order_digest != other.order_digest


@pytest.mark.parametrize(("available", "advice"), [(19, "at most 4 windows"), (3, "shorter")])
def test_too_few_tokens_are_told_with_both_counts(available: int, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        need_tokens(available, 5, 4, "toy")
    for word in ("'toy'", "need 20 tokens", f"has {available}", advice):
        assert word in str(caught.value)


def test_just_enough_tokens_are_enough() -> None:
    need_tokens(20, 5, 4, "toy")


def test_a_special_token_that_only_the_tokenizers_file_knows_is_counted(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    assert module.written_special(["a <|im_start|> and <s>"], own) == 1
    own.backend_tokenizer.add_special_tokens(["<|im_start|>"])
    assert module.written_special(["a <|im_start|> and <s>"], own) == 2
