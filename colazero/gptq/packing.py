"""The Hugging Face GPTQ format and AWQ's: codes in words of 32 bits, and back to weights.

Codes follow each other down the inputs (`qweight`), zero points along the outputs (`qzeros`), as
one stream of bits each, lowest bit first; codes of 3 bits cross the borders of words. In version 1
of the format zero points are stored less one. AWQ's GEMM layout has 4 bits, both along the outputs,
and each eight of them in the order AWQ_ORDER.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from colazero.errors import UserError
from colazero.gptq.solving import Solved, values

PERIOD = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}
"""Bits a code → how many codes fill how many octets."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(solved: Solved, bits: int) -> dict[str, Tensor]:
    """Return a quantized layer's tensors by their names in a checkpoint.

    `qweight` int32 [inputs · bits / 32, outputs]; `qzeros` int32 [groups, outputs · bits / 32,
    rounded up], in version 1; `scales` float16 [groups, outputs]; `g_idx` int32 [inputs].
    UserError if the layer does not fill words.
    """
    outputs, inputs = solved.codes.shape
    if inputs * bits % 32 or (bits == 3 and outputs % 32):
        raise UserError(
            f"a layer of {inputs} inputs and {outputs} outputs cannot be packed at quant_bits="
            f"{bits}: codes would not fill words of 32 bits. Use quant_bits=8, or 4 or 2."
        )
    zeros = solved.zeros.T.to(torch.uint8)
    if bits == 3:
        words = _words((zeros - 1) & 7, bits)
    else:  # from whole words, as GPTQModel does: a zero point of 0 borrows from its neighbour
        padding = -outputs % (32 // bits)
        words = _words(torch.nn.functional.pad(zeros, (0, 0, 0, padding)), bits) - _ones(bits)
    return {
        "qweight": _words(solved.codes.T, bits),
        "qzeros": words.T.contiguous(),
        "scales": solved.scales,
        "g_idx": solved.g_idx,
    }


def pack_awq(solved: Solved) -> dict[str, Tensor]:
    """Return a layer's tensors by their names in an AWQ checkpoint (GEMM, 4 bits).

    `qweight` int32 [inputs, outputs / 8]; `qzeros` int32 [groups, outputs / 8]; `scales` float16
    [groups, outputs]. Outputs are a multiple of 8, groups in order.
    """

    def words(codes: Tensor) -> Tensor:  # of [n, outputs]
        eights = codes.to(torch.uint8).reshape(len(codes), -1, 8)[:, :, list(AWQ_ORDER)]
        return _words(eights.reshape(codes.shape).T, 4).T.contiguous()

    return {
        "qweight": words(solved.codes.T),
        "qzeros": words(solved.zeros),
        "scales": solved.scales.contiguous(),
    }


def _of_awq(words: Tensor) -> Tensor:
    """Return the codes [n, outputs] of words [n, outputs / 8]."""
    codes = _codes(words.T, 4).T
    eights = codes.reshape(len(words), -1, 8)
    back = [AWQ_ORDER.index(output) for output in range(8)]
    return eights[:, :, back].reshape(codes.shape)


def dequantize(
    qweight: Tensor,
    qzeros: Tensor,
    scales: Tensor,
    g_idx: Tensor | None = None,
    *,
    bits: int,
    v1: bool,
    awq: bool = False,
) -> Tensor:
    """Return (code − zero point) · scale in float32, [inputs, outputs].

    `qweight`: int32 [inputs · bits / 32, outputs]; `qzeros`: int32 [groups, outputs · bits / 32];
    `scales`: [groups, outputs]; `g_idx`: each input's group, in order where it is None; `v1`: zero
    points are stored less one; `awq`: both are in AWQ's layout, see `pack_awq`. `bits` count where
    there is no `g_idx`: a layer may have others than the configuration says.
    """
    if g_idx is not None:
        bits = 32 * len(qweight) // len(g_idx)
    codes = _of_awq(qweight) if awq else _codes(qweight, bits)
    if v1 and bits != 3:
        qzeros = qzeros + _ones(bits)
    zeros = _of_awq(qzeros) if awq else _codes(qzeros.T, bits)[: scales.shape[1]].T
    if v1 and bits == 3:
        zeros = (zeros + 1) & 7
    if g_idx is None:
        g_idx = torch.arange(len(codes), device=codes.device) // (len(codes) // len(scales))
    return values(codes, zeros, scales, g_idx)


def _ones(bits: int) -> int:
    """Return a word that holds a one in each field."""
    return sum(1 << at for at in range(0, 32, bits))


def _shifts(bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (code, octet, how far the code's lowest bit lies above the octet's) of a period."""
    codes, octets = PERIOD[bits]
    for code in range(codes):
        for octet in range(octets):
            shift = code * bits - octet * 8
            if -bits < shift < 8:
                yield code, octet, shift


def _words(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 [codes, n] into int32 [codes · bits / 32, n]."""
    many, n = codes.shape
    per_period, octets_a_period = PERIOD[bits]
    codes = codes.reshape(-1, per_period, n)
    octets = codes.new_zeros(len(codes), octets_a_period, n)
    for code, octet, shift in _shifts(bits):
        part = codes[:, code]
        octets[:, octet] |= part << shift if shift >= 0 else part >> -shift
    words = octets.view(many * bits // 32, 4, n).transpose(1, 2)
    return words.reshape(-1).view(torch.int32).view(-1, n)


def _codes(words: Tensor, bits: int) -> Tensor:
    """Unpack int32 [codes · bits / 32, n] into uint8 [codes, n]."""
    many, n = words.shape
    per_period, octets_a_period = PERIOD[bits]
    octets = words.reshape(-1).view(torch.uint8).view(many, n, 4).transpose(1, 2)
    octets = octets.reshape(-1, octets_a_period, n)
    codes = octets.new_zeros(len(octets), per_period, n)
    for code, octet, shift in _shifts(bits):
        part = octets[:, octet]
        codes[:, code] |= part >> shift if shift >= 0 else part << -shift
    return codes.view(-1, n).bitwise_and_(2**bits - 1)
