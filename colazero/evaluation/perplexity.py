"""Perplexity by the protocol of the GPTQ papers (Frantar et al. 2023, arXiv 2210.17323)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.pool import SEPARATOR
from colazero.errors import UserError
from colazero.interfaces import Corpus, Perplexity, Progress

TOKENS_A_BATCH = 4096
"""Tokens that go through the model at once, if that is more than one window."""
LOGITS_A_SLICE = 2**25
"""Logits computed at once (tokens × vocabulary): 128 MiB in float32, however large either is.

Only of a model that does something unknown to its logits, those of a whole window are.
"""


def evaluation_tokens(corpus: Corpus, tokenizer: Any) -> NDArray[np.int64]:
    """Return the token ids of the test text.

    The test documents are joined by blank lines and tokenised once, with the tokenizer's own
    special tokens at the ends, as the papers' code does.
    """
    text = SEPARATOR.join(corpus.test)
    return np.array(tokenizer(text, verbose=False).input_ids, dtype=np.int64)


def eval_windows(
    ids: NDArray[np.int64], seq_len: int, count: int | str, corpus: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the test tokens `ids` into windows: [windows, seq_len], and where each begins.

    The rest that fills no window is dropped. `count` windows, or `all`; fewer than all are spread
    evenly over the text. UserError, which names the `corpus`, if there are fewer.
    """
    available = len(ids) // seq_len
    wanted = available if count == "all" else int(count)
    if wanted > available or available == 0:
        raise UserError(
            f"the test split of corpus {corpus!r} has {len(ids):,} tokens, which is "
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
    float64. The first window is a batch of its own: evaluated alone again, it gives the same bits.
    FloatingPointError if a sum is not finite.
    """
    import torch

    hidden_of, logits_of = _halves(model)
    batch = max(1, TOKENS_A_BATCH // windows.shape[1]) if logits_of else 1
    nll: list[float] = []
    with torch.inference_mode():
        while len(nll) < len(windows):
            stop = len(nll) + batch if nll else 1
            ids = torch.from_numpy(windows[len(nll) : stop]).to(model.device)
            for hidden, tokens in zip(hidden_of(ids), ids, strict=True):
                nll.append(_window_nll(logits_of, hidden, tokens))
            progress(len(nll), len(windows))
    sums = np.array(nll)
    if not np.isfinite(sums).all():
        bad = int((~np.isfinite(sums)).sum())
        raise FloatingPointError(
            f"perplexity on {corpus} is not finite ({bad} windows of {len(sums)})"
        )
    tokens = np.full(len(windows), windows.shape[1] - 1, dtype=np.int64)
    digest = hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").data).hexdigest()[:16]
    return Perplexity(corpus, starts, sums, tokens, digest)


def _halves(model: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
    """Return two functions: token ids → what the head sees, and slices of that → logits.

    For most models: the decoder and the output embeddings, with Gemma's cap where the model has
    one. Where it does something else to its logits, which one short input tells: the whole model
    and None.
    """
    import torch

    def whole(ids: Any) -> Any:
        return model(input_ids=ids, use_cache=False).logits

    def decoder(ids: Any) -> Any:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)

    def capped(hidden: Any) -> Any:
        return torch.tanh(head(hidden) / cap) * cap if cap else head(hidden)

    probe = torch.arange(8, device=model.device)[None]
    with torch.inference_mode():
        if torch.equal(capped(decoder(probe)), whole(probe)):
            return decoder, capped
    return whole, None


def _window_nll(logits_of: Callable[[Any], Any] | None, hidden: Any, ids: Any) -> float:
    """Return the sum of one window; `ids` [tokens]. `hidden` [tokens, width]: logits if None."""
    from torch.nn import functional as F

    vocabulary = (logits_of(hidden[:1]) if logits_of else hidden).shape[-1]
    rows = max(1, LOGITS_A_SLICE // vocabulary)
    total = 0.0
    for first in range(0, len(ids) - 1, rows):
        some = hidden[:-1][first : first + rows]
        predicted = (logits_of(some) if logits_of else some).float()
        actual = ids[1:][first : first + rows]
        total += F.cross_entropy(predicted, actual, reduction="none").double().sum().item()
    return total
