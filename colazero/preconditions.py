"""What is asked before any work: refusals, and what each `auto` means here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from colazero import corpora, devices, models, selection
from colazero.calibration import trial
from colazero.corpora import bos as bos_rule
from colazero.corpora.tokens import need_tokens, token_pool, vocabulary
from colazero.evaluation.perplexity import evaluation_text
from colazero.models import fit, grouping
from colazero.quantizers import ACT_GROUP_AWARE, UNQUANTIZED, check_quantizer, supported
from colazero.settings import Settings
from colazero.types import CalibrationSet, Model

C = TypeVar("C", bound=Settings)


def check(
    config: Settings, methods: Sequence[str], names: Sequence[str], *, here: bool = True
) -> None:
    """Raise UserError for any name or device that does not exist, before anything is loaded.

    Methods of the user's own are tried on a toy pool. What is not computed `here` names, resolved,
    a device that this machine may lack.
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
    device = devices.resolve(config.device) if here else config.device
    check_quantizer(config.quantizer, device, config.act_group_aware)


def resolve(config: C, model: Model, device: str = "") -> C:
    """Replace every `auto` that depends on the model and the machine by what it means here.

    `device` is what to compute on if that is for others to know: `cpu` or `cuda:N`. UserError if
    the quantizer does not take the model; without `device`, that is tried on it.
    """
    if config.quantizer != UNQUANTIZED:
        fit.refuse_quantized(model)
        supported.check_model(config.quantizer, model.name, model.path)
    if not device:
        device = devices.resolve(config.device)
        fit.refuse_not_finite(model)  # or what is tried below says something else of them
        supported.try_model(config.quantizer, model.name, model.path, device)
    inputs = grouping.layer_inputs(model.path, config.quantizer)
    group_size = grouping.resolve(config.group_size, inputs)
    able = config.quantizer in ACT_GROUP_AWARE and not config.desc_act and group_size != -1
    gar = able if config.act_group_aware == "auto" else config.act_group_aware
    bos = bos_rule.resolve(config.bos, model, vocabulary(model))
    return config.model_copy(
        update={
            "group_size": group_size,
            "act_group_aware": gar,
            "device": device,
            "bos": bos,
            "eval_seq_len": config.evaluated_len,
        }
    )


def check_data(config: Settings, model: Model) -> None:
    """Raise UserError if a corpus is too small for what is asked of it, or the model unfit."""
    check_calibration(config, model)
    check_evaluation(config, model)


def check_calibration(config: Settings, model: Model) -> None:
    """Raise UserError unless windows of this number and length can be cut for the model."""
    fit.refuse_long_windows(model, config.seq_len)
    tokens = token_pool(model, config.corpus, chat=config.chat).tokens
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
    for corpus in config.eval_corpora:
        windows, _ = evaluation_text(
            model, corpus, config.evaluated_len, config.eval_windows, config.bos
        )
        fit.refuse_unknown_ids(model, int(windows.max()), f"the test split of {corpus!r}")


def check_set(model: Model, calibration: CalibrationSet) -> None:
    """Raise UserError if the model cannot be quantized, or takes no such windows."""
    fit.refuse_quantized(model)
    fit.refuse_not_finite(model)
    if len(calibration.windows):
        fit.refuse_long_windows(model, calibration.windows.shape[1])
        fit.refuse_unknown_ids(model, int(calibration.windows.max()), "the calibration set")
