"""The examples make what the documentation says they make."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_continuation_task_is_the_documented_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("task", ROOT / "examples/continuation_task.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = " ".join((ROOT / "docs/evaluation.md").read_text(encoding="utf-8").split())
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
