"""A corpus in the tokens of a model: tokenized in one pass, kept on disk and memory-mapped."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from colazero import corpora, models
from colazero.cache import cache_dir, facts_digest, kept_arrays, kept_json
from colazero.corpora.chat import Conversation, Template, Writing, special_names
from colazero.corpora.stream import Tokens, stream
from colazero.errors import UserError
from colazero.settings import RunConfig, Settings
from colazero.types import Corpus, Model, TokenPool
from colazero.values import NO_OPTIONS

SEPARATOR = "\n\n"
"""What stands between two documents, in calibration windows and in the evaluation text."""
WRITING = Writing()
CHUNK = 2**22
"""Tokens counted at a time."""
ARRAYS = ("tokens", "starts", "stops", "written")


@dataclass(frozen=True)
class Vocabulary:
    """The facts about a tokenizer that are kept, so that it need not be loaded.

    `special`: ids of special tokens. `front`: what it writes in front of a text; `bos`: what can
    begin a text. `template`: a digest of its chat template, '' without one.
    """

    digest: str
    special: frozenset[int]
    front: tuple[int, ...] = ()
    bos: tuple[int, ...] = ()
    template: str = ""


@lru_cache(maxsize=2)
def tokenizer(model: Model) -> Any:
    """Return the model's tokenizer."""
    return models.load_tokenizer(model)


@lru_cache(maxsize=4)
def vocabulary(model: Model) -> Vocabulary:
    """Return the facts about the model's tokenizer, kept on disk: loading one takes seconds."""
    versions = f"{version('transformers')}-{version('tokenizers')}"

    def asked() -> dict[str, Any]:
        found = vocabulary_of(tokenizer(model))
        return asdict(found) | {"special": sorted(found.special)}

    kept = kept_json(f"vocabularies/{model.revision}-{versions}-template.json", asked)
    special, front, bos = frozenset(kept["special"]), tuple(kept["front"]), tuple(kept["bos"])
    return Vocabulary(kept["digest"], special, front, bos, kept["template"])


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return what names the tokens of a tokenizer."""
    special = frozenset(tokenizer.all_special_ids)
    front: list[int] = []
    for token in tokenizer("a", verbose=False).input_ids:
        if token not in special:
            break
        front.append(token)
    own = tokenizer.bos_token_id
    bos = tuple(front) or (() if own is None else (int(own),))
    template = str(tokenizer.chat_template or "")
    template = hashlib.sha256(template.encode()).hexdigest()[:16] if template else ""
    return Vocabulary(tokenizer_digest(tokenizer), special, tuple(front), bos, template)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits that change whenever the tokenizer's tokens would."""
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
    """Return a copy of the fast tokenizer that neither truncates nor pads."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(_backend(tokenizer).to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


@lru_cache(maxsize=2)
def token_pool(
    model: Model, corpus: str, share: float = 1, seed: int = 0, writing: Writing = WRITING
) -> TokenPool:
    """Return the corpus's training documents, or the share that a seed draws, in tokens."""
    whole, documents = corpora.load(corpus), None
    if share < 1:
        whole, documents = corpora.drawn(whole, share, seed)
    open_it = (vocabulary(model), lambda: tokenizer(model), None, SEPARATOR)
    found = open_pool(whole, *open_it, writing)
    if whole.parts:
        whole, chosen = corpora.mixed(whole, found.stops - found.starts)
        documents = chosen if documents is None else documents[chosen]
        found = open_pool(whole, *open_it, writing)
    if _uses_template(whole, vocabulary(model), writing.chat):
        found = replace(found, plain=open_pool(whole, *open_it, Writing("plain")))
    return replace(found, documents=documents)


def pool_of(config: RunConfig, model: Model) -> TokenPool:
    """Return the pool that a cell's method chooses from."""
    return token_pool(model, *drawn_by(config))


