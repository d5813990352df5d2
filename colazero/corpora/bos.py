"""Which tokens stand in front of a window: one rule for calibration and evaluation.

The GPTQ papers tokenise a text once and cut it: the BOS token, where the tokenizer writes one,
stands at the beginning of the whole text (`first`). Gemma was trained with BOS in front of every
input and computes nonsense without it, so `auto` puts it in front of every window there.
"""

from __future__ import annotations

import json

from colazero.corpora.pool import Vocabulary
from colazero.corpora.tokens import vocabulary
from colazero.errors import UserError
from colazero.settings import Settings
from colazero.types import Model

NEEDS_IT = "gemma"
"""What the `model_type` of families contains that need BOS in front of every window.

Google's model cards and Hugging Face's documentation of Gemma say so; llama.cpp adds it to every
chunk of its perplexity run too.
"""


def resolve(asked: str, model: Model, known: Vocabulary) -> str:
    """Return `always`, `first` or `never` for what was asked.

    `auto` is `always` where the family needs BOS in every window and the tokenizer has one, whether
    it writes it by itself or not, else `first`. UserError if there is no BOS token to put anywhere.
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
    """Return the tokens in front of each window, of a resolved rule."""
    return known.bos if rule == "always" else ()


def of_text(rule: str, known: Vocabulary) -> tuple[int, ...]:
    """Return the tokens in front of an evaluation text as a whole, of a resolved rule."""
    return known.front if rule == "first" else ()


def in_front(config: Settings, model: Model) -> tuple[int, ...]:
    """Return the tokens in front of each calibration window of a model."""
    known = vocabulary(model)
    return of_window(resolve(config.bos, model, known), known)


def text_length(config: Settings, model: Model) -> int:
    """Return the tokens of text in a calibration window: BOS, where it stands in front, is none."""
    return config.seq_len - len(in_front(config, model))
