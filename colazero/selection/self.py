"""Self-calibration: text that the model to be quantized writes itself, without a corpus.

After Williams, Chrysostomou and Aletras 2024 (arXiv 2410.17170): the model starts from its BOS
token and samples, which gives text similar to its training data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import models
from colazero.cache import cache_dir, facts_digest, own_code
from colazero.errors import UserError
from colazero.selection import METHODS, features, forward
from colazero.types import Selection, TokenPool

HEAD = 3
"""Tokens taken greedily before sampling, against degenerate starts; all windows share them.

LLM-QAT takes three to five (Liu et al. 2023, arXiv 2305.17888).
"""
TOKENS_AT_ONCE = 2**15
"""Tokens written in one batch: their keys and values are in memory."""


@METHODS.register("self")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Let the model write `n` windows at temperature 1, and keep them in the cache.

    Sample from the whole distribution without special tokens, which a window may not hold. A seed
    gives the same windows on the same kind of device. Raise UserError for a model without a token
    to start from.
    """
    model = forward.target(pool)
    seed = int(rng.integers(2**62))
    facts = [*forward.facts(pool, model), own_code(__name__), str((n, seq_len, seed))]
    entry = cache_dir() / "self" / facts_digest(*facts)
    return Selection([], tokens=features.kept(entry, lambda: write(pool, n, seq_len, seed)))


def write(pool: TokenPool, n: int, seq_len: int, seed: int) -> NDArray[np.int32]:
    """Return the windows [n, seq_len] that the model writes with this seed."""
    import torch
    from transformers import GenerationConfig

    from colazero.evaluation.perplexity import load_dense

    target = forward.target(pool)
    begin = first_token(target.name, models.load_tokenizer(target))
    model = load_dense(target.path, pool.settings.device)
    forbidden = sorted(pool.forbidden)

    def continued(ids: Any, length: int, **how: Any) -> Any:
        # Replaces the model's own configuration, which may truncate the distribution.
        model.generation_config = GenerationConfig(
            max_new_tokens=length, min_new_tokens=length, suppress_tokens=forbidden, **how
        )
        return model.generate(ids, attention_mask=torch.ones_like(ids))

    windows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads changes bits, and so the draws
    gpus = [] if model.device.type == "cpu" else [model.device]
    try:
        with torch.random.fork_rng(gpus), torch.inference_mode():
            torch.manual_seed(seed)
            start = torch.tensor([[begin]], device=model.device)
            start = continued(start, min(HEAD, seq_len), do_sample=False)
            at_once = max(1, TOKENS_AT_ONCE // seq_len)
            for first in range(0, n, at_once):
                rows = start.expand(min(at_once, n - first), -1)
                if seq_len > HEAD:
                    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
                    rows = continued(rows, seq_len - HEAD, **how)
                windows.append(rows[:, 1:].cpu().numpy())
    finally:
        torch.set_num_threads(threads)
    written: NDArray[np.int32] = np.concatenate(windows).astype(np.int32)
    return written


def first_token(name: str, tokenizer: Any) -> int:
    """Return the token that begins a text: BOS or, without one, EOS."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        f"method 'self': the tokenizer of {name} has no BOS or EOS token to start from. Use "
        "another method."
    )
