"""Documents → tokens, in one pass, cached on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from colazero.cache import cache_dir, facts_digest, kept_arrays, kept_json
from colazero.corpora.stream import Tokens, stream
from colazero.errors import UserError
from colazero.types import Corpus, TokenPool

SEPARATOR = "\n\n"
"""What stands between two documents, in calibration windows and in the evaluation text."""
CHUNK = 2**22
"""Tokens counted at a time."""
ARRAYS = ("tokens", "starts", "stops", "written")


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits that change with anything that changes what the tokenizer does."""
    backend = _backend(tokenizer)
    if backend.truncation or backend.padding:  # a copy takes a tenth of a second: only if needed
        backend = _plain(tokenizer)
    return hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]


def _backend(tokenizer: Any) -> Any:
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"the tokenizer {type(tokenizer).__name__} has no fast version (tokenizer.json), which "
            "colazero needs; convert it once with transformers."
        )
    return tokenizer.backend_tokenizer


def _plain(tokenizer: Any) -> Any:
    """Return a copy of the fast tokenizer that neither cuts nor pads, whoever used it before."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(_backend(tokenizer).to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


@dataclass(frozen=True)
class Vocabulary:
    """What has to be known of a tokenizer whose tokens are there: its digest, special ids.

    `front`: what it writes in front of a text by itself; `bos`: what begins a text, if it can.
    """

    digest: str
    special: frozenset[int]
    front: tuple[int, ...] = ()
    bos: tuple[int, ...] = ()


def vocabulary(tokenizer: Any) -> Vocabulary:
    """Return what names the tokens of a tokenizer."""
    special = frozenset(tokenizer.all_special_ids)
    front: list[int] = []
    for token in tokenizer("a", verbose=False).input_ids:
        if token not in special:
            break
        front.append(token)
    own = tokenizer.bos_token_id
    bos = tuple(front) or (() if own is None else (int(own),))
    return Vocabulary(tokenizer_digest(tokenizer), special, tuple(front), bos)


def kept_vocabulary(revision: str, load: Callable[[], Any]) -> Vocabulary:
    """Return `vocabulary(load())` of the model at this revision, kept on disk from then on.

    Loading a tokenizer takes seconds, most of them imports.
    """
    name = f"vocabularies/{revision}-{version('transformers')}-{version('tokenizers')}.json"
    kept = kept_json(name, lambda: _as_json(vocabulary(load())))
    special = frozenset(kept["special"])
    return Vocabulary(kept["digest"], special, tuple(kept["front"]), tuple(kept["bos"]))


def _as_json(found: Vocabulary) -> dict[str, Any]:
    return asdict(found) | {"special": sorted(found.special)}


def build_pool(corpus: Corpus, tokenizer: Any, cache: Path | None = None) -> TokenPool:
    """Tokenise the corpus's training documents, or map the tokens kept from an earlier time.

    The cache entry is named by corpus, revision and tokenizer; one that is damaged or half
    written is built again.
    """
    return open_pool(corpus, vocabulary(tokenizer), lambda: tokenizer, cache)


def open_pool(
    corpus: Corpus,
    known: Vocabulary,
    load: Callable[[], Any],
    cache: Path | None = None,
    between: str = SEPARATOR,
) -> TokenPool:
    """Do as `build_pool`, and `load` the tokenizer only if there is something to tokenise.

    `between`: what stands between two documents.
    """
    facts = (corpus.name, corpus.revision, known.digest, str(len(corpus.train)))
    key = facts_digest("joined", between, *facts)
    entry = (cache or cache_dir()) / "tokens" / key
    arrays = kept_arrays(entry, ARRAYS, lambda draft: _tokenise(corpus, load(), draft, between))
    places = arrays["starts"], arrays["stops"]
    written = int(arrays["written"][0])
    return TokenPool(corpus.train, arrays["tokens"], *places, known.special, entry, written)


def _tokenise(corpus: Corpus, tokenizer: Any, folder: Path, between: str) -> None:
    """Write the arrays of a pool, holding some tokens at a time."""
    sizes = np.array([len(text) for text in corpus.train], dtype=np.int64)
    # In characters: where each document begins, and where it ends.
    begins = np.cumsum(sizes + len(between)) - sizes - len(between)
    starts, stops = _Places(begins), _Places(begins + sizes)
    total = 0
    with (folder / "tokens.npy").open("wb") as file:
        _write_header(file, 0)
        for tokens in text_tokens(corpus.train, tokenizer, corpus.name, between):
            file.write(tokens.ids.tobytes())
            starts.see(tokens.at)
            stops.see(tokens.at)
            total += len(tokens.ids)
        file.seek(0)
        _write_header(file, total)
    np.save(folder / "starts.npy", starts.found())
    np.save(folder / "stops.npy", stops.found())
    np.save(folder / "written.npy", [written_special(corpus.train, tokenizer)])


def text_tokens(
    texts: Sequence[str], tokenizer: Any, name: str, between: str = SEPARATOR
) -> Iterator[Tokens]:
    """Yield the tokens of documents joined by blank lines; special tokens in a text are text.

    UserError, which names the corpus, for half a character.
    """
    plain = _plain(tokenizer)
    plain.encode_special_tokens = True  # "<s>" written in a text is text, not a special token
    _refuse_half_characters(texts, 0, name)
    yield from stream(texts, between, plain)


def written_special(texts: Sequence[str], tokenizer: Any) -> int:
    """Count how often texts spell a special token out (`<|endoftext|>`): it is text there."""
    added = (one.content for one in tokenizer.added_tokens_decoder.values() if one.special)
    names = {name for name in (*tokenizer.all_special_tokens, *added) if name}
    if not names:
        return 0
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return sum(len(pattern.findall(text)) for text in texts)


class _Places:
    """Characters of a text → the tokens that begin there, or next; tokens come a few at a time."""

    def __init__(self, characters: NDArray[np.int64]) -> None:
        self._characters, self._done, self._tokens = characters, 0, 0
        self._found = np.zeros(len(characters), dtype=np.int64)

    def see(self, at: NDArray[np.int64]) -> None:
        """Take the next tokens; `at` says at which character each begins."""
        stop = int(np.searchsorted(self._characters, at[-1], side="right")) if len(at) else 0
        if stop > self._done:
            wanted = self._characters[self._done : stop]
            self._found[self._done : stop] = self._tokens + np.searchsorted(at, wanted)
            self._done = stop
        self._tokens += len(at)

    def found(self) -> NDArray[np.int64]:
        """Return a token for each character, after the last token came."""
        self._found[self._done :] = self._tokens
        return self._found


def _refuse_half_characters(texts: Sequence[str], first: int, corpus: str) -> None:
    for number, text in enumerate(texts, start=first):
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise UserError(
                f"document {number} of corpus {corpus!r} (counted from 0) holds half of a "
                "surrogate pair, which is no text: remove it."
            )


def _write_header(stream: BinaryIO, tokens: int) -> None:
    """Write the head of a .npy file; numpy gives it room to grow, so its length stays the same."""
    head = {"descr": "<i4", "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(stream, head)  # type: ignore[no-untyped-call]


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


def token_counts(tokens: NDArray[np.int32], size: int = 0) -> NDArray[np.int64]:
    """Count each token id, piece by piece: a mapped file is never in memory whole."""
    counts = np.zeros(max(size, int(tokens.max(initial=-1)) + 1), dtype=np.int64)
    for first in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[first : first + CHUNK], minlength=len(counts))
    return counts