def drawn_by(config: RunConfig) -> tuple[str, float, int, Writing]:
    """Return the arguments of `token_pool` that decide a cell's documents and their writing."""
    share = config.corpus_share
    return config.corpus, share, config.seed if share < 1 else 0, writing_of(config)


def writing_of(config: Settings) -> Writing:
    """Return how conversations are written for calibration."""
    return Writing(config.chat, config.chat_template_kwargs)


@lru_cache(maxsize=2)
def corpus_counts(
    model: Model, corpus: str, share: float = 1, seed: int = 0, writing: Writing = WRITING
) -> NDArray[np.int64]:
    """Count each token id in what `token_pool` returns."""
    return token_counts(token_pool(model, corpus, share, seed, writing).tokens)


def build_pool(corpus: Corpus, tokenizer: Any, cache: Path | None = None) -> TokenPool:
    """Do as `open_pool` with a tokenizer that is loaded."""
    return open_pool(corpus, vocabulary_of(tokenizer), lambda: tokenizer, cache)


def open_pool(
    corpus: Corpus,
    known: Vocabulary,
    load: Callable[[], Any],
    cache: Path | None = None,
    between: str = SEPARATOR,
    writing: Writing = WRITING,
) -> TokenPool:
    """Tokenize the corpus's training documents, or map the tokens that are kept in the cache.

    `load` gives the tokenizer, and is called only if there is something to tokenize. `between`
    stands between two texts; conversations follow each other as the template writes them. A cache
    entry that is damaged or half written is built again.
    """
    rendered = _uses_template(corpus, known, writing.chat)
    facts = (corpus.name, corpus.revision, known.digest, str(len(corpus.train)))
    key = facts_digest("joined", between, *facts)
    names: tuple[str, ...] = ARRAYS
    if rendered:
        options = [] if writing.options == NO_OPTIONS else [writing.options]
        template = (known.template, version("transformers"), *options)
        key = facts_digest("rendered", between, *facts, *template)
        names = (*ARRAYS, "placed")
    entry = (cache or cache_dir()) / "tokens" / key
    arrays = kept_arrays(
        entry,
        names,
        lambda draft: _tokenize(corpus, load(), draft, between, writing if rendered else None),
    )
    forbidden = known.special - frozenset(arrays["placed"].tolist() if rendered else ())
    places, written = (arrays["starts"], arrays["stops"]), int(arrays["written"][0])
    return TokenPool(corpus.train, arrays["tokens"], *places, forbidden, entry, written)


def _uses_template(corpus: Corpus, known: Vocabulary, chat: str) -> bool:
    """Return True if conversations are written by the chat template.

    UserError if `chat` asks for it, and the corpus has no conversations or the model no template.
    """
    there = any(isinstance(document, Conversation) for document in corpus.train)
    if chat == "template" and not there:
        raise UserError(
            f"chat='template': corpus {corpus.name!r} has no conversations. Use chat=auto, or a "
            "corpus with the field 'messages'."
        )
    if chat == "template" and not known.template:
        raise UserError(
            "chat='template': the model's tokenizer has no chat template. Use chat=plain, or an "
            "instruct model."
        )
    return there and bool(known.template) and chat != "plain"


