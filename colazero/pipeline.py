"""One run, without MLflow or command lines: checked, then select → quantize → evaluate.

Whatever would fail later is refused before any work, and each `auto` is resolved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from colazero import corpora, devices, models, selection
from colazero.calibration import sets, trial
from colazero.calibration.sets import ordered, pieces, select
from colazero.corpora import bos as bos_rule
from colazero.corpora.chat import Writing
from colazero.corpora.documents import lay
from colazero.corpora.tokens import (
    corpus_counts,
    drawn_by,
    need_tokens,
    pool_of,
    token_pool,
    tokenizer,
    vocabulary,
    writing_of,
)
from colazero.errors import UserError
from colazero.evaluation import perplexity as texts
from colazero.evaluation.perplexity import evaluation_text as evaluation_text
from colazero.evaluation.perplexity import evaluation_texts as evaluation_texts
from colazero.evaluation.perplexity import test_pool
from colazero.models import fit
from colazero.quantizers import (
    ACT_GROUP_AWARE,
    QUANTIZERS,
    UNQUANTIZED,
    WITHOUT_CALIBRATION,
    check_quantizer,
    supported,
)
from colazero.selection import features
from colazero.settings import SETTINGS, Resolved, RunConfig, Settings
from colazero.types import (
    BlockEvaluator,
    CalibrationSet,
    Downstream,
    Evaluation,
    Model,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    SelectionSettings,
    Work,
)

if TYPE_CHECKING:
    from colazero.evaluation.through_blocks import Evaluator

log = logging.getLogger(__name__)


def check(
    config: Settings, methods: Sequence[str], names: Sequence[str], *, device: str = ""
) -> None:
    """Raise UserError for a name or device that does not exist, before anything is loaded.

    The user's own methods are tried on a toy pool. names: of models. device: `cpu` or `cuda:N`
    where cells run on other machines, whose devices this one may lack.
    """
    trial.refuse_defective(methods)
    for method in methods:
        if selection.uses_proxy(method):
            models.check(config.proxy_model)
    for corpus in (config.corpus, *config.eval_corpora):
        corpora.check(corpus)
    if config.do_downstream:
        from colazero.evaluation import downstream

        downstream.check(config.downstream_tasks)
    for name in names:
        models.check(name)
    device = device or devices.resolve(config.device)
    check_quantizer(config.quantizer, device, config.act_group_aware)


def resolve(config: RunConfig, model: Model, device: str = "") -> Resolved:
    """Return the cell with every `auto` replaced by what it means for the model and the device.

    device: `cpu` or `cuda:N` if a worker computes the cell; without it, the device of this process,
    on which the quantizer is tried. UserError if the quantizer does not take the model.
    """
    if config.quantizer != UNQUANTIZED:
        fit.refuse_quantized(model)
        supported.check_model(config.quantizer, model.name, model.path)
    if not device:
        device = devices.resolve(config.device)
        fit.refuse_not_finite(model)  # else the trial below fails with a less clear message
        supported.try_model(config.quantizer, model.name, model.path, device)
    inputs = supported.layer_inputs(model.path, config.quantizer)
    group_size = supported.GROUP_SIZE if config.group_size == "auto" else config.group_size
    if SETTINGS["group_size"].taken(config.quantizer) or config.quantizer == UNQUANTIZED:
        group_size = supported.resolve_group_size(config.group_size, inputs)
    able = config.quantizer in ACT_GROUP_AWARE and not config.desc_act and group_size != -1
    gar = able if config.act_group_aware == "auto" else config.act_group_aware
    bos = bos_rule.resolve(config.bos, model, vocabulary(model))
    values = config.model_dump() | {"group_size": group_size, "act_group_aware": gar}
    values |= {"device": device, "bos": bos, "eval_seq_len": config.evaluated_len}
    return Resolved(**values)


def check_data(config: Settings, model: Model) -> None:
    """Raise UserError if a corpus is too small for what is asked of it, or the model unfit."""
    check_calibration(config, model)
    check_evaluation(config, model)


def check_calibration(config: Settings, model: Model) -> None:
    """Raise UserError unless windows of this number and length can be cut for the model."""
    fit.refuse_long_windows(model, config.seq_len)
    pool = token_pool(model, config.corpus, writing=writing_of(config))
    tokens, length = pool.tokens, bos_rule.text_length(config, model)
    if config.windows == "document":
        tokens = lay(pool, length, bos_rule.in_front(config, model)).pool.tokens
    available = int(config.corpus_share * len(tokens))
    need_tokens(available, config.n_calibration_samples, length, config.corpus)
    fit.refuse_unknown_ids(model, int(pool.tokens.max()), f"corpus {config.corpus!r}")


def check_evaluation(config: Settings, model: Model) -> None:
    """Raise UserError if the model is unfit, takes no windows so long, or a test split has too few.

    Every weight is looked at, once a model.
    """
    fit.refuse_long_windows(model, config.evaluated_len)
    fit.refuse_not_finite(model)
    if config.do_downstream and config.downstream_chat and not vocabulary(model).template:
        raise UserError(
            f"downstream_chat=true: the tokenizer of model {model.name!r} has no chat template. "
            "Use downstream_chat=false, or an instruct model."
        )
    found = evaluation_texts(config, model)
    for text in found:
        fit.refuse_unknown_ids(model, int(text.windows.max()), f"the test split of {text.corpus!r}")
    if config.eval_on == "answers" and all(text.scored is None for text in found):
        raise UserError(
            f"eval_on='answers': eval_corpora={','.join(config.eval_corpora)} have no "
            "conversations. Use eval_on=all, or a corpus with the field 'messages'."
        )


def check_set(model: Model, calibration: CalibrationSet) -> None:
    """Raise UserError if the model cannot be quantized, or takes no such windows."""
    fit.refuse_quantized(model)
    fit.refuse_not_finite(model)
    if len(calibration.windows):
        fit.refuse_long_windows(model, calibration.windows.shape[1])
        fit.refuse_unknown_ids(model, int(calibration.windows.max()), "the calibration set")


@lru_cache(maxsize=4)
def test_ngrams(model: Model, name: str, options: str) -> NDArray[np.uint64]:
    """Return the n-grams of a corpus's test split, each once, sorted."""
    return np.unique(sets.ngrams(test_pool(model, name, options).tokens))


