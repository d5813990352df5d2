"""Models: a name → a local directory of safetensors and tokenizer, at a known revision."""

from __future__ import annotations

from colazero.models.files import is_quantized
from colazero.models.source import check, fetch, load_tokenizer
from colazero.types import label

__all__ = ["check", "fetch", "is_quantized", "label", "load_tokenizer"]
