"""Conversations: rows with messages → documents, and a tokenizer's own chat template → tokens.

A conversation is also a plain text, its messages joined by blank lines, for whatever looks at words
alone: `chat=plain`, features, and the comparison of splits.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError, first_line

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}
ROLES |= {"observation": "tool", "function": "tool", "ipython": "tool", "model": "assistant"}
"""ShareGPT's and other names of roles → those of chat templates."""
KNOWN = ("system", "developer", "user", "assistant", "tool")
ANY_MODEL = ("system", "user", "assistant")
"""Roles whose messages a template may shorten; it may not leave out those of other roles."""
FORMS = (
    *(("messages",), ("conversations",), ("conversation",)),
    *(("prompt", "completion"), ("instruction", "output"), ("instruction", "response")),
)
"""Fields of a row that make a conversation, the most usual first."""
OPTIONS = ("tools", "chat_template_kwargs")
"""Fields of a row that its template gets besides the messages."""
TODAY = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""What a template that writes the date is given, so that a set is the same on every day."""
BATCH = 256
"""Conversations encoded at a time, on all cores."""
LETTERS = "ꙮꔮꡔꗃ"
"""Letters that no text holds; one of them marks where a special token is spelled out."""


class Conversation(str):
    """The messages of a conversation; as a `str`, their contents joined by blank lines."""

    messages: list[dict[str, Any]]
    options: dict[str, Any]

    def __new__(cls, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Self:
        """Make one of checked messages (`role`, `content`) and options for the template."""
        contents = [str(message["content"]).strip() for message in messages]
        made = super().__new__(cls, "\n\n".join(filter(None, contents)))
        made.messages = [dict(message) for message in messages]
        made.options = dict(options)
        return made

    @property
    def as_json(self) -> str:
        """Return all that decides its tokens."""
        return json.dumps([self.messages, self.options], sort_keys=True, default=str)


def fields_of(names: Sequence[str], field: str = "") -> list[str]:
    """Return the fields of a row, or columns of a table, that a document is made of.

    `field`: the one that the user named. UserError, without the place, if there is none.
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

    UserError, without the place, if it is none of these.
    """
    first, value = fields[0], row.get(fields[0])
    if value is None or (isinstance(value, str) and len(fields) == 1):
        return value
    turns: list[Any] = []
    if row.get("system") and "system" in fields:
        turns = [{"role": "system", "content": row["system"]}]
    if first in ("prompt", "instruction") and len(fields) > 1 and fields[1] not in OPTIONS:
        asked = value
        if isinstance(value, str) and row.get("input") and "input" in fields:
            asked = f"{value}\n\n{row['input']}"
        for role, part in (("user", asked), ("assistant", row.get(fields[1]))):
            if part is None:
                return None
            turns += (
                [{"role": role, "content": part}] if isinstance(part, str) else _list(first, part)
            )
    else:
        if isinstance(value, str):
            return value
        turns += _list(first, value)
    options = {name: row[name] for name in OPTIONS if name in fields and row.get(name)}
    given = options.get("chat_template_kwargs", {})
    if not isinstance(given, dict):
        raise UserError(f"the field 'chat_template_kwargs' must hold settings, not {given!r}.")
    return Conversation([_message(turn, at) for at, turn in enumerate(turns, start=1)], options)


def _list(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        raise UserError(
            f"no text in the field {field!r} (it holds a {type(value).__name__}); it must hold "
            "text, or a list of messages with 'role' and 'content'."
        )
    return value


def _message(turn: Mapping[str, Any], at: int) -> dict[str, Any]:
    """Return a message as templates know it; UserError, without the place, if it is none."""
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


class Template:
    """A tokenizer's chat template: conversations → token ids.

    Special tokens are tokens where the template wrote them. One that a message spells out is text,
    unless the template itself looks for it there.
    """

    def __init__(self, tokenizer: Any, plain: Any) -> None:
        """Take transformers' tokenizer and a copy of its backend that nobody else uses."""
        from tokenizers import AddedToken

        self._tokenizer, self._backend = tokenizer, plain
        self._backend.encode_special_tokens = False
        self._special = special_names(tokenizer)
        self._mark = LETTERS[0]
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._twin = type(plain).from_str(plain.to_str())
        self._twin.encode_special_tokens = True
        aliases = []
        for number, name in enumerate(self._special):
            like = added.get(name, AddedToken(name, normalized=False))
            flags = ("lstrip", "rstrip", "single_word", "normalized")
            how = {flag: getattr(like, flag) for flag in flags}
            aliases.append(AddedToken(self._alias(number), special=False, **how))
        self._twin.add_tokens(aliases)
        self._real = {
            self._twin.token_to_id(self._alias(number)): plain.token_to_id(name)
            for number, name in enumerate(self._special)
        }
        # A name of one letter has no inside in which a mark could stand.
        names = sorted((n for n in self._special if len(n) > 1), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def _alias(self, number: int) -> str:
        return f"{self._mark}{number}{self._mark}"

    def encode(
        self, conversations: Sequence[Conversation], name: str
    ) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each conversation; `name` is the corpus's, for errors."""
        for first in range(0, len(conversations), BATCH):
            batch = enumerate(conversations[first : first + BATCH], start=first + 1)
            texts = [self._rendered(one, f"conversation {n} of {name!r}") for n, one in batch]
            usual = [text for text, aliased in texts if not aliased]
            ids = iter(self._backend.encode_batch_fast(usual, add_special_tokens=False))
            for text, aliased in texts:
                if aliased:
                    found = self._twin.encode(text, add_special_tokens=False).ids
                    yield np.array([self._real.get(token, token) for token in found], np.int32)
                else:
                    yield np.array(next(ids).ids, np.int32)

    def _rendered(self, conversation: Conversation, where: str) -> tuple[str, bool]:
        """Return a conversation as the template writes it, and whether aliases stand in it."""
        text = self._apply(conversation.messages, conversation.options, where)
        self._refuse_left_out(conversation.messages, text, where)
        if not any(self._pattern.search(message["content"]) for message in conversation.messages):
            return text, False
        if any(letter in text for letter in self._mark):
            raise UserError(
                f"{where} holds {self._mark!r}, which colazero uses as a mark: remove it."
            )
        guarded = [
            message | {"content": self._pattern.sub(self._marked, message["content"])}
            for message in conversation.messages
        ]
        safe = self._apply(guarded, conversation.options, where)
        if safe.replace(self._mark, "") != text:  # the template looks for special tokens itself
            return text, False
        numbers = {name: number for number, name in enumerate(self._special)}
        aliased = self._pattern.sub(lambda found: self._alias(numbers[found[0]]), safe)
        alias = re.compile(rf"({self._mark}\d+{self._mark})")
        parts = alias.split(aliased)
        return "".join(p if alias.fullmatch(p) else p.replace(self._mark, "") for p in parts), True

    def _marked(self, found: re.Match[str]) -> str:
        return found[0][0] + self._mark + found[0][1:]

    def _apply(self, messages: Any, options: Mapping[str, Any], where: str) -> str:
        how = {"tools": options.get("tools"), **options.get("chat_template_kwargs", {})}
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, strftime_now=TODAY.strftime, **how
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise UserError(
                f"{where}: the model's chat template does not take it: {first_line(error)}. Remove "
                "the conversation, or use chat=plain."
            ) from error
        return str(text)

    def _refuse_left_out(self, messages: Any, text: str, where: str) -> None:
        for at, message in enumerate(messages, start=1):
            words = message["content"].strip()
            if message["role"] not in ANY_MODEL and words and words not in text:
                raise UserError(
                    f"{where}: the model's chat template leaves out message {at}, of role "
                    f"{message['role']!r}. Remove the conversation, or use chat=plain."
                )


def special_names(tokenizer: Any) -> list[str]:
    """Return what a tokenizer's special tokens are spelled like."""
    added = (one.content for one in tokenizer.added_tokens_decoder.values() if one.special)
    return sorted({name for name in (*tokenizer.all_special_tokens, *added) if name})
