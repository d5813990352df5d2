"""A layer's Hessian H = Σ x xᵀ over its inputs, and its factor, which solving needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from colazero.errors import UserError
from colazero.types import QuantizationSettings

log = logging.getLogger(__name__)

ROWS = 4096
"""Rows that are converted to float32 and multiplied at once: bounds the memory of the copy."""
WIDEST = 128
"""The most columns that a block has; a wider group is solved in several blocks."""
LEAST_WEIGHT = 0.005
"""Weight of the token with the least attention, if the most is 1: as in the scripts of RSQ."""
DAMP_STEP = 0.01
"""Damp is raised by this each time that Cholesky fails, as in GPTQModel."""

Block = tuple[int, int]


class Hessian:
    """The sum of x xᵀ over all inputs x of a layer that were added, in float32.

    Only blocks on and below the diagonal are computed, which saves a third of the products or more.
    On CUDA half-precision inputs are multiplied as they are and summed in float32: exact but for
    the sums' rounding. Elsewhere they are converted to float32 first.

    weight: how often each window's first input counts. It is then x · √weight in the sum of squared
    errors that GPTQ minimizes.
    """

    def __init__(self, inputs: int, device: torch.device | str, weight: float = 1.0) -> None:
        self.tokens = 0
        self._weight = weight
        self._first: Tensor | None = None
        self._unweighted: Tensor | None = None
        self._sum = torch.zeros(inputs, inputs, device=device)
        # The smallest block that keeps the device busy.
        self._block = 1024 if self._sum.is_cuda else 256

    @torch.no_grad()
    def add(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Add inputs of any float dtype: [windows, tokens, inputs], or [tokens, inputs].

        weights: [windows, tokens], how often each input counts; see `token_weights`.
        UserError for the latter form if tokens have weights: their places are then unknown.
        """
        if x.ndim != 3 and (weights is not None or self._weight != 1):
            given = "attention" if weights is not None else f"{self._weight:g}"
            raise UserError(
                f"position_weight={given}: a layer of this model, such as an expert, gets tokens "
                "without their places in the window. Use position_weight=1."
            )
        if x.ndim == 3:
            squares = x[:, 0].float().square().sum()
            self._first = squares if self._first is None else self._first + squares
        if weights is not None:
            x = x.float()
            squares = x.square().sum()
            self._unweighted = squares if self._unweighted is None else self._unweighted + squares
            x = x * weights.to(x.device).sqrt()[..., None]
        rows = x.reshape(-1, x.shape[-1])
        self.tokens += len(rows)
        as_they_are = x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
        for part in (rows,) if as_they_are else torch.split(rows, ROWS):
            self._add(part if as_they_are else part.float())
        if self._weight != 1:
            self._add(x[:, 0].float(), self._weight - 1)

    def first_share(self) -> Tensor | None:
        """Return the share of Σ‖x‖² that comes from the windows' first inputs, without weights.

        A float64 number on the device; None if their places are unknown.
        """
        if self._first is None:
            return None
        trace = self._unweighted
        if trace is None:
            trace = self._sum.diagonal().sum() - (self._weight - 1) * self._first
        return torch.where(trace > 0, self._first.double() / trace.double(), 0.0)

    def _add(self, x: Tensor, weight: float = 1) -> None:
        for first in range(0, x.shape[1], self._block):
            last = first + self._block
            left, right, into = x[:, first:].T, x[:, first:last], self._sum[first:, first:last]
            if x.dtype == torch.float32:
                into.addmm_(left, right, alpha=weight)
            else:
                into.add_(torch.mm(left, right, out_dtype=torch.float32))

    def value(self) -> Tensor:
        """Return Σ x xᵀ, float32 [inputs, inputs] on the device: no copy, later adds change it.

        It is the plain sum. The solution does not depend on its scale: damp is a share of its mean
        diagonal.
        """
        for first in range(0, len(self._sum), self._block):
            last = first + self._block
            self._sum[first:last, last:] = self._sum[last:, first:last].T
            corner = self._sum[first:last, first:last]
            # The two halves of a symmetric product may differ in their last bit.
            corner.copy_(corner.tril() + corner.tril(-1).T)
        return self._sum


def token_weights(attended: Tensor) -> Tensor:
    """Return how often each token counts, from the attention that it gets, as in RSQ.

    attended: [windows, tokens], summed over heads and queries. The range within each window is
    mapped to 0.005..1 and divided by its mean, so that a window counts as often as it has tokens
    (attention concentration; Sung et al. 2025, arXiv 2503.01820, without its rotations).
    """
    low, high = attended.amin(1, keepdim=True), attended.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    scaled = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * (attended - low) / span
    return scaled / scaled.mean(1, keepdim=True)


@dataclass(frozen=True)
class Prepared:
    """What layers with one input share. H is the damped Hessian per token, in this order.

    `order`: int64 [inputs], the inputs in reverse: the last is solved first.
    `groups`: int64 [groups], the group that each run of `group_size` columns makes up, from the
    first solved on, in the checkpoint's numbering. `dead`: int64, the places in `order` of inputs
    that were always zero.
    `factor`: float32 [inputs, inputs], read below its diagonal blocks, in the strides that LAPACK
    gives. `corners`: those blocks in the order of `blocks()`, float32 and contiguous, as kernels
    compute addresses in them. `_by_blocks` says what both hold. `pivots` [inputs]: rounding a
    column with an error e costs (pivot · e)². Without a factor layers are rounded to nearest.
    `first_share`: see `Hessian.first_share`; None if unknown.
    """

    order: Tensor
    groups: Tensor
    group_size: int
    dead: Tensor
    factor: Tensor | None
    corners: tuple[Tensor, ...]
    pivots: Tensor | None
    damp: float
    tokens: int
    first_share: float | None

    def blocks(self) -> list[list[Block]]:
        """Return the blocks [low, high) of each group, in the order in which they are solved."""
        inputs, size = len(self.order), self.group_size
        return [_split(stop - size, stop) for stop in range(inputs, 0, -size)]


