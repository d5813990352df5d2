"""The tokens of conversations that the assistant says, for a loss over answers alone.

A template may mark them itself with `{% generation %}`. Otherwise the template writes the messages
before an answer with the generation prompt, and then again with the answer. The answer is the text
that the second result adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from colazero.cache import kept_arrays
from colazero.corpora.chat import Conversation, Template, Writing
from colazero.corpora.tokens import tokenizer
from colazero.errors import UserError, first_line
from colazero.types import Corpus, Model, TokenPool

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def answered(
    model: Model, corpus: Corpus, pool: TokenPool, writing: Writing
) -> NDArray[np.bool_] | None:
    """Return which tokens of the test split `pool` are the assistant's; None for plain text.

    `pool`: the test documents of `corpus`, as `open_pool` gives them with this `writing`. Documents
    that are not conversations have no such tokens. Kept in the cache. UserError without a chat
    template, and if the template does not show where an answer begins and ends.
    """
    if not any(isinstance(text, Conversation) for text in pool.texts):
        return None
    if pool.entry is None or not tokenizer(model).chat_template:
        raise UserError(
            f"eval_on='answers': the tokenizer of model {model.name!r} has no chat template, so "
            "nothing shows where an answer begins. Use eval_on=all, or an instruct model."
        )

    def build(draft: object) -> None:
        found = np.zeros(len(pool.tokens), dtype=np.bool_)
        template = Template(tokenizer(model), writing)
        for number, text in enumerate(pool.texts):
            if isinstance(text, Conversation):
                mask = tokens_of(template, text, f"conversation {number + 1} of {corpus.name!r}")
                found[pool.starts[number] : pool.stops[number]] = mask
        np.save(f"{draft}/answered.npy", found)

    entry = pool.entry.parent.parent / "answers" / pool.entry.name
    return kept_arrays(entry, ["answered"], build)["answered"]


def tokens_of(template: Template, one: Conversation, where: str) -> NDArray[np.bool_]:
    """Return which tokens of a conversation, as `Template.encode` gives them, are the assistant's.

    Include the end-of-turn token, but no white space after it. `where` is for errors.
    """
    special = template.spells_special(one)  # transformers does not mark answers in these
    if GENERATION.search(template.source(one)) and not special:
        how = {"return_dict": True, "return_assistant_tokens_mask": True}
        found = template.apply(one, tokenize=True, **how)
        return np.array(found["assistant_masks"], dtype=np.bool_)
    if special:
        ids = template.apply(one, tokenize=True, sanitize_control_tokens=True)
        found = np.zeros(len(ids), dtype=np.bool_)
        for begin, end in _between(template, one, where, tokenize=True):
            while end > begin and template.decoded(ids[end - 1]).isspace():
                end -= 1
            found[begin:end] = True
        return found
    text = template.rendered(one, where)
    offsets = template.offsets(text)
    found = np.zeros(len(offsets), dtype=np.bool_)
    for begin, end in _between(template, one, where, tokenize=False):
        end = len(text[:end].rstrip())
        found |= (offsets[:, 0] >= begin) & (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return found


def _between(
    template: Template, one: Conversation, where: str, *, tokenize: bool
) -> Iterator[tuple[int, int]]:
    """Yield where each answer begins and ends, in characters or in tokens of the conversation."""
    how = {"tokenize": tokenize, "sanitize_control_tokens": tokenize}
    whole = template.apply(one, **how)
    for at, message in enumerate(one.messages):
        if message["role"] != "assistant":
            continue
        parts = [Conversation(one.messages[:until], one.options) for until in (at, at + 1)]
        try:
            before = template.apply(parts[0], add_generation_prompt=True, **how)
            after = template.apply(parts[1], **how)
        except Exception as error:  # a template is a program, and can raise anything
            raise _hidden(where, at, first_line(error)) from None
        if after[: len(before)] != before or whole[: len(after)] != after:
            raise _hidden(where, at, "it rewrites the messages before the answer")
        yield len(before), len(after)


def _hidden(where: str, at: int, why: str) -> UserError:
    return UserError(
        f"eval_on='answers': {where}: the chat template does not show where message {at + 1}, an "
        f"answer, begins and ends ({why.rstrip('.')}). Use eval_on=all, or a template that marks "
        "answers with {% generation %}."
    )
