"""Checks before any work: refuses what would fail later, and resolves each `auto`."""

from __future__ import annotations

from collections.abc import Sequence

from colazero import corpora, devices, models, selection
from colazero.calibration import trial
from colazero.corpora import bos as bos_rule
from colazero.corpora.tokens import need_tokens, token_pool, vocabulary, writing_of
from colazero.errors import UserError
from colazero.evaluation.perplexity import evaluation_texts
from colazero.models import fit, grouping
from colazero.quantizers import ACT_GROUP_AWARE, UNQUANTIZED, check_quantizer, supported
from colazero.settings import SETTINGS, Resolved, RunConfig, Settings
from colazero.types import CalibrationSet, Model


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
    inputs = grouping.layer_inputs(model.path, config.quantizer)
    group_size = grouping.DEFAULT if config.group_size == "auto" else config.group_size
    if SETTINGS["group_size"].taken(config.quantizer) or config.quantizer == UNQUANTIZED:
        group_size = grouping.resolve(config.group_size, inputs)
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
    tokens = token_pool(model, config.corpus, writing=writing_of(config)).tokens
    available = int(config.corpus_share * len(tokens))
    length = bos_rule.text_length(config, model)
    need_tokens(available, config.n_calibration_samples, length, config.corpus)
    fit.refuse_unknown_ids(model, int(tokens.max()), f"corpus {config.corpus!r}")


def check_evaluation(config: Settings, model: Model) -> None:
    """Raise UserError if the model is unfit, takes no windows so long, or a test split has too few.

    Every weight is looked at, once a model.
    """
    fit.refuse_long_windows(model, config.evaluated_len)
    fit.refuse_not_finite(model)
    texts = evaluation_texts(config, model)
    for text in texts:
        fit.refuse_unknown_ids(model, int(text.windows.max()), f"the test split of {text.corpus!r}")
    if config.eval_on == "answers" and all(text.scored is None for text in texts):
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
