"""Recorded runs: each stage of the pipeline, and what is logged about it."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from colazero import corpora, devices, pipeline
from colazero.calibration import picture as selection_picture
from colazero.calibration.sets import save_calibration
from colazero.quantizers import UNQUANTIZED, supported
from colazero.reuse import CONTEXT, facts, key_of, work_context, work_key
from colazero.settings import Resolved, RunConfig, Settings, canonical_key, taken_by
from colazero.store import claims, client, fetch, record
from colazero.types import CalibrationSet, Model, Progress, label

log = logging.getLogger(__name__)

Show = Callable[[str], Progress]
"""Given the name of a stage, returns what to call with (done, total) while it runs."""

RESULT = (
    *("model", "method", "seed", "n_calibration_samples", "seq_len", "quant_bits", "group_size"),
    *("selection_time_sec", "quant_time_sec", "total_time_sec", "perplexity", "downstream"),
)
"""The keys of `result.json`, in the mission's order."""

EVALUATING = tuple(n for n in taken_by("evaluation") if n not in ("model", "seq_len", "device"))
"""Parameters that decide how a model is evaluated."""


WIDER = "colazero.work_key_without_downstream"
"""The tag of a cell with downstream tasks: the work key of the same cell without."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: its run, its numbers, and the run they come from if not its own.

    `calibration`: the digest of its calibration set, '' where there is none.
    """

    run_id: str
    metrics: Mapping[str, float]
    source_run: str | None = None
    calibration: str = ""


def name_of(config: RunConfig, sweep: Collection[str] = ()) -> str:
    """Return the run's name, as in `42·cola_zero·smollm2-135m`, with what differs first.

    sweep: the settings that tell cells of one suite apart, as in `42·random·quant_bits3·…`.
    """
    again = [f"replicate{config.replicate}"] if config.replicate > 1 else []
    where = setting_of(config, sweep)
    return client.run_name(str(config.seed), config.method, *again, *where, label(config.model))


def setting_of(config: Settings, sweep: Collection[str]) -> list[str]:
    """Return values of settings as parts of a run's name: `quant_bits3`, `corpusc4`."""
    return [f"{name}{client.corpus_name(str(getattr(config, name)))}" for name in sweep]


def run_cell(config: Resolved, model: Model, show: Show, *, reuse: bool) -> Outcome:
    """Do one cell inside the open run: select, quantize, evaluate, log all of it.

    With `reuse`, a finished run of the same configuration, or one that did the same work on the
    same calibration set, is not repeated: this run takes over its results and names it as
    `colazero.source_run`; Claimed if another run is doing that work at the moment.
    """
    begin = time.perf_counter()
    record.log_config(config)  # first: a cell that fails at anything below still has its name
    record.refuse_unkeepable(config, name_of(config))
    context, key = work_context(config, model), key_of(config, model)
    tags = {"colazero.key": key, "colazero.config": canonical_key(config)}
    tags |= {"colazero.model_revision": model.revision}
    record.set_tags(tags | devices.tags(config.device))
    tag_base_model(model)
    record.log_json(facts(config, model), CONTEXT)
    source = fetch.find_finished("colazero.key", key) if reuse else None
    if source is not None:
        return _take_over(config, source, client.metrics_of(source))
    supported.try_model(config.quantizer, model.name, model.path, config.device)
    calibration, selected = _select(config, model)
    shared_key = work_key(config, context, calibration)
    more = {}
    if config.do_downstream:
        plain = config.model_copy(update={"do_downstream": False})
        more[WIDER] = work_key(plain, work_context(plain, model), calibration)
    record.set_tags({"colazero.work_key": shared_key, **more})
    if reuse:
        tag, run_id = "colazero.work_key", record.active_run_id()
        client.patiently(claims.claim, tag, shared_key, run_id, wider=WIDER, more=more)
        source = fetch.find_finished(tag, shared_key) or fetch.find_finished(WIDER, shared_key)
    if source is not None:
        metrics = client.metrics_of(source)
        same = {k: v for k, v in metrics.items() if not k.startswith("selection.")}
        return _take_over(config, source, same | selected)
    metrics = _quantize_and_evaluate(config, model, calibration, show)
    metrics |= {**selected, "total_time_sec": time.perf_counter() - begin}
    record.log_metrics({"total_time_sec": metrics["total_time_sec"]})
    _log_result(config, metrics)
    return Outcome(record.active_run_id(), metrics, calibration=calibration.digest)


