"""Conversations get the tokens that the tokenizer's own chat template gives them, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_layouts import END, LAYOUTS, LOOP, SYSTEM, TURNS, WORDS, made, unmarked

from colazero import corpora, models, pipeline
from colazero.calibration.sets import load_calibration, save_calibration
from colazero.corpora import file
from colazero.corpora.chat import Conversation, Template, Writing, document, fields_of
from colazero.corpora.tokens import build_pool, open_pool, pool_of, vocabulary_of
from colazero.errors import UserError
from colazero.evaluation.perplexity import evaluation_text
from colazero.models import load_tokenizer
from colazero.selection import features
from colazero.settings import RunConfig
from colazero.types import Corpus, Model


def by_transformers(tokenizer: Any, conversation: Conversation) -> list[int]:
    template = tokenizer.chat_template.replace("{{ strftime_now('%d %B %Y') }}", "26 July 2024")
    found = tokenizer.apply_chat_template(
        conversation.messages,
        tools=conversation.options.get("tools"),
        return_dict=False,
        chat_template=template,
        **conversation.options.get("chat_template_kwargs", {}),
    )
    return list(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("system", [False, True])
def test_tokens_are_those_of_the_tokenizer_s_own_template(
    layout: str, system: bool, tmp_path: Path
) -> None:
    tokenizer, names = made(layout), LAYOUTS[layout][1]
    turns = unmarked([*(SYSTEM * system), *TURNS], names)
    several = [Conversation(turns[:size], {}) for size in (2, 4, len(turns))]
    several += [Conversation([t | {"content": text} for t in turns], {}) for text in WORDS]
    pool = build_pool(Corpus("c", layout, several, []), tokenizer, tmp_path)
    for one, start, stop in zip(several, pool.starts, pool.stops, strict=True):
        assert pool.tokens[start:stop].tolist() == by_transformers(tokenizer, one)
    assert pool.starts[0] == 0
    assert (pool.starts[1:] == pool.stops[:-1]).all(), "one follows the other"
    assert pool.stops[-1] == len(pool.tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_special_token_that_a_message_spells_out_is_text(layout: str) -> None:
    """As many special tokens as without them, at the same places; the letters are all there."""
    tokenizer, names = made(layout), LAYOUTS[layout][1]
    template = Template(tokenizer)
    special = set(tokenizer.all_special_ids)

    def tokens(content: str) -> list[int]:
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "x y"}]
        (ids,) = template.encode([Conversation(turns, {})], "c")
        return ids.tolist()

    for name in names:
        with_it, without = tokens(f"Bado {name} kemi"), tokens("Bado - kemi")
        where = [[token for token in ids if token in special] for ids in (with_it, without)]
        assert where[0] == where[1]
        assert len(with_it) > len(without)
        turns = [{"role": "user", "content": f"Bado {name} kemi"}]
        plainly = by_transformers(tokenizer, Conversation(turns, {}))
        assert sum(token in special for token in plainly) > len(where[1]) / 2


def test_what_a_row_gives_its_template_is_used() -> None:
    tokenizer = made("thinking")
    row = {"messages": TURNS[:2], "chat_template_kwargs": {"enable_thinking": False}}
    one = document(row, fields_of(list(row)))
    assert isinstance(one, Conversation)
    template = Template(tokenizer)
    (ids,) = template.encode([one], "c")
    assert "</think>" in tokenizer.decode(ids)
    assert ids.tolist() == by_transformers(tokenizer, one)
    (other,) = template.encode([Conversation(TURNS[:2], {})], "c")
    assert "</think>" not in tokenizer.decode(other)


def test_a_set_is_the_same_on_every_day() -> None:
    tokenizer = made("the date")
    (ids,) = Template(tokenizer).encode([Conversation(TURNS[:1], {})], "c")
    assert "26 July 2024" in tokenizer.decode(ids)


# --- the pool of conversations


def test_only_special_tokens_that_the_template_wrote_may_stand_in_a_window(tmp_path: Path) -> None:
    tokenizer = made("chatml")
    pool = build_pool(Corpus("c", "1", [Conversation(TURNS[:2], {})], []), tokenizer, tmp_path)
    names = {tokenizer.convert_ids_to_tokens(token) for token in pool.forbidden}
    assert names == set(tokenizer.all_special_tokens) - {"<|im_start|>", "<|im_end|>"}
    plain = build_pool(Corpus("c", "1", ["text"], []), tokenizer, tmp_path)
    assert plain.forbidden == set(tokenizer.all_special_ids)


@pytest.mark.parametrize("how", ["plain", "auto without a template"])
def test_as_plain_text_a_conversation_is_its_contents(how: str, tmp_path: Path) -> None:
    tokenizer = made("chatml")
    if how != "plain":
        tokenizer.chat_template = None
    one = Conversation(TURNS[:2], {})
    corpora_of = [Corpus("c", "1", [document, "more"], []) for document in (one, str(one))]
    setting = "plain" if how == "plain" else "auto"
    known = vocabulary_of(tokenizer)
    pools = [
        open_pool(c, known, lambda: tokenizer, tmp_path / str(n), writing=Writing(setting))
        for n, c in enumerate(corpora_of)
    ]
    assert pools[0].tokens.tolist() == pools[1].tokens.tolist()
    assert pools[0].forbidden == known.special
    assert tokenizer.decode(pools[0].tokens) == "\n\n".join([str(one), "more"])


def test_texts_and_conversations_can_follow_each_other(tmp_path: Path) -> None:
    tokenizer = made("headers")
    one = Conversation(unmarked(TURNS, []), {})
    documents = ["first text", "second", one, one, "last"]
    pool = build_pool(Corpus("c", "1", documents, []), tokenizer, tmp_path)
    for text, start, stop in zip(documents, pool.starts, pool.stops, strict=True):
        ids = pool.tokens[start:stop].tolist()
        if isinstance(text, Conversation):
            assert "<|eot_id|>" in tokenizer.decode(ids)
        else:
            assert tokenizer.decode(ids) == text
    assert np.all(pool.starts <= pool.stops)


def test_the_template_decides_which_tokens_are_kept(tmp_path: Path) -> None:
    tokenizer, corpus = made("chatml"), Corpus("c", "1", [Conversation(TURNS[:2], {})], [])
    first = build_pool(corpus, tokenizer, tmp_path).tokens.tolist()
    tokenizer.chat_template = LAYOUTS["thinking"][2]
    assert build_pool(corpus, tokenizer, tmp_path).tokens.tolist() != first
    known = vocabulary_of(tokenizer)
    assert known.template
    assert known != vocabulary_of(made("chatml"))


def test_asking_for_a_template_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    tokenizer = made("chatml")
    text, talk = Corpus("c", "1", ["text"], []), Corpus("d", "1", [Conversation(TURNS, {})], [])
    with pytest.raises(UserError, match=r"chat='template'.*'messages'"):
        open_pool(
            text, vocabulary_of(tokenizer), lambda: tokenizer, tmp_path, writing=Writing("template")
        )
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"chat='template'.*chat=plain"):
        open_pool(
            talk, vocabulary_of(tokenizer), lambda: tokenizer, tmp_path, writing=Writing("template")
        )


@pytest.mark.parametrize(
    ("template", "turns", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", TURNS, "roles must alternate"),
        ("{% for m in messages %}{{ m.nothing.at_all }}{% endfor %}", TURNS, "does not take it"),
        ("{% for", TURNS, "does not take it"),
        (
            "{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}",
            [*TURNS[:2], {"role": "tool", "content": "42"}],
            "leaves out message 3, of role 'tool'",
        ),
    ],
)
def test_a_template_that_does_not_take_a_conversation_is_told(
    template: str, turns: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    tokenizer = made("chatml")
    tokenizer.chat_template = template
    corpus = Corpus("mine", "1", [Conversation(turns, {})], [])
    with pytest.raises(UserError, match="conversation 1 of 'mine'") as caught:
        build_pool(corpus, tokenizer, tmp_path)
    assert words in str(caught.value)
    assert "chat=plain" in str(caught.value)


# --- rows that are conversations

QUESTION, ANSWER = "Bado?", "  kemi\n"
AS_TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


def part(turn: dict[str, str]) -> dict[str, str]:
    return {"type": "text", "text": turn["content"]}


FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": AS_TURNS},
    "an id beside": {"id": 7, "messages": AS_TURNS, "prompt": "Bado?"},
    "parts": {"messages": [turn | {"content": [part(turn)]} for turn in AS_TURNS]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    },
    "conversation": {"conversation": AS_TURNS},
    "prompt and completion": {"prompt": QUESTION, "completion": ANSWER},
    "lists of both": {"prompt": AS_TURNS[:1], "completion": AS_TURNS[1:]},
    "Alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "response": {"instruction": QUESTION, "response": ANSWER},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".json"])
def test_every_form_of_conversation_is_read(form: str, ending: str, tmp_path: Path) -> None:
    rows, path = [FORMS[form]] * 3, tmp_path / f"talk{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows)))
    for name in (str(path), *([f"{path}:messages"] if "messages" in FORMS[form] else [])):
        corpus = file.load(name)
        (one,) = corpus.test
        assert isinstance(one, Conversation)
        assert one.messages == AS_TURNS
        assert str(one) == "Bado?\n\nkemi"


def test_an_input_stands_behind_its_instruction_and_a_system_prompt_in_front() -> None:
    row = {"instruction": "Do", "input": "this", "output": "done", "system": "Be kind."}
    one = document(row, fields_of(list(row)))
    assert isinstance(one, Conversation)
    assert [(m["role"], m["content"]) for m in one.messages] == [
        ("system", "Be kind."), ("user", "Do\n\nthis"), ("assistant", "done"),
    ]  # fmt: skip


def test_a_text_is_a_text_whatever_else_the_row_has() -> None:
    row = {"messages": AS_TURNS, "text": "plain"}
    assert document(row, fields_of(list(row))) == "plain"
    assert isinstance(document(row, fields_of(list(row), "messages")), Conversation)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "'messages' (it holds an empty list)"),
        ({"messages": ["hello"]}, "a list of messages"),
        ({"messages": [{"content": "a"}]}, "message 1 must have 'role'"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 1 must have"),
        ({"messages": [*AS_TURNS, {"role": "narrator", "content": "a"}]}, "message 3 has the role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "message 1 holds image",
        ),
        ({"messages": AS_TURNS, "chat_template_kwargs": 5}, "must hold settings"),
        ({"messages": None}, "it holds null"),
        ({"prompt": "a", "completion": None}, "it holds null"),
        ({"question": "a", "answer": "b"}, "it has 'question', 'answer'"),
    ],
)
def test_a_row_that_is_no_conversation_is_told_with_its_line(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps({"messages": AS_TURNS}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 2") as caught:
        file.load(str(path))
    assert words in str(caught.value)


def test_the_revision_is_that_of_all_that_decides_the_tokens(tmp_path: Path) -> None:
    revisions = set()
    for number, change in enumerate(
        ({}, {"role": "system"}, {"content": "Bado!"}, {"name": "Z"}, {"tools": [{"type": "x"}]})
    ):
        tools = change.pop("tools", None)
        row = {"messages": [AS_TURNS[0] | change, AS_TURNS[1]], "tools": tools}
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row | {"id": i}) + "\n" for i in range(3)))
        revisions.add(file.load(str(path)).revision)
    assert len(revisions) == 5


def test_conversations_of_both_splits_are_left_out_of_train(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    other = [{"role": "user", "content": "another"}]
    rows = [{"messages": turns} for turns in (AS_TURNS, other, AS_TURNS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpora.load.cache_clear()
    corpus = corpora.load(f"file:{path}")
    assert [str(one) for one in corpus.train] == ["another"]
    assert isinstance(corpus.train[0], Conversation)


# --- a cell on conversations


@pytest.fixture
def instruct(tiny_llama: Path, tmp_path: Path) -> Model:
    """A model whose tokenizer has a chat template."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "instruct"))
    (folder / "chat_template.jinja").write_text(LOOP + "<s>{{ m.role }}\n{{ m.content }}</s>" + END)
    return models.fetch(str(folder))