def _tokenize(
    corpus: Corpus, tokenizer: Any, folder: Path, between: str, writing: Writing | None
) -> None:
    """Write the arrays of a pool, holding some tokens at a time."""
    starts, stops = (np.zeros(len(corpus.train), dtype=np.int64) for _ in range(2))
    rendered = writing is not None
    special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)
    placed: set[int] = set()
    total = first = 0
    kinds = groupby(corpus.train, key=lambda one: rendered and isinstance(one, Conversation))
    with (folder / "tokens.npy").open("wb") as file:
        _write_header(file, 0)
        for conversations, group in kinds:
            texts = list(group)
            its = slice(first, first + len(texts))
            if conversations:
                template = Template(tokenizer, writing)
                its_own = [text for text in texts if isinstance(text, Conversation)]
                for at, ids in enumerate(template.encode(its_own, corpus.name), start=first):
                    file.write(ids.tobytes())
                    placed.update(np.intersect1d(ids, special).tolist())
                    starts[at], stops[at] = total, total + len(ids)
                    total += len(ids)
            else:
                sizes = np.array([len(text) for text in texts], dtype=np.int64)
                # In characters: where each document begins, and where it ends.
                begins = np.cumsum(sizes + len(between)) - sizes - len(between)
                begin, end = _Places(begins), _Places(begins + sizes)
                before = total
                for tokens in text_tokens(texts, tokenizer, between):
                    file.write(tokens.ids.tobytes())
                    begin.see(tokens.at)
                    end.see(tokens.at)
                    total += len(tokens.ids)
                starts[its], stops[its] = before + begin.found(), before + end.found()
            first += len(texts)
        file.seek(0)
        _write_header(file, total)
    np.save(folder / "starts.npy", starts)
    np.save(folder / "stops.npy", stops)
    np.save(folder / "written.npy", [written_special(corpus.train, tokenizer)])
    if rendered:
        np.save(folder / "placed.npy", np.array(sorted(placed), dtype=np.int64))


def text_tokens(texts: Sequence[str], tokenizer: Any, between: str = SEPARATOR) -> Iterator[Tokens]:
    """Return the tokens of documents with `between` between them; no token is special."""
    plain = _plain(tokenizer)
    plain.encode_special_tokens = True  # "<s>" spelled out in a text is text
    return stream(texts, between, plain)


def written_special(texts: Sequence[str], tokenizer: Any) -> int:
    """Count the special tokens (`<|endoftext|>`) that texts spell out, which count as text."""
    names = special_names(tokenizer)
    if not names:
        return 0
    pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return sum(len(pattern.findall(text)) for text in texts)


class _Places:
    """Finds the tokens that begin at characters of a text, or next; tokens come some at a time."""

    def __init__(self, characters: NDArray[np.int64]) -> None:
        self._characters, self._done, self._tokens = characters, 0, 0
        self._found = np.zeros(len(characters), dtype=np.int64)

    def see(self, at: NDArray[np.int64]) -> None:
        """Take the next tokens; `at` is the character at which each begins."""
        stop = int(np.searchsorted(self._characters, at[-1], side="right")) if len(at) else 0
        if stop > self._done:
            wanted = self._characters[self._done : stop]
            self._found[self._done : stop] = self._tokens + np.searchsorted(at, wanted)
            self._done = stop
        self._tokens += len(at)

    def found(self) -> NDArray[np.int64]:
        """Return the number of a token for each character, after the last token came."""
        self._found[self._done :] = self._tokens
        return self._found


def _write_header(stream: BinaryIO, tokens: int) -> None:
    """Write the header of a .npy file; numpy pads it, so that its length stays the same."""
    head = {"descr": "<i4", "fortran_order": False, "shape": (tokens,)}
    np.lib.format.write_array_header_1_0(stream, head)  # type: ignore[no-untyped-call]


def need_tokens(available: int, windows: int, seq_len: int, corpus: str) -> None:
    """Raise UserError unless `windows` windows of `seq_len` tokens can be cut from `available`."""
    if available < windows * seq_len:
        fitting = available // seq_len
        ask = f"at most {fitting} windows of this length" if fitting else "shorter windows"
        raise UserError(
            f"n_calibration_samples={windows}: corpus {corpus!r} is too small: {windows} windows "
            f"of {seq_len} tokens need {windows * seq_len:,} tokens, it has {available:,}. Ask for "
            f"{ask}, or take a larger corpus."
        )


def token_counts(tokens: NDArray[np.int32], size: int = 0) -> NDArray[np.int64]:
    """Count each token id, piece by piece, so that a mapped file is never in memory whole."""
    counts = np.zeros(max(size, int(tokens.max(initial=-1)) + 1), dtype=np.int64)
    for first in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[first : first + CHUNK], minlength=len(counts))
    return counts