def _select(config: Resolved, model: Model) -> tuple[CalibrationSet, dict[str, float]]:
    calibration, times = pipeline.calibrate(config, model)
    if len(calibration.windows):
        return calibration, log_calibration(config, model, calibration, times)
    record.log_metrics(times)
    tag_calibration(calibration)
    return calibration, times


def log_calibration(
    config: RunConfig, model: Model, calibration: CalibrationSet, times: Mapping[str, float]
) -> dict[str, float]:
    """Log a calibration set: the windows, how they were chosen, its picture; return its metrics."""
    corpus = corpora.load(config.corpus)
    origin = {"corpus": config.corpus, "method": config.method, "seed": config.seed}
    with tempfile.TemporaryDirectory() as folder:
        save_calibration(Path(folder), calibration, model, corpus, origin)
        record.log_files(Path(folder), "calibration")
    with tempfile.TemporaryDirectory() as folder:
        selection_picture.write(Path(folder), config, model, calibration)
        record.log_files(Path(folder), "selection")
    metrics = dict(times) | {
        f"selection.{name}": float(value)
        for name, value in calibration.notes.items()
        if isinstance(value, bool | int | float)
    }
    record.log_metrics(metrics)
    tag_calibration(calibration)
    n, seq_len = calibration.windows.shape
    record.log_dataset(corpus, calibration.digest, "calibration", windows=n, tokens=n * seq_len)
    return metrics


def tag_calibration(calibration: CalibrationSet) -> None:
    """Name the set, and the order in which its windows reach the quantizer."""
    record.set_tags(
        {
            "colazero.calibration_digest": calibration.digest,
            "colazero.order_digest": calibration.order_digest,
        }
    )


def tag_base_model(*models: Model) -> None:
    """Name the types of the weights of models that come from GGUF files: they were rounded."""
    named = {model.name: model.stored_as for model in models if model.stored_as}
    if named:
        several = [f"{name}: {types}" for name, types in named.items()]
        text = "; ".join(named.values() if len(models) == 1 else several)
        record.set_tags({"colazero.base_model": text})


def _quantize_and_evaluate(
    config: Resolved, model: Model, calibration: CalibrationSet, show: Show
) -> dict[str, float]:
    if config.quantizer == UNQUANTIZED:
        nothing = {"quant_time_sec": 0.0, "save_time_sec": 0.0}
        record.log_metrics(nothing)
        record.set_tags({"colazero.checkpoint_digest": model.revision})
        return _evaluate_unquantized(config, model, show("evaluate")) | nothing
    with record.workspace() as folder:
        checkpoint = folder / "checkpoint"
        evaluator = pipeline.evaluator(config, model)
        try:
            report = pipeline.quantize(
                config, model, calibration, checkpoint, show("quantize"), evaluator
            )
        except Exception:
            if evaluator.perplexities:  # all is computed, and the checkpoint could not be written
                known = config.model_copy(update={"do_downstream": False})
                record.log_evaluation(
                    pipeline.evaluate(known, model, checkpoint, show("evaluate"), evaluator)
                )
            raise
        record.log_quantization(report)
        evaluation = pipeline.evaluate(config, model, checkpoint, show("evaluate"), evaluator)
        metrics = record.log_evaluation(evaluation)  # what fails later keeps its numbers
        verify_time = 0.0
        if evaluator.perplexities:  # else the checkpoint is what was evaluated
            verify_time, same = pipeline.verify(
                config, model, checkpoint, evaluation, report.solved
            )
            record.set_tags({"colazero.verified": same})
        record.log_metrics({"verify_time_sec": verify_time})
        record.keep(config, model, checkpoint, name_of(config), report.files)
        mark_halved(quantization=report.halved, evaluation=evaluation.halved)
    return metrics | {
        "quant_time_sec": report.quant_time_sec,
        "save_time_sec": report.save_time_sec,
        "verify_time_sec": verify_time,
    }