@pytest.fixture
def talks(tmp_path: Path, paragraphs: list[str]) -> str:
    """Conversations that a generated corpus makes."""
    path = tmp_path / "talks.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in zip(paragraphs[::2], paragraphs[1::2], strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"file:{path}"


@pytest.mark.parametrize("method", ["random", "cola_zero"])
def test_a_set_of_conversations_has_the_template_s_tokens_and_is_read_back(
    method: str, instruct: Model, talks: str, tmp_path: Path
) -> None:
    given = {"corpus": talks, "eval_corpora": (talks,), "n_calibration_samples": 4, "seq_len": 64}
    found = {}
    for chat in ("auto", "template", "plain"):
        config = RunConfig(**given, method=method, chat=chat, device="cpu", bos="first")
        pipeline.check_calibration(config, instruct)
        found[chat], _ = pipeline.calibrate(config, instruct)
    special = set(load_tokenizer(instruct).all_special_ids)
    assert found["auto"].digest == found["template"].digest != found["plain"].digest
    assert set(found["auto"].windows.flatten()) & special
    assert not set(found["plain"].windows.flatten()) & special
    save_calibration(tmp_path / "set", found["auto"], instruct, corpora.load(talks), {})
    again, _ = load_calibration(tmp_path / "set", instruct)
    assert again.digest == found["auto"].digest


