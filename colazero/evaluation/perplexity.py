"""Evaluation texts, and the perplexity of whole models on them.

The protocol is that of the GPTQ papers (Frantar et al. 2023, arXiv 2210.17323). A model
directory, quantized or not, is loaded as a dense model in half precision. `through_blocks` does the
same one block at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import corpora
from colazero.blocks.probe import not_causal, other_endings
from colazero.blocks.skeleton import head_of
from colazero.blocks.weights import eval_dtype
from colazero.corpora import bos as bos_rule
from colazero.corpora.answers import answered
from colazero.corpora.chat import Writing
from colazero.corpora.tokens import open_pool, tokenizer, vocabulary
from colazero.errors import UserError
from colazero.models.files import (
    NEEDED,
    PACKED,
    packed_settings,
    packings,
    quantization,
    weight_files,
)
from colazero.models.fit import causal_class
from colazero.settings import Settings
from colazero.types import Corpus, Divergence, Model, Perplexity, Progress, Text, TokenPool
from colazero.values import NO_OPTIONS

TOKENS_A_BATCH = 4096
"""Tokens that go through the model at once, if that is more than one window."""
LOGITS_A_SLICE = 2**25
"""Logits computed at once (tokens × vocabulary): 128 MiB in float32, however large either is.

Only of a model that does something unknown to its logits, those of a whole window are.
"""

LLAMA2_WIKITEXT2_TOKENS = 341_469
"""Tokens of WikiText-2's test split, with the BOS token: 166 windows of 2,048, as in the papers."""
log = logging.getLogger(__name__)


def places(config: Settings, model: Model, found: Perplexity) -> Perplexity:
    """Return the result with each window's document, the text's windows and the corpus's source."""
    documents, available = _places(config, model, found.corpus, found.starts)
    source = corpora.load(found.corpus).source
    return replace(found, documents=documents, available=available, source=source)


def extent(config: Settings, model: Model) -> tuple[int, int]:
    """Return the numbers of windows and documents of a cell's first evaluation corpus."""
    first = config.model_copy(update={"eval_corpora": config.eval_corpora[:1]})
    (text,) = evaluation_texts(first, model)
    documents, _ = _places(config, model, text.corpus, text.starts)
    return len(documents), len(np.unique(documents))