def _evaluate_unquantized(config: Resolved, model: Model, progress: Progress) -> dict[str, float]:
    evaluation = pipeline.evaluate(config, model, model.path, progress)
    mark_halved(evaluation=evaluation.halved)
    return record.log_evaluation(evaluation)


def mark_halved(**stages: bool) -> None:
    """Tag a run whose micro-batches were halved, so that no other cell reuses its results.

    Its sums were rounded in an order that depends on other users of the device and is not part of
    its key.
    """
    if where := ",".join(stage for stage, halved in stages.items() if halved):
        log.warning(
            "memory ran out, and fewer windows were run together than planned (%s): this result is "
            "another draw of the arithmetic, and is not reused. Free the device, or use fewer "
            "workers.",
            where,
        )
        keys = ("colazero.key", "colazero.work_key", WIDER)
        record.set_tags({"colazero.halved": where, **dict.fromkeys(keys, "halved")})


def _take_over(config: Resolved, source: Run, metrics: dict[str, float]) -> Outcome:
    tags = {"colazero.source_run": source.info.run_id}
    for name in ("calibration_digest", "order_digest", "checkpoint_digest"):
        tags[f"colazero.{name}"] = source.data.tags[f"colazero.{name}"]
    record.set_tags(tags)
    if not config.do_downstream:
        metrics = {name: v for name, v in metrics.items() if not name.startswith("downstream.")}
    record.log_metrics(metrics)
    _log_result(config, metrics, source_run=source.info.run_id)
    digest = tags["colazero.calibration_digest"]
    return Outcome(record.active_run_id(), metrics, source.info.run_id, digest)


def _log_result(config: RunConfig, metrics: Mapping[str, float], **more: str) -> None:
    values: dict[str, Any] = config.model_dump(mode="json") | dict(metrics)
    values["downstream"] = {
        key.removeprefix("downstream."): value
        for key, value in metrics.items()
        if key.startswith("downstream.")
    }
    record.log_json({name: values[name] for name in RESULT} | more, "result.json")


def run_baseline(config: Resolved, model: Model, show: Show, *, reuse: bool) -> Outcome:
    """Evaluate the unquantized model inside the open run, as `run_cell` does a cell."""
    same = {name: Settings.model_fields[name].default for name in Settings.model_fields}
    same |= {name: getattr(config, name) for name in EVALUATING}
    same["eval_seq_len"] = config.evaluated_len
    same |= {"device": config.device, "corpus": config.eval_corpora[0], "quantizer": UNQUANTIZED}
    evaluated = Settings(**same)
    key = canonical_key(evaluated, unquantized="true", **work_context(evaluated, model))
    record.log_params({"model": model.name, "method": "unquantized"})
    record.log_config(config, EVALUATING)
    record.set_tags(devices.tags(config.device))
    tag_base_model(model)
    run_id = record.active_run_id()
    if reuse:
        client.patiently(claims.claim, "colazero.key", key, run_id)
        if source := fetch.find_finished("colazero.key", key):
            record.set_tags({"colazero.source_run": source.info.run_id})
            record.log_metrics(client.metrics_of(source))
            return Outcome(run_id, client.metrics_of(source), source.info.run_id)
    metrics = _evaluate_unquantized(config, model, show("evaluate unquantized"))
    return Outcome(run_id, metrics)
