from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from colazero.errors import UserError
from colazero.evaluation import downstream
from colazero.evaluation.downstream import averages


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def answers(task: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in task.with_name("items.jsonl").read_text().splitlines()]


def log_likelihood(model: object, tokenizer: object, text: str, answer: str) -> float:
    """Sum log p of the answer's tokens after the text, as the model's own logits have it."""
    ids = tokenizer(text + answer, return_tensors="pt").input_ids
    start = len(tokenizer(text).input_ids)
    with torch.inference_mode():
        scores = model(ids).logits.log_softmax(-1)[0]
    return sum(float(scores[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))


def test_a_task_of_ones_own_is_scored_item_by_item(own_task: Path, model, tokenizer) -> None:
    downstream.check([str(own_task)])
    found = downstream.evaluate(model, tokenizer, [str(own_task)])
    items, name = answers(own_task), "colazero_own_task"
    right, right_norm = [], []
    for item, row in zip(items, found.samples, strict=True):
        # lm-eval puts a space between the question and an answer.
        choices = [f" {choice}" for choice in item["choices"]]
        lls = [log_likelihood(model, tokenizer, item["question"], choice) for choice in choices]
        assert row["response"] == pytest.approx(lls, rel=1e-4)
        assert (row["task"], row["target"]) == (name, item["answer"])
        right.append(lls.index(max(lls)) == item["answer"])
        by_length = [ll / len(c) for ll, c in zip(lls, item["choices"], strict=True)]
        right_norm.append(by_length.index(max(by_length)) == item["answer"])
        assert (row["acc"], row["acc_norm"]) == (right[-1], right_norm[-1])
    n = len(items)
    assert 0 < sum(right) < n, "a test that every answer passes is none"
    accuracy = sum(right) / n
    assert found.scores[f"{name}.acc"] == pytest.approx(accuracy)
    assert found.scores[f"{name}.acc_norm"] == pytest.approx(sum(right_norm) / n)
    error = (accuracy * (1 - accuracy) / (n - 1)) ** 0.5
    assert found.scores[f"{name}.acc_stderr"] == pytest.approx(error)
    assert found.scores["average.acc"] == found.scores[f"{name}.acc"]
    assert len({row["doc_hash"] for row in found.samples}) == n


def test_averages_are_of_the_tasks_named() -> None:
    scores = {"a.acc": 0.5, "a.acc_norm": 0.75, "b.acc": 0.25, "part.acc": 0.0}
    errors = {"a.acc_stderr": 0.03, "a.acc_norm_stderr": 0.06, "b.acc_stderr": 0.04}
    assert averages(scores | errors, ["a", "b"]) == pytest.approx(
        {
            "average.acc": 0.375,
            "average.acc_stderr": 0.025,
            "average.acc_norm": 0.5,
            "average.acc_norm_stderr": (0.06**2 + 0.04**2) ** 0.5 / 2,
        }
    )
    assert averages({"a.acc": 1.0, "b.exact_match": 1.0}, ["a", "b"]) == {}


def test_changed_data_are_another_context(own_task: Path) -> None:
    before = downstream.context([str(own_task)])
    assert before == downstream.context([str(own_task)])
    data = own_task.with_name("items.jsonl")
    data.write_text(data.read_text().replace('"answer": 0', '"answer": 1'))
    assert downstream.context([str(own_task)]) != before


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'helaswag'. Did you mean 'hellaswag'"):
        downstream.check(["arc_easy", "helaswag"])


def test_a_task_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        downstream.check([str(tmp_path / "nothing.yaml")])
    (tmp_path / "other.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="names no `task`"):
        downstream.check([str(tmp_path / "other.yaml")])