def with_bos(config: Settings, model: Model, calibration: CalibrationSet) -> CalibrationSet:
    """Return the set as the quantizer gets it: with BOS in front of each window where it belongs.

    A calibration set itself holds only text.
    """
    front = bos_rule.in_front(config, model)
    columns = np.tile(np.array(front, dtype=np.int32), (len(calibration.windows), 1))
    windows = np.concatenate([columns, calibration.windows], axis=1)
    return replace(calibration, windows=windows) if front and len(windows) else calibration


def calibrate(config: RunConfig, model: Model) -> tuple[CalibrationSet, dict[str, float]]:
    """Choose the calibration windows; return them and, as metrics, the seconds that it took.

    Tokenising, which all methods share, is done before the clock starts, and the set is checked
    after it stopped: its measures join the notes. Features count also where they come from the
    cache, with the seconds that they took then, which a metric of their own names. The windows come
    in the order that the seed draws. UserError if the set is not fit to calibrate on. A quantizer
    that needs no calibration gets no windows.
    """
    if config.quantizer in WITHOUT_CALIBRATION:
        return CalibrationSet(np.zeros((0, config.seq_len), dtype=np.int32), (), {}), {
            "selection_time_sec": 0.0
        }
    check_calibration(config, model)
    length = bos_rule.text_length(config, model)
    laid = None
    pool = replace(
        pool_of(config, model),
        model=model,
        selection_settings=SelectionSettings.of(config, devices.resolve(config.device)),
    )
    if config.windows == "document":
        laid = lay(pool, length, bos_rule.in_front(config, model))
        log.info(
            "windows=document: %d windows begin with a document; %.1f %% of the corpus's tokens "
            "lie behind a cut.",
            *(len(laid.begins), 100 * laid.share_lost),
        )
    # one_thread() loads what it limits before the clock starts
    with selection.one_thread(), features.spared() as spared:
        begin = time.perf_counter()
        chosen = select(
            config.method,
            pool,
            config.n_calibration_samples,
            length,
            config.seed,
            config.corpus,
            laid,
        )
        seconds = time.perf_counter() - begin + sum(spared)
    times = {"selection_time_sec": seconds, "selection.features_reused_sec": sum(spared)}
    notes = {**chosen.notes, **checked(config, model, chosen), "pieces": pieces(chosen, pool)}
    written = np.intersect1d(chosen.windows, list(vocabulary(model).special - pool.forbidden))
    if written.size:  # special tokens that a chat template put there; elsewhere they are refused
        notes["template_tokens"] = written.tolist()
    return ordered(replace(chosen, notes=notes), config.seed, config.replicate), times


def checked(config: RunConfig, model: Model, chosen: CalibrationSet) -> dict[str, float]:
    """Return the measures of a calibration set; UserError if too much of it is evaluation text."""
    options = config.chat_template_kwargs
    tests = {name: test_ngrams(model, name, options) for name in config.eval_corpora}
    return {
        "tokens_asked": config.n_calibration_samples * bos_rule.text_length(config, model),
        "special_tokens_written": token_pool(
            model, config.corpus, writing=writing_of(config)
        ).written,
        **sets.measures(chosen, pool_of(config, model), corpus_counts(model, *drawn_by(config))),
        **sets.overlap(chosen, tests),
    }


