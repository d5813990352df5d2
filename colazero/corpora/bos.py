"""The tokens in front of a window: one rule for calibration and evaluation.

The GPTQ papers tokenize a text once and cut it: the BOS token, if the tokenizer writes one, stands
at the beginning of the whole text (`first`). Gemma was trained with BOS in front of every input and
computes nonsense without it, so `auto` puts it in front of every window there.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.tokens import Vocabulary, vocabulary
from colazero.errors import UserError
from colazero.settings import Settings
from colazero.types import Model

NEEDS_IT = "gemma"
"""Part of the `model_type` of families that need BOS in front of every window.

Google's model cards and Hugging Face's documentation of Gemma say so; llama.cpp also adds it to
every chunk of its perplexity run.
"""


def resolve(asked: str, model: Model, known: Vocabulary) -> str:
    """Return `always`, `first` or `never` for the setting `asked`.

    `auto` is `always` if the family needs BOS in every window and the tokenizer has one, whether it
    writes it or not, else `first`. UserError for `always` if the tokenizer has no BOS token.
    """
    if asked == "auto":
        family = json.loads((model.path / "config.json").read_text()).get("model_type", "")
        return "always" if known.bos and NEEDS_IT in family else "first"
    if asked == "always" and not known.bos:
        raise UserError(
            f"bos='always': the tokenizer of model {model.name!r} has no BOS token. Use bos=auto."
        )
    return asked


def of_window(rule: str, known: Vocabulary) -> tuple[int, ...]:
    """Return the tokens in front of each window, for a resolved rule."""
    return known.bos if rule == "always" else ()


def of_text(rule: str, known: Vocabulary, ids: NDArray[np.int32]) -> tuple[int, ...]:
    """Return the tokens in front of an evaluation text as a whole, for a resolved rule.

    Most chat templates write them at the beginning of a conversation themselves.
    """
    there = tuple(ids[: len(known.front)].tolist()) == known.front
    return known.front if rule == "first" and not there else ()


def in_front(config: Settings, model: Model) -> tuple[int, ...]:
    """Return the tokens in front of each calibration window of a model."""
    known = vocabulary(model)
    return of_window(resolve(config.bos, model, known), known)


def text_length(config: Settings, model: Model) -> int:
    """Return the number of text tokens in a calibration window: a BOS token in front is not one."""
    return config.seq_len - len(in_front(config, model))
