"""`windows=document`: windows begin with documents, whatever the method, and losses are counted."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from colazero import models, pipeline
from colazero.corpora.chat import Conversation
from colazero.corpora.documents import joined, lay
from colazero.corpora.tokens import pool_of, tokenizer
from colazero.errors import UserError
from colazero.selection import METHODS, find, windows_at
from colazero.settings import RunConfig
from colazero.types import Model, Selection, TokenPool

WRITTEN = ("random_tokens", "self")
"""Methods whose windows are not from the corpus."""
CHOOSING = [
    name
    for name in METHODS.names()
    if name not in WRITTEN and name != "cola" and not getattr(find(name), "uses_proxy", False)
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def pool_with(lengths: list[int], between: int = 0) -> TokenPool:
    """Return a pool of documents of these lengths, `between` tokens after each."""
    sizes = np.array(lengths) + between
    starts = np.cumsum(sizes) - sizes
    tokens = np.arange(int(sizes.sum()), dtype=np.int32)
    texts = [f"text {number}" for number in range(len(lengths))]
    return TokenPool(texts, tokens, starts, starts + lengths, frozenset())


@pytest.mark.parametrize(
    ("lengths", "between", "begins", "documents", "lost"),
    [
        ([10, 10, 10], 0, [0, 10, 20], [0, 1, 2], [0, 0, 0]),
        ([25, 10, 4, 8], 0, [0, 25, 35], [0, 1, 2], [15, 0, 2]),
        ([4, 4, 4, 12], 0, [0, 12], [0, 3], [2, 2]),
        ([9, 9, 0, 9, 3], 1, [0, 10, 21], [0, 1, 3], [0, 0, 0]),
        ([3, 30], 0, [0], [0], [23]),
        ([4, 3], 0, [], [], []),
    ],
    ids=["fit", "longer", "packed", "separators", "one", "too few"],
)
def test_documents_are_laid_one_after_the_other(
    lengths: list[int], between: int, begins: list[int], documents: list[int], lost: list[int]
) -> None:
    laid = lay(pool_with(lengths, between), 10)
    assert laid.begins.tolist() == begins
    assert laid.documents.tolist() == documents
    assert laid.lost.tolist() == lost
    expected = [token for begin in begins for token in range(begin, begin + 10)]
    assert laid.pool.tokens.tolist() == expected


def test_what_the_template_writes_before_a_window_does_not_stand_there_twice() -> None:
    pool = pool_with([10, 10, 10])
    tokens = pool.tokens.copy()
    tokens[[0, 20]] = 7
    own = TokenPool(pool.texts, tokens, pool.starts, pool.stops, frozenset())
    assert lay(own, 9, (7,)).begins.tolist() == [1, 10, 21]


def test_windows_know_their_documents_without_the_template() -> None:
    pool = replace(pool_with([6, 6, 12, 12]), plain=pool_with([1, 2, 4, 8]))
    said = lay(pool, 12).pool.contents
    assert (said.stops - said.starts).tolist() == [1 + 2, 4, 8]


def test_windows_of_conversations_keep_their_roles() -> None:
    talks = [Conversation([{"role": "user", "content": str(n)}], {}) for n in range(3)]
    found = joined(talks)
    assert isinstance(found, Conversation)
    assert [message["content"] for message in found.messages] == ["0", "1", "2"]
    assert type(joined([*talks, "a text"])) is str


@pytest.fixture
def talk_model(tiny_llama: Path, tmp_path: Path) -> Model:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "talks"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return models.fetch(str(folder))


@pytest.fixture
def config(paragraphs: list[str], tmp_path: Path) -> RunConfig:
    rows = [{"prompt": paragraphs[n], "completion": paragraphs[n + 1]} for n in range(0, 600, 2)]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"corpus": f"file:{path}", "eval_corpora": (f"file:{path}",), "device": "cpu"}
    return RunConfig(**given, n_calibration_samples=8, seq_len=64, windows="document")


@pytest.mark.parametrize("method", CHOOSING)
@pytest.mark.parametrize("bos", ["first", "always"])
def test_every_window_of_every_method_begins_with_a_conversation(
    method: str, bos: str, config: RunConfig, talk_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    asked = config.model_copy(update={"method": method, "bos": bos})
    pipeline.check_calibration(asked, talk_model)
    with caplog.at_level(logging.INFO):
        found, _ = pipeline.calibrate(asked, talk_model)
        again, _ = pipeline.calibrate(asked, talk_model)
    assert found.order_digest == again.order_digest
    windows = pipeline.with_bos(asked, talk_model, found).windows
    assert windows.shape == (8, 64)
    bos_token = tokenizer(talk_model).bos_token_id
    text = [tokenizer(talk_model).decode(window) for window in windows]
    assert all(one.startswith("<s>user: ") for one in text)
    assert (windows[:, 1] != bos_token).all()
    pool = pool_of(asked, talk_model)
    lost = 0
    for (span,) in found.spans:
        last = int(np.searchsorted(pool.starts, span.stop)) - 1
        lost += max(0, int(pool.stops[last]) - span.stop)
    assert found.notes["tokens_cut"] == lost > 0
    assert 0 < found.notes["documents_cut"] <= 8
    assert 0 < found.notes["tokens_cut_share_of_corpus"] < 1
    assert "windows=document" in caplog.text


def test_a_method_of_ones_own_that_cuts_elsewhere_is_refused(
    config: RunConfig, talk_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
        starts: NDArray[np.int64] = np.arange(n, dtype=np.int64) * seq_len + 5
        return Selection(windows_at(pool, starts, seq_len))

    module = ModuleType("shifting")
    module.shifted = shifted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shifting", module)
    asked = config.model_copy(update={"method": "shifting:shifted"})
    with pytest.raises(UserError, match=r"shifting:shifted.*windows=document.*whole documents"):
        pipeline.calibrate(asked, talk_model)


def test_too_few_documents_are_refused_before_any_work(
    config: RunConfig, talk_model: Model
) -> None:
    tokens = len(pool_of(config, talk_model).tokens)
    many = config.model_copy(update={"n_calibration_samples": tokens // 64})
    with pytest.raises(UserError, match=rf"too small: {tokens // 64} windows"):
        pipeline.check_calibration(many, talk_model)
    stream = many.model_copy(update={"windows": "stream"})
    pipeline.check_calibration(stream, talk_model)
