"""Conversations: rows with messages → documents, and a tokenizer's own chat template → tokens.

A conversation is also a plain text, its messages joined by blank lines. `chat=plain`, text features
and the comparison of splits use that text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError, first_line
from colazero.values import NO_OPTIONS

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
ROLES |= {"observation": "tool", "function": "tool", "ipython": "tool", "model": "assistant"}
"""ShareGPT's and other names of roles → names in chat templates."""
KNOWN = ("system", "developer", "user", "assistant", "tool")
ANY_MODEL = ("system", "user", "assistant")
"""Roles whose messages a template may shorten; messages of other roles must be complete."""
LISTS = ("messages", "conversations")
"""Fields that hold a list in any data set."""
FORMS = (
    *(("messages",), ("conversations",), ("conversation",)),
    *(("prompt", "completion"), ("instruction", "output"), ("instruction", "response")),
)
"""Fields of a row that make a conversation, the most usual first."""
OPTIONS = ("tools", "chat_template_kwargs")
"""Fields of a row that its template gets in addition to the messages."""
RESERVED = frozenset(
    (
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        "sanitize_control_tokens",
    )
)
"""Arguments of `apply_chat_template` that are not settings of a template."""
TODAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""The date for templates that write one, so that a set is the same on every day."""
CODES = {code: TODAY.strftime(f"%{code}") for code in "aAbBdHIjmMpSyYZ"}
DATE = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{code}', '{text}')" for code, text in CODES.items())
    + " }}{% endmacro %}{{ '' }}"
)
"""What a template that asks for the date gets in front: its own answer."""
BATCH = 256
"""Conversations encoded at a time, on all cores."""


class Conversation(str):
    """The messages of a conversation; as a `str`, their contents joined by blank lines."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]

    def __new__(cls, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Self:
        """Make a conversation from checked messages (`role`, `content`) and template options."""
        contents = [str(message["content"]).strip() for message in messages]
        made = super().__new__(cls, "\n\n".join(filter(None, contents)))
        made.messages = [dict(message) for message in messages]
        made.options = dict(options)
        return made

    @property
    def as_json(self) -> str:
        """Return everything that decides its tokens."""
        return json.dumps([self.messages, self.options], sort_keys=True, default=str)


def fields_of(names: Sequence[str], field: str = "") -> list[str]:
    """Return the fields of a row, or columns of a table, that a document is made of.

    `field`: the one that the user named. UserError, without file and line, if it is missing.
    """
    if field:
        if field not in names:
            raise UserError(f"no field {field!r} (it has {_listed(names)}).")
        return [field, *(name for name in OPTIONS if name in names)]
    if "text" in names:
        return ["text"]
    for form in FORMS:
        if all(name in names for name in form):
            more = ["input"] if form[0] == "instruction" else []
            return [*form, *(name for name in (*more, "system", *OPTIONS) if name in names)]
    raise UserError(
        f"no text in the field 'text' (it has {_listed(names)}). Name another field behind the "
        "path, file:PATH:FIELD; conversations are in 'messages', 'conversations', "
        "'prompt' and 'completion', or 'instruction' and 'output'."
    )


def document(row: Mapping[str, Any], fields: Sequence[str]) -> str | None:
    """Return the document in a row's `fields`: a text, a Conversation, or None where it is null.

    UserError, without file and line, for any other row.
    """
    first, value = fields[0], row.get(fields[0])
    if first in LISTS and isinstance(value, str):
        raise UserError(
            f"the field {first!r} holds text, not a list of messages. Write the list itself, as "
            ".jsonl and .parquet files can; text goes into the field 'text'."
        )
    pair = first in ("prompt", "instruction") and len(fields) > 1 and fields[1] not in OPTIONS
    if value is None or (pair and row.get(fields[1]) is None):
        return None
    if isinstance(value, str) and not pair:
        return value
    if isinstance(value, str) and row.get("input") and "input" in fields:
        value = f"{value}\n\n{row['input']}"
    turns: list[Any] = []
    if row.get("system") and "system" in fields:
        turns = [{"role": "system", "content": row["system"]}]
    parts = {first: ("user", value)}
    if pair:
        parts[fields[1]] = ("assistant", row[fields[1]])
    for name, (role, part) in parts.items():
        turns += [{"role": role, "content": part}] if isinstance(part, str) else _list(name, part)
    options = {name: row[name] for name in OPTIONS if name in fields and row.get(name)}
    given = options.get("chat_template_kwargs", {})
    if not isinstance(given, dict):
        raise UserError(f"the field 'chat_template_kwargs' must hold settings, not {given!r}.")
    _refuse_reserved(given)
    return Conversation([_message(turn, at) for at, turn in enumerate(turns, start=1)], options)


def _refuse_reserved(options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that says how the template is applied, not what it writes."""
    if wrong := sorted(RESERVED & set(options)):
        raise UserError(
            f"chat_template_kwargs: {wrong[0]!r} is set by colazero itself. Allowed are the "
            "template's own settings, such as enable_thinking."
        )


def _list(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        what = "an empty list" if value == [] else f"a {type(value).__name__}"
        raise UserError(
            f"no text in the field {field!r} (it holds {what}); it must hold "
            "text, or a list of messages with 'role' and 'content'."
        )
    return value


def _message(turn: Mapping[str, Any], at: int) -> dict[str, Any]:
    """Return a message in the templates' form; UserError, without file and line, for others."""
    given = {name: value for name, value in turn.items() if value is not None}
    role = given.pop("role", None) or given.pop("from", None)
    content = given.pop("content", given.pop("value", ""))
    if isinstance(content, list):  # parts, as models with pictures take them
        kinds = {part.get("type", "text") if isinstance(part, dict) else "?" for part in content}
        if kinds - {"text"}:
            raise UserError(f"message {at} holds {', '.join(sorted(kinds))}; only text is read.")
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f"message {at} must have 'role' and 'content', both text: {str(turn)[:60]}")
    role = ROLES.get(role.lower(), role.lower())
    if role not in KNOWN:
        raise UserError(f"message {at} has the role {role!r}; allowed are {', '.join(KNOWN)}.")
    return {**given, "role": role, "content": content}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


@dataclass(frozen=True)
class Writing:
    """How conversations are written; see `colazero.settings.Settings` for the values.

    chat: by the template or as plain text. options: the setting `chat_template_kwargs`.
    """

    chat: str = "auto"
    options: str = NO_OPTIONS

    @property
    def template_options(self) -> dict[str, Any]:
        """Return the options that each conversation's template gets."""
        return {} if self.options == NO_OPTIONS else dict(json.loads(self.options))


class Template:
    """A tokenizer's chat template: conversations → token ids.

    Special tokens are tokens where the template writes them. In a message their spelling is text.
    """

    def __init__(self, tokenizer: Any, writing: Writing | None = None) -> None:
        """Take transformers' tokenizer, which must have a chat template.

        The template gets the options of `writing`; a row's own options override them.
        """
        self._tokenizer = tokenizer
        self._options = (writing or Writing()).template_options
        _refuse_reserved(self._options)
        names = sorted(special_names(tokenizer), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def encode(
        self, conversations: Sequence[Conversation], name: str
    ) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each conversation; `name` is the corpus's, for errors."""
        for first in range(0, len(conversations), BATCH):
            batch = conversations[first : first + BATCH]
            texts = [
                self.rendered(one, f"conversation {number} of {name!r}")
                for number, one in enumerate(batch, start=first + 1)
            ]
            found = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
            for one, ids in zip(batch, found, strict=True):
                if self.spells_special(one):
                    ids = self.apply(one, tokenize=True, sanitize_control_tokens=True)
                yield np.array(ids, dtype=np.int32)

    def spells_special(self, one: Conversation) -> bool:
        """Return whether a message spells a special token out, which is text there."""
        return any(self._pattern.search(message["content"]) for message in one.messages)

    def source(self, one: Conversation) -> str:
        """Return the template that writes a conversation: some models have another for tools."""
        return str(self._tokenizer.get_chat_template(tools=one.options.get("tools")))

    def apply(self, one: Conversation, **how: Any) -> Any:
        """Return what the tokenizer's `apply_chat_template` returns, or raise what it raises."""
        template = self.source(one)
        if "strftime_now" in template:
            template = DATE + template
        how = {"return_dict": False, "tools": one.options.get("tools")} | how
        how |= self._options | one.options.get("chat_template_kwargs", {})
        return self._tokenizer.apply_chat_template(one.messages, chat_template=template, **how)

    def rendered(self, one: Conversation, where: str) -> str:
        """Return a conversation as the template writes it; UserError if it refuses it."""
        try:
            text = str(self.apply(one, tokenize=False))
        except Exception as error:  # a template is a program, and can raise anything
            raise UserError(
                f"{where}: the model's chat template does not take it: {first_line(error)}. Remove "
                "the conversation, or use chat=plain."
            ) from error
        for at, message in enumerate(one.messages, start=1):
            words = message["content"].strip()
            if message["role"] not in ANY_MODEL and words and words not in text:
                raise UserError(
                    f"{where}: the model's chat template leaves out message {at}, of role "
                    f"{message['role']!r}. Remove the conversation, or use chat=plain."
                )
        return text

    def offsets(self, text: str) -> NDArray[np.int64]:
        """Return the characters [tokens, 2] of a written conversation that each token covers."""
        how = {"add_special_tokens": False, "verbose": False, "return_offsets_mapping": True}
        found = self._tokenizer(text, **how).offset_mapping
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def decoded(self, token: int) -> str:
        """Return the text of a token."""
        return str(self._tokenizer.decode([token]))


def special_names(tokenizer: Any) -> list[str]:
    """Return the spellings of a tokenizer's special tokens."""
    added = (one.content for one in tokenizer.added_tokens_decoder.values() if one.special)
    return sorted({name for name in (*tokenizer.all_special_tokens, *added) if name})
