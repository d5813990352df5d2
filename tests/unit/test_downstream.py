from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colazero.errors import UserError
from colazero.evaluation import downstream

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

CHOICES = ["yes", "no"]
ANSWERS = [0, 1, 1]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of three items; whichever answer a model always gives, it gets other scores."""
    rows = [{"question": "Item", "choices": CHOICES, "answer": answer} for answer in ANSWERS]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "mine.yaml"
    file.write_text(TASK.format(name="colazero_own_task", data=data))
    return file


def test_a_task_of_ones_own_is_scored(task: Path, tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    # All tokens are equally likely, so that the choice of fewest tokens always wins.
    model.get_output_embeddings().weight.data.zero_()
    lengths = [len(tokenizer(f" {w}", add_special_tokens=False).input_ids) for w in CHOICES]
    winner = lengths.index(min(lengths))
    assert lengths.count(min(lengths)) == 1
    downstream.check([str(task)])
    scores = downstream.evaluate(model, tokenizer, [str(task)])
    assert set(scores) == {"colazero_own_task.acc", "colazero_own_task.acc_stderr"}
    assert scores["colazero_own_task.acc"] == pytest.approx(ANSWERS.count(winner) / 3)


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'helaswag'. Did you mean 'hellaswag'"):
        downstream.check(["arc_easy", "helaswag"])


def test_a_task_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        downstream.check([str(tmp_path / "nothing.yaml")])