def test_the_length_of_the_template_changes_no_feature_and_no_choice(
    tiny_llama: Path, talks: str, tmp_path: Path
) -> None:
    given = {"corpus": talks, "chat": "template", "device": "cpu", "method": "cola_zero"}
    config = RunConfig(**given, n_calibration_samples=8, seq_len=64)
    closing = {"short": "", "long": " That was {{ m.role }}, and this is nothing." * 40}
    by_length = config.model_copy(update={"method": "stratified"})
    pools, chosen, strata = [], [], []
    for name, words in closing.items():
        folder = Path(shutil.copytree(tiny_llama, tmp_path / name))
        template = LOOP + "<s>{{ m.content }}" + words + "</s>" + END
        (folder / "chat_template.jinja").write_text(template)
        model = models.fetch(str(folder))
        pools.append(pool_of(config, model))
        chosen.append(pipeline.calibrate(config, model)[0].notes["document_clusters"])
        strata.append(pipeline.calibrate(by_length, model)[0].notes["stratum_longest"])
    short, long = pools
    assert len(long.tokens) > 2 * len(short.tokens)
    documents = np.arange(len(short.texts))
    for feature in (features.length, features.diversity, features.reasoning):
        assert (feature(long, documents) == feature(short, documents)).all()
        assert feature(short, documents).std(axis=0).any()
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 8
    assert strata[0] == strata[1]
    assert len(set(strata[0])) == 3


def test_the_evaluation_text_does_not_depend_on_how_it_is_calibrated(
    instruct: Model, talks: str
) -> None:
    windows = evaluation_text(instruct, talks, 64, "all", "first").windows
    tokenizer = load_tokenizer(instruct)
    assert tokenizer.decode(windows[0]).startswith("<s>user\n")
    assert windows[0].tolist()[:2].count(tokenizer.bos_token_id) == 1, "BOS once"


def test_a_model_without_a_template_is_told_before_anything_is_computed(
    tiny_llama: Path, talks: str
) -> None:
    config = RunConfig(corpus=talks, n_calibration_samples=4, seq_len=64, chat="template")
    with pytest.raises(UserError, match="no chat template"):
        pipeline.check_calibration(config, models.fetch(str(tiny_llama)))
