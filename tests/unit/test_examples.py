"""The examples make what the documentation says they make."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from colazero import corpora
from colazero.calibration import trial
from colazero.corpora.chat import Conversation

ROOT = Path(__file__).resolve().parents[2]


def test_the_continuation_task_is_the_documented_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("task", ROOT / "examples/continuation_task.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = " ".join((ROOT / "docs/guide/evaluation.md").read_text(encoding="utf-8").split())
    said = re.search(r"(\d+) items made .* of (\d+) words follows the first (\d+) words", page)
    assert said
    items, answer, context = map(int, said.groups())

    monkeypatch.setattr(sys, "argv", ["continuation_task.py", "--out", str(tmp_path)])
    script.main()
    made = (tmp_path / "sotu_continuation.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(made) == items
    for item in map(json.loads, made):
        assert len(item["context"].split()) == context
        assert [len(choice.split()) for choice in item["choices"]] == 4 * [answer]


def test_my_method_is_one_and_can_be_tried_without_mlflow(
    tiny_llama: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    my_method = importlib.import_module("my_method")
    arguments = [f"--model={tiny_llama}", f"--corpus=file:{corpus_file}", "--seeds=1,2"]
    monkeypatch.setattr(sys, "argv", ["my_method.py", *arguments])
    my_method.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[2].partition(",")[0] for line in lines] == ["evenly"] * 2
    digests = {re.search(r"digest (\w{16}),", line)[1] for line in lines}
    assert len(digests) == 2
    assert not list(tmp_path.iterdir()), "no store, no file"
    monkeypatch.setattr(sys, "argv", ["my_method.py", *arguments, "--method=my_method:typo"])
    with pytest.raises(SystemExit, match=r"^error: .*typo"):
        my_method.main()


def test_my_method_takes_windows_at_even_distances_from_all_of_the_corpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    my_method = importlib.import_module("my_method")
    pool = trial.toy_pool()
    total = len(pool.tokens)
    for n, seq_len in ((8, 100), (1, 16), (total // 50, 50)):
        chosen = my_method.evenly(pool, n, seq_len, np.random.default_rng(n))
        starts = np.array([spans[0].start for spans in chosen.windows])
        assert starts.min() >= 0
        assert starts.max() + seq_len <= total
        assert np.abs(np.diff(starts) - total / n).max(initial=0) < 1
        assert np.diff(starts).min(initial=seq_len) >= seq_len, "none overlap"


def test_conversations_are_split_as_the_speeches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = importlib.import_module("conversations")
    monkeypatch.setattr(sys, "argv", ["conversations.py", "--out", str(tmp_path)])
    script.main()
    made, speeches = corpora.load(f"file:{tmp_path}"), corpora.load("sotu")
    for talks, paragraphs in ((made.train, speeches.train), (made.test, speeches.test)):
        talk = talks[len(talks) // 2]
        assert isinstance(talk, Conversation)
        roles = [message["role"] for message in talk.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert {message["content"] for message in talk.messages[1::2]} <= set(paragraphs)
