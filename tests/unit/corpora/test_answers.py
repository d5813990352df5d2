"""Which tokens of conversations are the assistant's, on every layout of templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_layouts import END, LAYOUTS, LOOP, SYSTEM, TURNS, made, unmarked

from colazero import corpora, models, pipeline
from colazero.corpora.answers import tokens_of
from colazero.corpora.chat import Conversation, Template
from colazero.errors import UserError
from colazero.evaluation.perplexity import evaluation_text
from colazero.models import load_tokenizer
from colazero.settings import RunConfig
from colazero.types import Model

GENERATION_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
PROMPTED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
"""What makes a template of the family ChatML one that asks for an answer."""


def answers_in(tokenizer: Any, one: Conversation) -> list[str]:
    """Return the texts of the runs of tokens that count as the assistant's."""
    template = Template(tokenizer)
    mask = tokens_of(template, one, "here")
    (ids,) = template.encode([one], "c")
    assert len(mask) == len(ids)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(ids[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_words_of_the_assistant_and_none_of_others_count(layout: str) -> None:
    tokenizer, names = made(layout), LAYOUTS[layout][1]
    if layout == "headlines":  # its last token stands behind the whole conversation alone
        tokenizer.chat_template = tokenizer.chat_template.removesuffix("<|endoftext|>")
    turns = unmarked([*SYSTEM * (layout != "inst"), *TURNS], names)
    found = answers_in(tokenizer, Conversation(turns, {}))
    said = [turn["content"].strip() for turn in turns if turn["role"] == "assistant"]
    assert len(found) == len(said)
    for text, expected in zip(found, said, strict=True):
        squeezed = "".join(expected.split())
        assert squeezed in "".join(text.replace("▁", "").split())
        assert "kemi" not in text
        assert "mehr" not in text


@pytest.mark.parametrize("spelled", ["-", "<|im_end|>"])
@pytest.mark.parametrize("marks", [True, False])
def test_an_answer_ends_with_its_turn_whether_the_template_marks_it_or_not(
    marks: bool, spelled: str
) -> None:
    tokenizer = made("chatml")
    template = GENERATION_TEMPLATE if marks else str(tokenizer.chat_template)
    tokenizer.chat_template = template + PROMPTED
    turns = [
        {"role": "user", "content": f"Bado {spelled}"},
        {"role": "assistant", "content": f"zora {spelled} kemi"},
        {"role": "user", "content": "mehr"},
        {"role": "assistant", "content": "1 2"},
    ]
    found = answers_in(tokenizer, Conversation(turns, {}))
    assert found == [f"zora {spelled} kemi<|im_end|>", "1 2<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% if messages | length == 1 %}{{ raise_exception('alone') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
    ids=["an end of all", "their number", "raises"],
)
def test_a_template_that_hides_where_an_answer_begins_is_refused(template: str) -> None:
    tokenizer = made("chatml")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"eval_on='answers'.*here.*message 2.*eval_on=all"):
        tokens_of(Template(tokenizer), Conversation(TURNS, {}), "here")


@pytest.fixture
def talk_model(tiny_llama: Path, tmp_path: Path) -> Model:
    folder = tmp_path / "talks"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").write_text(
        LOOP
        + "<s>{{ m.role }}: {{ m.content }}</s>"
        + END
        + "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    return models.fetch(str(folder))


@pytest.fixture
def talks(paragraphs: list[str], tmp_path: Path) -> str:
    rows = [{"prompt": paragraphs[n], "completion": paragraphs[n + 1]} for n in range(0, 200, 2)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{tmp_path / 'talks.jsonl'}"


def test_answers_alone_are_evaluated(talk_model: Model, talks: str, corpus_file: Path) -> None:
    text = evaluation_text(talk_model, talks, 32, "all", "auto", "answers")
    whole = evaluation_text(talk_model, talks, 32, "all", "auto")
    assert text.scored is not None
    assert whole.scored is None
    assert text.scored[:, 1:].any(axis=1).all(), "each window holds a part of an answer"
    assert 0 < len(text.windows) < len(whole.windows)
    tokenizer = load_tokenizer(talk_model)
    answers = "".join(one.messages[1]["content"] for one in corpora.load(talks).test)
    for ids, counts in zip(text.windows, text.scored, strict=True):
        for run in np.split(ids[counts], np.flatnonzero(np.diff(np.flatnonzero(counts)) > 1) + 1):
            said = tokenizer.decode(run, skip_special_tokens=True).strip(" \ufffd")
            assert said in answers
    plain = evaluation_text(talk_model, f"file:{corpus_file}", 32, 4, "auto", "answers")
    assert plain.scored is None, "a text without conversations is scored whole"


def test_what_has_no_answers_is_refused(
    talk_model: Model, tiny_llama: Path, talks: str, corpus_file: Path
) -> None:
    given = {"corpus": talks, "seq_len": 32, "n_calibration_samples": 2, "eval_on": "answers"}
    config = RunConfig(**given, eval_corpora=(f"file:{corpus_file}",))
    with pytest.raises(UserError, match=r"eval_on='answers'.*no conversations"):
        pipeline.check_evaluation(config, talk_model)
    config = RunConfig(**given, eval_corpora=(talks,))
    with pytest.raises(UserError, match=r"eval_on='answers'.*no chat template"):
        pipeline.check_evaluation(config, models.fetch(str(tiny_llama)))


def test_prompts_of_tasks_need_a_template(talk_model: Model, tiny_llama: Path, talks: str) -> None:
    given = {"corpus": talks, "eval_corpora": (talks,), "seq_len": 32, "n_calibration_samples": 2}
    config = RunConfig(**given, do_downstream=True, downstream_chat=True)
    pipeline.check_evaluation(config, talk_model)
    without = models.fetch(str(tiny_llama))
    with pytest.raises(UserError, match=r"downstream_chat=true.*no chat template.*=false"):
        pipeline.check_evaluation(config, without)
    pipeline.check_evaluation(config.model_copy(update={"do_downstream": False}), without)
