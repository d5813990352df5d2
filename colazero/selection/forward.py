"""Features that need a forward pass of a model over the first tokens of each document."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero import devices, environment, models
from colazero.errors import UserError
from colazero.types import Model, TokenPool

DIMENSIONS = 64
"""Dimensions of the random projection of activations."""
BATCH_TOKENS = 2_048
"""Tokens per batch, with padding: bounds memory, and is too few for padding to cost much."""

Measure = Callable[[Any, Any, Any], Any]
"""(model, token ids [batch, length], mask [batch, length]) → one row per document, as a tensor."""


def perplexity(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log of each document's perplexity under `proxy_model`, [documents, 1].

    The log, because perplexities spread over orders of magnitude and the few largest would decide
    the distances. Only the first `document_tokens` of the proxy's own tokens count. A document of
    one token predicts nothing and gets the mean.
    """
    limit = pool.settings.document_tokens
    tokenizer = models.load_tokenizer(proxy(pool))
    rows = []
    for document in documents:
        # A token has at most 64 characters, so the rest of a long text need not be read.
        text = pool.texts[document][: 64 * limit]
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        rows.append(np.array(ids[:limit], dtype=np.int64))
    values = forward(proxy(pool).path, pool.settings.device, rows, mean_nll)
    finite = np.isfinite(values)
    return np.where(finite, values, values[finite].mean() if finite.any() else 0.0)


def activations(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each document's activations in the model to be quantized, [documents, 64].

    Take the mean of each block's output over the first `document_tokens` tokens, and divide it by
    its norm, so that each block counts the same. Concatenate the blocks and project them with a
    fixed random matrix (Johnson and Lindenstrauss), which nearly keeps the distances.
    """
    limit = pool.settings.document_tokens
    spans = zip(pool.starts[documents], pool.stops[documents], strict=True)
    rows = [np.array(pool.tokens[start:stop][:limit]) for start, stop in spans]
    return forward(target(pool).path, pool.settings.device, rows, projected_means())


def target(pool: TokenPool) -> Model:
    """Return the model to be quantized; raise UserError if the pool has none."""
    if pool.model is None:
        raise UserError("this method needs the model to be quantized, but pool.model is None.")
    return pool.model


def proxy(pool: TokenPool) -> Model:
    """Return the small model that measures perplexities."""
    return models.fetch(pool.settings.proxy_model)


def facts(pool: TokenPool, model: Model) -> list[str]:
    """Return what decides these features apart from the documents and the source code."""
    device = devices.identity(pool.settings.device)
    libraries = [version(name) for name in ("torch", "transformers")]
    return [model.revision, str(pool.settings.document_tokens), device, *libraries]


def forward(
    model_dir: Path, device: str, rows: Sequence[NDArray[Any]], measure: Measure
) -> NDArray[np.float64]:
    """Run the model on `rows` of token ids, in batches of similar length; return one row for each.

    On a CPU each batch runs on one thread, and as many batches run at a time as there are cores,
    so that the bits do not depend on the number of cores.
    """
    import torch

    from colazero.evaluation.perplexity import load_dense

    model = load_dense(model_dir, device)

    def run(batch: NDArray[np.int64]) -> NDArray[np.float64]:
        lengths = [len(rows[i]) for i in batch]
        ids = np.zeros((len(batch), max(lengths)), dtype=np.int64)
        for row, i in enumerate(batch):
            ids[row, : lengths[row]] = rows[i]
        mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
        with torch.inference_mode():
            tensors = (torch.from_numpy(a).to(model.device) for a in (ids, mask))
            values: NDArray[np.float64] = measure(model, *tensors).double().cpu().numpy()
        return values

    parts = batches([len(row) for row in rows])
    threads = torch.get_num_threads()
    workers = _cores() if device == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            results = list(pool.map(run, parts))
    finally:
        torch.set_num_threads(threads)
    ordered = np.empty((len(rows), results[0].shape[1]))
    ordered[np.concatenate(parts)] = np.concatenate(results)
    return ordered


def batches(lengths: Sequence[int]) -> list[NDArray[np.int64]]:
    """Divide documents, longest first, into batches of at most BATCH_TOKENS tokens with padding."""
    order = np.argsort(-np.array(lengths), kind="stable")
    parts: list[list[int]] = []
    for i in order:
        longest = lengths[parts[-1][0]] if parts else 0
        if not parts or (len(parts[-1]) + 1) * longest > BATCH_TOKENS:
            parts.append([])
        parts[-1].append(int(i))
    return [np.array(part, dtype=np.int64) for part in parts]


def _cores() -> int:
    available = len(os.sched_getaffinity(0))
    return min(available, environment.threads() or available)


def mean_nll(model: Any, ids: Any, mask: Any) -> Any:
    """Return the mean negative log-likelihood per token, [batch, 1], in nats.

    NaN for a document of one token.
    """
    import torch
    from torch.nn import functional as F

    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    real = mask[:, 1:]
    flat = zip(logits, ids[:, 1:], strict=True)  # one document at a time: logits are large
    nll = torch.stack([F.cross_entropy(row.float(), i, reduction="none") for row, i in flat])
    return (nll * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)


def projected_means() -> Measure:
    """Return the measure of `activations`; its projection is the same in every call."""
    import torch

    projections: list[Any] = []

    def measure(model: Any, ids: Any, mask: Any) -> Any:
        hidden = model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
        ).hidden_states[1:]
        if not projections:
            rng = np.random.default_rng(0)
            shape = (len(hidden), hidden[0].shape[-1], DIMENSIONS)
            drawn = rng.standard_normal(shape, dtype=np.float32) / DIMENSIONS**0.5
            projections.append(torch.from_numpy(drawn).to(ids.device))
        real = mask[:, :, None].float()
        total = torch.zeros(len(ids), DIMENSIONS, device=ids.device)
        for layer, projection in zip(hidden, projections[0], strict=True):
            # Zero times infinity is NaN, so padding is masked by where() and not by a product.
            kept = torch.where(mask[:, :, None], layer.float(), 0.0)
            mean = kept.sum(dim=1) / real.sum(dim=1)
            total += torch.nn.functional.normalize(mean, dim=1) @ projection
        return total

    return measure
