"""Models: a name → a local directory of safetensors and tokenizer, at a known revision."""

from __future__ import annotations

from colazero.models.source import Model, check, fetch, is_quantized, label, load_tokenizer

__all__ = ["Model", "check", "fetch", "is_quantized", "label", "load_tokenizer"]
