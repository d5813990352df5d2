"""Quantizers, one backend a file; its library is imported inside. See `interfaces.Quantizer`."""

from __future__ import annotations

from colazero.interfaces import Quantizer
from colazero.registry import Registry

QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "colazero.quantizers")