def _places(
    config: Settings, model: Model, name: str, starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Return the document of each window, and the number of windows of the text."""
    corpus, pool = corpora.load(name), test_pool(model, name, config.chat_template_kwargs)
    how = (config.bos, config.eval_on, config.chat_template_kwargs)
    ids, scored, front = _tokens(model, corpus, pool, *how)
    length = config.evaluated_len - len(front)
    middle = starts + length // 2 - (len(ids) - len(pool.tokens))
    document = np.searchsorted(pool.starts, middle, side="right") - 1
    sources = np.asarray(corpus.test_sources or np.arange(len(pool.starts)), dtype=np.int64)
    available = len(usable(len(ids), length, corpus.test_windows, scored))
    return sources[np.maximum(document, 0)], available


def test_pool(model: Model, name: str, options: str) -> TokenPool:
    """Return the tokens of a corpus's test split, read as its training documents are.

    options: the setting `chat_template_kwargs`.
    """
    corpus = corpora.load(name)
    test = replace(corpus, name=f"{corpus.name} (test)", train=corpus.test)
    how: dict[str, Any] = {"between": corpus.joined_by, "writing": Writing(options=options)}
    pool = open_pool(test, vocabulary(model), lambda: tokenizer(model), **how)
    if pool.written:
        log.warning(
            "the test split of %s spells out %d special tokens of %s: they are read as text, as "
            "in calibration.",
            *(name, pool.written, model.name),
        )
    return pool


def _tokens(
    model: Model, corpus: Corpus, pool: TokenPool, bos: str, on: str, options: str
) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None, tuple[int, ...]]:
    """Return a test split's tokens, which of them are scored, and what begins each window.

    None are named where all are scored. `bos` decides the tokens in front, see `corpora.bos`.
    """
    known = vocabulary(model)
    rule = bos_rule.resolve(bos, model, known)
    ids, scored = pool.tokens, None
    if on == "answers":
        scored = answered(model, corpus, pool, Writing(options=options))
    if begin := bos_rule.of_text(rule, known, ids):
        ids = np.concatenate([np.array(begin, dtype=ids.dtype), ids])
        if scored is not None:
            scored = np.concatenate([np.zeros(len(begin), dtype=np.bool_), scored])
    return ids, scored, bos_rule.of_window(rule, known)


@lru_cache(maxsize=4)
def evaluation_text(
    model: Model,
    corpus: str,
    seq_len: int,
    count: int | str,
    bos: str = "auto",
    on: str = "all",
    options: str = NO_OPTIONS,
) -> Text:
    """Return the corpus's evaluation windows in the model's tokens, which are kept on disk.

    on: `answers` scores only what the assistant says, and leaves out windows without any of it; a
    corpus without conversations is scored whole. options: the setting `chat_template_kwargs`.
    """
    loaded, pool = corpora.load(corpus), test_pool(model, corpus, options)
    ids, scored, front = _tokens(model, loaded, pool, bos, on, options)
    warn_of_other_tokens(corpus, model.path, len(ids))
    windows, starts = eval_windows(
        ids, seq_len, count, loaded.name, front, loaded.test_windows, scored
    )
    if scored is None:
        return Text(corpus, windows, starts)
    places = starts[:, None] + np.arange(seq_len - len(front))
    before = np.zeros((len(starts), len(front)), dtype=np.bool_)
    return Text(corpus, windows, starts, np.concatenate([before, scored[places]], axis=1))


def evaluation_texts(config: Settings, model: Model) -> list[Text]:
    """Return the evaluation text of each corpus, in the order asked for."""
    what = (config.evaluated_len, config.eval_windows, config.bos)
    how = (config.eval_on, config.chat_template_kwargs)
    return [evaluation_text(model, name, *what, *how) for name in config.eval_corpora]


def warn_of_other_tokens(corpus: str, model_dir: Path, tokens: int) -> None:
    """Warn if WikiText-2 is in other tokens than those of Llama-2's published results.

    Its tokenizer is that of a model of type `llama` with 32,000 ids.
    """
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    llama2 = (config.get("model_type"), config.get("vocab_size")) == ("llama", 32_000)
    if corpus == "wikitext2" and llama2 and tokens != LLAMA2_WIKITEXT2_TOKENS:
        log.warning(
            "WikiText-2's test split is %s tokens of %s, and %s in published results of Llama-2: "
            "text or tokenizer are not those, and perplexities do not compare.",
            *(f"{tokens:,}", model_dir.name, f"{LLAMA2_WIKITEXT2_TOKENS:,}"),
        )


def eval_windows(
    ids: NDArray[np.integer],
    seq_len: int,
    count: int | str,
    corpus: str,
    front: Sequence[int] = (),
    most: int | None = None,
    scored: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut the test tokens `ids` into windows: [windows, seq_len], and where each begins in them.

    `front` stands at the beginning of each window, before as many tokens fewer. Drop the rest
    that does not fill a window, windows after the first `most`, and windows without a `scored`
    token. Return `count` windows, or `all`; fewer than all are spread evenly over the text.
    UserError with the name `corpus` if there are fewer.
    """
    length = seq_len - len(front)
    places = usable(len(ids), length, most, scored)
    available = len(places)
    wanted = available if count == "all" else int(count)
    if wanted > available or available == 0:
        which = "" if scored is None else " that hold a part of an answer (eval_on=answers)"
        raise UserError(
            f"eval_windows={count}: the test split of corpus {corpus!r} has {len(ids):,} tokens, "
            f"which is {available} windows of {seq_len}{which}. Ask for fewer or shorter."
        )
    chosen = np.arange(wanted) * available // wanted
    starts = places[chosen] * length
    windows = np.empty((wanted, seq_len), dtype=np.int64)
    windows[:, : len(front)] = front
    windows[:, len(front) :] = ids[starts[:, None] + np.arange(length)]
    return windows, starts


def usable(
    tokens: int, length: int, most: int | None, scored: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Return the numbers of the windows of `length` tokens that a text can be evaluated on.

    The first `most` windows, and of these the ones with a `scored` token behind their first.
    """
    count = tokens // length if most is None else min(tokens // length, most)
    if scored is None:
        return np.arange(count)
    return np.flatnonzero(scored[: count * length].reshape(count, length)[:, 1:].any(axis=1))


class Likelihoods:
    """Adds up the negative log-likelihood of each window's tokens from slices of its logits.

    The sums stay on the device until the end.
    """

    def __init__(self, text: Text, device: Any) -> None:
        import torch

        self._text = text
        self._sums = torch.zeros(len(text.windows), dtype=torch.float64, device=device)

    def take(self, window: int, part: slice, logits: Any, ids: Any) -> Any:
        """Take in the logits [positions, vocabulary] (float32) of positions `part` of a window.

        `ids`: the window's tokens, on the logits' device. Returns the log-probabilities of the
        positions whose predictions count.
        """
        known = logits.log_softmax(-1)
        actual = ids[part.start + 1 : part.stop + 1]
        if self._text.scored is not None:
            counts = np.flatnonzero(self._text.scored[window, part.start + 1 : part.stop + 1])
            known, actual = known[counts], actual[counts]
        self._sums[window] -= known.gather(-1, actual[:, None]).double().sum()
        return known

    def found(self, divergence: Divergence | None = None) -> Perplexity:
        """Return the text's sums; FloatingPointError if one is not finite."""
        text, sums = self._text, self._sums.cpu().numpy()
        finite = np.isfinite(sums)
        if not finite.all():
            raise FloatingPointError(
                f"perplexity on {text.corpus} is not finite "
                f"({int((~finite).sum())} windows of {len(finite)})"
            )
        windows, length = text.windows.shape
        tokens = np.full(windows, length - 1, dtype=np.int64)
        if text.scored is not None:
            tokens = text.scored[:, 1:].sum(axis=1)
        return Perplexity(text.corpus, text.starts, sums, tokens, digest(text), divergence)


def digest(text: Text) -> str:
    """Return 16 hex digits over a text's token ids and over which of them are scored."""
    whole = hashlib.sha256(np.ascontiguousarray(text.windows, dtype="<i8").data)
    if text.scored is not None:
        whole.update(np.packbits(text.scored).tobytes())
    return whole.hexdigest()[:16]


def perplexity(
    model: Any,
    corpus: str,
    windows: NDArray[np.int64],
    starts: NDArray[np.int64],
    progress: Progress = lambda done, total: None,
    scored: NDArray[np.bool_] | None = None,
) -> Perplexity:
    """Sum the negative log-likelihood of each window's tokens but the first, given those before.

    `windows`: token ids [windows, seq_len]; `scored` as in `Text`. Log-likelihoods are taken in
    float32 and added up in float64. The first window is a batch of its own: evaluated alone again,
    it gives the same bits. FloatingPointError if a sum is not finite.
    """
    import torch

    hidden_of, logits_of = _halves(model)
    batch = max(1, TOKENS_A_BATCH // windows.shape[1]) if logits_of else 1
    found = Likelihoods(Text(corpus, windows, starts, scored), model.device)
    done = 0
    with torch.inference_mode():
        while done < len(windows):
            ids = torch.from_numpy(windows[done : done + batch if done else 1]).to(model.device)
            for hidden, tokens in zip(hidden_of(ids), ids, strict=True):
                for part in slices(len(tokens), _vocabulary(logits_of, hidden)):
                    logits = logits_of(hidden[part]) if logits_of else hidden[part]
                    found.take(done, part, logits.float(), tokens)
                done += 1
            progress(done, len(windows))
    return found.found()


def slices(tokens: int, vocabulary: int) -> list[slice]:
    """Divide a window's predicting tokens (all but the last) so that logits of each are few."""
    rows = max(1, LOGITS_A_SLICE // vocabulary)
    return [slice(a, min(a + rows, tokens - 1)) for a in range(0, tokens - 1, rows)]


def _halves(model: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any] | None]:
    """Return two functions: token ids → what the head sees, and slices of that → logits.

    For most models: the decoder, and `skeleton.head_of`. Where these raise, or a short input shows
    that the model does something else to its logits: the whole model and None. UserError if the
    model is not causal.
    """
    import torch

    def whole(ids: Any) -> Any:
        return model(input_ids=ids, use_cache=False).logits

    def decoder(ids: Any) -> Any:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    head = head_of(model)
    with torch.inference_mode():
        first, second = torch.from_numpy(other_endings(model.config.get_text_config().vocab_size))
        expected = whole(second.to(model.device))
        if why := not_causal(whole(first.to(model.device)), expected):
            raise UserError(why)
        with suppress(Exception):  # on any error: the whole model gave logits
            if torch.equal(head(decoder(second.to(model.device))), expected):
                return decoder, head
    return whole, None


def _vocabulary(logits_of: Callable[[Any], Any] | None, hidden: Any) -> int:
    return int((logits_of(hidden[:1]) if logits_of else hidden).shape[-1])


def load_dense(model_dir: Path, device: str) -> Any:
    """Load a model directory, quantized or not, as a dense model in evaluation mode.

    UserError if it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    found = quantization(model_dir) or {}
    compressed = found.get("quant_method") == "compressed-tensors"  # llm-compressor's
    try:
        if found and not compressed:
            model = _dequantized(model_dir, device)
        else:
            how: dict[str, Any] = {}
            if compressed:
                how["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
            model, loading = AutoModelForCausalLM.from_pretrained(
                model_dir,
                dtype=eval_dtype(model_dir, device),
                trust_remote_code=False,
                output_loading_info=True,
                **how,
            )
            _complete(loading)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model directory {str(model_dir)!r} cannot be loaded: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval()


def _dequantized(model_dir: Path, device: str) -> Any:
    """Return a dense model of a packed checkpoint.

    The packed layers are dequantized once: the products of their dense weights are what a GPTQ
    kernel computes, and several times faster than the portable kernels. ValueError if the
    checkpoint is of another kind, KeyError if it is incomplete.
    """
    import torch
    from safetensors.torch import load_file

    from colazero.gptq import dequantize

    tensors: dict[str, Any] = {}
    for file in weight_files(model_dir):
        tensors |= load_file(file)
    dtype, settings = eval_dtype(model_dir, device), packed_settings(model_dir)
    model_class, config = causal_class(model_dir)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        packed = packings(model_class(config), tensors)
    inside = {layer + part for one in packed.values() for layer in one.layers for part in PACKED}
    weights = {name: tensor for name, tensor in tensors.items() if name not in inside}

    def dense(layer: str) -> Any:
        there = [part for part in PACKED if part in NEEDED or layer + part in tensors]
        parts = {part: tensors[layer + part].to(device) for part in there}
        return dequantize(**parts, **settings).to(dtype)

    for name, packing in packed.items():
        weight = packing.joined([dense(layer) for layer in packing.layers])
        weights[name] = weight.cpu()  # else a GPU would hold the model twice
    model, loading = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    _complete(loading)
    return model


def _complete(loading: Mapping[str, Any]) -> None:
    """Raise KeyError for weights that were not there: transformers makes random ones of them."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise KeyError(f"{len(missing)} weights are missing, {missing[0]!r} among them")
