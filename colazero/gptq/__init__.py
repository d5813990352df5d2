"""The arithmetic of GPTQ on tensors (Frantar et al. 2023, arXiv 2210.17323).

Inputs of a linear layer add up to its `Hessian`; `prepare` orders and factors it, once for all
layers with that input; `solve` quantizes a weight with it; `pack` writes the result in the Hugging
Face GPTQ format and `dequantize` reads it back. Nothing here knows of models, files or MLflow.
"""

from __future__ import annotations

from colazero.gptq.hessian import Hessian, Prepared, prepare, token_weights
from colazero.gptq.packing import dequantize, pack
from colazero.gptq.solving import Solved, solve

__all__ = [
    "Hessian",
    "Prepared",
    "Solved",
    "dequantize",
    "pack",
    "prepare",
    "solve",
    "token_weights",
]
