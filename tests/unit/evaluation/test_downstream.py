from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from colazero.corpora.chat import Writing
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
    assert found.higher_is_better == {f"{name}.acc": True, f"{name}.acc_norm": True}
    assert len({row["doc_hash"] for row in found.samples}) == n


def test_prompts_are_written_by_the_chat_template(own_task: Path, model, tokenizer) -> None:
    talking = copy.deepcopy(tokenizer)
    talking.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{{ note }}"
        "{% if add_generation_prompt %}[answer]{% endif %}"
    )
    chat = Writing(options='{"note": "!"}')
    found = downstream.evaluate(model, talking, [str(own_task)], chat)
    for item, row in zip(answers(own_task), found.samples, strict=True):
        prompt = f"[user] {item['question']}![answer]"
        lls = [log_likelihood(model, tokenizer, prompt, choice) for choice in item["choices"]]
        assert row["response"] == pytest.approx(lls, rel=1e-4)


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


def changed(file: Path) -> None:
    file.write_text(file.read_text().replace('"answer": 0', '"answer": 1'))


def test_changed_data_are_another_context(own_task: Path) -> None:
    before = downstream.context([str(own_task)])
    assert before == downstream.context([str(own_task)])
    changed(own_task.with_name("items.jsonl"))
    assert downstream.context([str(own_task)]) != before


WAYS = {
    "pattern": "{dataset_path: json, dataset_kwargs: {data_files: {test: 'DATA/*.jsonl'}}}",
    "folder": "{dataset_path: json, dataset_kwargs: {data_dir: DATA}}",
    "pattern in a folder": "{dataset_path: json, dataset_kwargs: {data_dir: DATA, data_files: "
    "{test: '*.jsonl'}}}",
    "dataset": "{dataset_path: DATA}",
    "pattern in a dataset": "{dataset_path: DATA, dataset_kwargs: {data_files: {test: '*.jsonl'}}}",
}
"""How a task can name the data in the folder DATA."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("included", [False, True])
def test_changed_data_are_another_context_however_they_are_named(
    way: str, included: bool, own_task: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data" / "test.jsonl"
    data.parent.mkdir()
    own_task.with_name("items.jsonl").rename(data)
    config = yaml.safe_load(own_task.read_text())
    for key in ("dataset_path", "dataset_kwargs"):
        del config[key]
    named = yaml.safe_load(WAYS[way].replace("DATA", str(data.parent)))
    if included:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "base.yaml").write_text(yaml.safe_dump(named))
        config |= {"include": "../base/base.yaml"}
    else:
        config |= named
    own_task.write_text(yaml.safe_dump(config))
    downstream.check([str(own_task)])  # lm-eval finds the data there too
    before = downstream.context([str(own_task)])
    changed(data)
    assert downstream.context([str(own_task)]) != before


def test_the_code_and_the_members_of_a_group_are_part_of_it(own_task: Path) -> None:
    group = own_task.with_name("group.yaml")
    group.write_text("group: both\ntask: [colazero_own_task]\n")
    member = own_task.parent / "member" / "mine.yaml"
    member.parent.mkdir()
    own_task.rename(member)
    seen = [downstream.context([str(group)])]
    changed(own_task.with_name("items.jsonl"))
    seen.append(downstream.context([str(group)]))
    (member.parent / "code.py").write_text("x = 1\n")
    seen.append(downstream.context([str(group)]))
    assert len({str(context) for context in seen}) == 3


def test_data_that_are_not_there_are_found_out_before_any_work(own_task: Path) -> None:
    own_task.with_name("items.jsonl").unlink()
    with pytest.raises(UserError, match=r"mine\.yaml' cannot be loaded: .*items\.jsonl") as found:
        downstream.check([str(own_task)])
    assert "\n" not in str(found.value)


def test_data_from_a_hub_that_cannot_be_reached(own_task: Path, no_hub: None) -> None:
    config = yaml.safe_load(own_task.read_text())
    del config["dataset_kwargs"]
    own_task.write_text(yaml.safe_dump(config | {"dataset_path": "nobody/has-this"}))
    with pytest.raises(UserError, match=r"cannot be loaded: .*nobody/has-this.*Hub can be reached"):
        downstream.check([str(own_task)])


def test_an_included_file_that_is_not_there(own_task: Path) -> None:
    own_task.write_text(own_task.read_text() + "include: nothing.yaml\n")
    with pytest.raises(UserError, match=r"mine\.yaml' cannot be loaded: .*nothing\.yaml"):
        downstream.check([str(own_task)])


def test_a_task_named_twice(own_task: Path) -> None:
    other = own_task.with_name("other.yaml")
    other.write_text(own_task.read_text())
    with pytest.raises(UserError, match="both hold task 'colazero_own_task'"):
        downstream.check([str(own_task), str(other)])


def test_a_task_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        downstream.check([str(tmp_path / "nothing.yaml")])
    (tmp_path / "other.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="names no `task`"):
        downstream.check([str(tmp_path / "other.yaml")])