def _split(start: int, stop: int) -> list[Block]:
    """Return blocks [low, high) of at most WIDEST columns from the last to the first."""
    return [(max(high - WIDEST, start), high) for high in range(stop, start, -WIDEST)]


@torch.no_grad()
def prepare(hessian: Hessian, settings: QuantizationSettings) -> Prepared:
    """Order and factor a Hessian, once for all layers with its input.

    There is no factor if the inputs are all zero or not finite, or if no damp makes one.
    """
    value = hessian.value()
    diagonal = value.diagonal().clone()
    dead = diagonal == 0
    size = settings.group_size if settings.group_size != -1 else len(value)
    numbers = [dead.all().double(), diagonal.isfinite().all().double()]
    if (share := hessian.first_share()) is not None:
        numbers.append(share)
    empty, finite, *known = torch.stack(numbers).cpu().tolist()  # one wait for the device
    first_share = known[0] if known else None
    if empty or not finite:
        reason = "no values but zero" if empty else "values that are not finite"
        log.warning("a layer is rounded to nearest: its inputs have %s", reason)
        return _unfactored(dead, size, hessian.tokens, first_share)
    order, groups = _order(diagonal, size, settings)
    backwards = order.flip(0)
    ordered = value.index_select(0, backwards).index_select(1, backwards)
    lower, damp = _cholesky(ordered, settings.damp_percent)
    if lower is None:
        log.warning("a layer is rounded to nearest: no damp makes its Hessian positive definite")
        return _unfactored(dead, size, hessian.tokens, first_share)
    pivots = lower.diagonal() / hessian.tokens**0.5
    corners = _by_blocks(lower, size)
    places = dead[backwards].nonzero().flatten()
    tokens = hessian.tokens
    return Prepared(
        backwards, groups, size, places, lower, corners, pivots, damp, tokens, first_share
    )


def _unfactored(dead: Tensor, size: int, tokens: int, first_share: float | None) -> Prepared:
    order = torch.arange(len(dead), device=dead.device)
    groups = order[: len(dead) // size]
    return Prepared(order.flip(0), groups, size, order[:0], None, (), None, 0, tokens, first_share)


def _order(diagonal: Tensor, size: int, settings: QuantizationSettings) -> tuple[Tensor, Tensor]:
    """Return the inputs in the order in which they are solved, and the group of each run of them.

    desc_act: by falling diagonal, groups made up anew. act_group_aware (Gafni et al. 2025,
    arXiv 2505.14638): by falling diagonal within each group, and groups by their largest.
    """
    count = len(diagonal) // size
    natural = torch.arange(count, device=diagonal.device)
    if settings.desc_act:
        return torch.argsort(diagonal, descending=True, stable=True), natural
    if not settings.act_group_aware:
        return torch.arange(len(diagonal), device=diagonal.device), natural
    largest, within = diagonal.view(count, size).sort(dim=1, descending=True, stable=True)
    groups = torch.argsort(largest[:, 0], descending=True, stable=True)
    return (within + natural[:, None] * size)[groups].flatten(), groups


def _cholesky(matrix: Tensor, damp: float) -> tuple[Tensor | None, float]:
    """Return the lower Cholesky factor of a damped matrix and the damp; None if no damp does.

    Dead inputs, whose rows and columns are zero, get the mean of the others on the diagonal.
    """
    diagonal = matrix.diagonal()
    mean = diagonal.sum() / diagonal.count_nonzero()
    bare = torch.where(diagonal == 0, mean, diagonal)
    while damp < 1:
        diagonal.copy_(bare + damp * mean)
        lower, info = torch.linalg.cholesky_ex(matrix)
        if not info:
            return lower, damp
        del lower
        damp += DAMP_STEP
    return None, 0.0


def _by_blocks(lower: Tensor, size: int) -> tuple[Tensor, ...]:
    """Turn the factor L of H = L Lᵀ into the factors for solving, in place.

    Return the inverses of its diagonal blocks, each row divided by its diagonal, contiguous.

    GPTQ corrects later columns by the error of each, with rows of L⁻¹, the factor of H⁻¹. That
    needs the inverse of the diagonal blocks D of L alone, which are the blocks of L⁻¹. A whole
    block is corrected by all changes of weights before it, times L D⁻¹ below the diagonal: the
    factor of H in blocks (that both are the same: Chee et al. 2023, arXiv 2307.13304, theorem 6).
    So a third of the work of factor and inverse is enough.
    """
    corners = []
    for stop in range(len(lower), 0, -size):
        for low, high in _split(stop - size, stop):
            block = lower[low:high, low:high]
            eye = torch.eye(high - low, device=lower.device)
            inverse = torch.linalg.solve_triangular(block, eye, upper=False)
            lower[high:, low:high] = lower[high:, low:high] @ inverse
            corners.append((inverse / inverse.diagonal()[:, None]).contiguous())
    return tuple(corners)
