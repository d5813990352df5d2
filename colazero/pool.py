"""Documents → tokens, in one pass, cached on disk and memory-mapped; windows out of tokens."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.cache import cache_dir, new_entry
from colazero.calibration_check import refuse_unusable
from colazero.errors import UserError
from colazero.interfaces import CalibrationSet, Corpus, Selection, TokenPool

SEPARATOR = "\n\n"
"""What stands between two documents, in calibration windows and in the evaluation text."""
BATCH = 10_000
"""Documents tokenised at a time: bounds the memory of the intermediate lists."""


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits that change with anything that changes what the tokenizer does."""
    return hashlib.sha256(_plain(tokenizer).to_str().encode()).hexdigest()[:16]


def _plain(tokenizer: Any) -> Any:
    """Return a copy of the fast tokenizer that neither cuts nor pads, whoever used it before."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no fast version (tokenizer.json), which "
            "colazero needs; convert it once with transformers."
        )
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def build_pool(corpus: Corpus, tokenizer: Any, cache: Path | None = None) -> TokenPool:
    """Tokenise the corpus's training documents, or map the tokens kept from an earlier time.

    The cache entry is named by corpus, revision and tokenizer; one that is damaged or half
    written is built again.
    """
    key = f"{corpus.name}|{corpus.revision}|{tokenizer_digest(tokenizer)}|{len(corpus.train)}"
    entry = (cache or cache_dir()) / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:24]
    arrays = _read_entry(entry)
    if arrays is None:
        built = _tokenise(corpus.train, tokenizer)
        if _read_entry(entry) is None:  # another process may have been faster
            shutil.rmtree(entry, ignore_errors=True)
        with new_entry(entry) as draft:
            _write_entry(draft, *built)
        arrays = _read_entry(entry) or built
    tokens, starts, stops = arrays
    return TokenPool(corpus.train, tokens, starts, stops, frozenset(tokenizer.all_special_ids))


def _tokenise(
    texts: Sequence[str], tokenizer: Any
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    plain = _plain(tokenizer)
    plain.encode_special_tokens = True  # "<s>" written in a text is text, not a special token
    gap = np.array(plain.encode(SEPARATOR, add_special_tokens=False).ids, dtype=np.int32)
    pieces, lengths = [], []
    for first in range(0, len(texts), BATCH):
        batch = list(texts[first : first + BATCH])
        for encoding in plain.encode_batch_fast(batch, add_special_tokens=False):
            ids = np.array(encoding.ids, dtype=np.int32)
            pieces += [ids, gap]
            lengths.append(len(ids))
    tokens = np.concatenate(pieces[:-1]) if pieces else np.zeros(0, dtype=np.int32)
    steps = np.array(lengths, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(steps + len(gap))[:-1]]).astype(np.int64)
    return tokens, starts, starts + steps


NAMES = ("tokens", "starts", "stops")


def _write_entry(entry: Path, *arrays: NDArray[Any]) -> None:
    digests = {}
    for name, array in zip(NAMES, arrays, strict=True):
        np.save(entry / f"{name}.npy", array)
        digests[name] = _sha256(entry / f"{name}.npy")
    (entry / "digests.json").write_text(json.dumps(digests))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_entry(
    entry: Path,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]] | None:
    """Map the arrays of an entry; None if it is not there or not what was written."""
    try:
        digests = json.loads((entry / "digests.json").read_text())
        if any(_sha256(entry / f"{name}.npy") != digests[name] for name in NAMES):
            return None
        tokens, starts, stops = (np.load(entry / f"{name}.npy", mmap_mode="r") for name in NAMES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tokens, starts, stops


def need_tokens(available: int, windows: int, seq_len: int, corpus: str) -> None:
    """Raise UserError unless `windows` windows of `seq_len` tokens can be cut from `available`."""
    if available < windows * seq_len:
        fitting = available // seq_len
        ask = f"at most {fitting} windows of this length" if fitting else "shorter windows"
        raise UserError(
            f"corpus {corpus!r} is too small: {windows} windows of {seq_len} tokens need "
            f"{windows * seq_len:,} tokens, it has {available:,}. Ask for {ask}, or take a larger "
            "corpus."
        )


def cut(pool: TokenPool, selection: Selection, n: int, seq_len: int) -> CalibrationSet:
    """Cut the windows a method chose out of the pool.

    ValueError, a defect of the method and not of its user, unless there are exactly `n` windows
    of exactly `seq_len` tokens. UserError for a special token in one, or if two are the same.
    """
    windows = [
        np.concatenate([pool.tokens[s.start : s.stop] for s in spans])
        for spans in selection.windows
    ]
    if len(windows) != n or any(len(window) != seq_len for window in windows):
        lengths = sorted({len(window) for window in windows})
        raise ValueError(
            f"asked for {n} × {seq_len} tokens, got {len(windows)} windows of {lengths}"
        )
    stacked = np.stack(windows).astype(np.int32)
    refuse_unusable(stacked, pool.forbidden)
    return CalibrationSet(stacked, selection.windows, dict(selection.notes))