def quantize(
    config: Resolved,
    model: Model,
    calibration: CalibrationSet,
    out_dir: Path,
    progress: Progress,
    evaluator: BlockEvaluator | None = None,
) -> QuantizationReport:
    """Quantize `model` on `calibration` into the directory `out_dir`.

    A quantizer that works block by block calls the `evaluator` after each block.
    RuntimeError if the quantizer used fewer tokens than the calibration set has.
    """
    calibration = with_bos(config, model, calibration)
    check_set(model, calibration)
    names = [field.name for field in fields(QuantizationSettings)]
    settings = QuantizationSettings(**{name: getattr(config, name) for name in names})
    work = Work(model.path, calibration, settings, out_dir, config.device, progress, evaluator)
    report = QUANTIZERS.get(config.quantizer)(work)
    used = report.tokens_used
    if used is not None and used < calibration.windows.size:
        raise RuntimeError(
            f"{config.quantizer} used {used:,} of the {calibration.windows.size:,} tokens of the "
            "calibration set: its result is not of this set."
        )
    outside = supported.refuse_lost_scales(model.name, out_dir)
    dense = supported.left_dense(model.path, out_dir) if models.is_quantized(out_dir) else ()
    if dense:
        log.warning(
            "%s left %d matrices in the blocks of %s unquantized, such as %s.",
            *(config.quantizer, len(dense), model.name, dense[0]),
        )
    return replace(report, unquantized=dense, scales_outside_float16=outside)


def evaluator(config: Settings, model: Model) -> Evaluator:
    """Return the evaluator of a model that is being quantized, on the texts of `config`."""
    from colazero.evaluation import through_blocks

    texts = evaluation_texts(config, model)
    references = through_blocks.references(model, config.device, texts)
    return through_blocks.Evaluator(texts, references)


def evaluate(
    config: Settings,
    model: Model,
    model_dir: Path,
    progress: Progress,
    done: Evaluator | None = None,
) -> Evaluation:
    """Evaluate the weights in `model_dir` with the tokenizer of `model`.

    done: the evaluator that ran while they were quantized; its results are not computed again.
    """
    from colazero.evaluation import through_blocks
    from colazero.evaluation.perplexity import load_dense

    begin = time.perf_counter()
    results = done.perplexities if done else []
    if not results:
        asked = evaluation_texts(config, model)
        if model_dir == model.path:
            results = through_blocks.unquantized(model, config.device, asked, progress)
        else:
            known = done.references if done else ()
            results = through_blocks.perplexities(model_dir, config.device, asked, progress, known)
    results = [texts.places(config, model, result) for result in results]
    downstream = Downstream()
    if config.do_downstream:
        from colazero.evaluation import downstream as tasks

        loaded = load_dense(model_dir, config.device)
        chat = Writing(options=config.chat_template_kwargs) if config.downstream_chat else None
        downstream = tasks.evaluate(loaded, tokenizer(model), config.downstream_tasks, chat)
    seconds = time.perf_counter() - begin + (done.seconds if done else 0.0)
    at_once = done.windows_at_once if done else None
    return Evaluation(results, downstream, seconds, at_once)


def verify(
    config: Settings,
    model: Model,
    model_dir: Path,
    evaluation: Evaluation,
    solved: Mapping[str, str] | None = None,
) -> tuple[float, str]:
    """Evaluate one window of the checkpoint. Return the seconds, and what is the same as before.

    `bits`: the window's negative log-likelihood is that of `evaluation`, made while the model was
    quantized. `weights`: it differs, as products on a GPU may, and every weight of the checkpoint
    is the one that was `solved` (name → fingerprint). RuntimeError where neither holds.
    """
    from colazero.blocks.probe import linears, open_sequence
    from colazero.blocks.weights import fingerprint
    from colazero.evaluation import through_blocks

    begin = time.perf_counter()
    text, expected = evaluation_texts(config, model)[0], evaluation.perplexities[0].nll[0]
    scored = None if text.scored is None else text.scored[:1]
    one = replace(text, windows=text.windows[:1], starts=text.starts[:1], scored=scored)
    sequence = open_sequence(model_dir, config.device)
    found = through_blocks.evaluate(sequence, [one])[0].nll[0]
    if found == expected:
        return time.perf_counter() - begin, "bits"
    wrong = []
    for index in range(len(sequence)):
        with sequence.filled(index) as block:
            for name, layer in linears(block).items():
                known = sequence.at(index, f"{name}.weight")
                if fingerprint(layer.weight.data) != (solved or {}).get(known):
                    wrong.append(known)
    said = (
        f"the saved checkpoint gives a negative log-likelihood of {found} on the first window, "
        f"the model in memory gave {expected}"
    )
    if wrong:
        raise RuntimeError(
            f"{said}: {len(wrong)} weights were not saved as they were evaluated, {wrong[0]!r} "
            "among them."
        )
    log.warning("%s. All weights are the same: this device rounds the same sums differently.", said)
    return time.perf_counter() - begin, "weights"
