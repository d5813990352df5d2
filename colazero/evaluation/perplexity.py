"""Perplexity by the protocol of the GPTQ papers (Frantar et al. 2023, arXiv 2210.17323)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError
from colazero.interfaces import Corpus, Perplexity, Progress
from colazero.pool import SEPARATOR

LOGITS_A_BATCH = 2**27
"""Logits computed at once (tokens × vocabulary): 256 MiB in half precision."""
ROWS_A_SLICE = 512
"""Token positions whose logits are widened to float32 at once."""


def eval_windows(
    corpus: Corpus, tokenizer: Any, seq_len: int, count: int | str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the test text into windows: token ids [windows, seq_len], and where each begins.

    The test documents are joined by blank lines and tokenised once, with the tokenizer's own
    special tokens at the ends, as the papers' code does; the rest that fills no window is
    dropped. `count` windows, or `all`; fewer than all are spread evenly over the text.
    """
    text = SEPARATOR.join(corpus.test)
    ids = np.array(tokenizer(text, verbose=False).input_ids, dtype=np.int64)
    available = len(ids) // seq_len
    wanted = available if count == "all" else int(count)
    if wanted > available or available == 0:
        raise UserError(
            f"the test split of corpus {corpus.name!r} has {len(ids):,} tokens, which is "
            f"{available} windows of {seq_len}; eval_windows={count}. Ask for fewer or shorter."
        )
    chosen = np.arange(wanted) * available // wanted
    starts = chosen * seq_len
    return ids[starts[:, None] + np.arange(seq_len)], starts


def perplexity(
    model: Any,
    corpus: str,
    windows: NDArray[np.int64],
    starts: NDArray[np.int64],
    progress: Progress = lambda done, total: None,
) -> Perplexity:
    """Sum the negative log-likelihood of each window's tokens but the first, given those before.

    `windows`: token ids [windows, seq_len]. Log-likelihoods are taken in float32 and added up in
    float64. FloatingPointError if the sum is not finite.
    """
    import torch

    vocabulary = model.get_output_embeddings().weight.shape[0]
    batch = max(1, LOGITS_A_BATCH // (windows.shape[1] * vocabulary))
    nll = []
    with torch.inference_mode():
        for first in range(0, len(windows), batch):
            ids = torch.from_numpy(windows[first : first + batch]).to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits
            nll += [_window_nll(row, tokens) for row, tokens in zip(logits, ids, strict=True)]
            progress(min(first + batch, len(windows)), len(windows))
    sums = np.array(nll)
    if not np.isfinite(sums).all():
        bad = int((~np.isfinite(sums)).sum())
        raise FloatingPointError(
            f"perplexity on {corpus} is not finite ({bad} windows of {len(sums)})"
        )
    tokens = np.full(len(windows), windows.shape[1] - 1, dtype=np.int64)
    digest = hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").data).hexdigest()[:16]
    return Perplexity(corpus, starts, sums, tokens, digest)


def _window_nll(logits: Any, ids: Any) -> float:
    from torch.nn import functional as F

    total = 0.0
    for first in range(0, len(ids) - 1, ROWS_A_SLICE):
        predicted = logits[:-1][first : first + ROWS_A_SLICE].float()
        actual = ids[1:][first : first + ROWS_A_SLICE]
        total += F.cross_entropy(predicted, actual, reduction="none").double().sum().item()
    return total
