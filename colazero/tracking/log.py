"""Tracking as the rest of the project sees it: connect, log, find.

Each file beside this one does one thing with MLflow's store.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import environment
from colazero.config import Common
from colazero.errors import UserError, first_line, without_credentials
from colazero.interfaces import CalibrationSet, Corpus, Evaluation, QuantizationReport
from colazero.tracking import launched, names, pages, provenance, publishing, runs
from colazero.tracking.records import Record
from colazero.tracking.searching import homes, search


@contextmanager
def run(
    name: str,
    kind: str,
    run_id: str | None = None,
    later: Callable[[Record], None] | None = None,
) -> Iterator[str]:
    """Open a run and yield its id; under `mlflow run` it is the run that made, else a new one.

    A worker names the `run_id` that its suite has created. `kind` (suite, cell, baseline, select,
    …) becomes the tag `colazero.kind`. What is logged inside goes to the store when the block
    ends, after it is whole on disk. When the block raises, the run ends as FAILED, or KILLED for
    an interrupt, with the reason in the tag `colazero.error`; it stays open for `Claimed`.

    later: takes the sealed record of a run that finished, for `deliver` to send; until then the
    run is RUNNING.
    """
    name, given = names.of_run(name), environment.run_id()
    new_name = None if run_id or given else name
    tags = {"colazero.kind": kind, "colazero.owner": runs.owner()}
    if run_id or not given or not runs.patiently(launched.named_by_user, given):
        tags["mlflow.runName"] = name
    opened = runs.patiently(
        mlflow.start_run,
        run_id,
        run_name=new_name,
        nested=run_id is not None,
        tags=tags | provenance.environment(),
    )
    store = without_credentials(mlflow.get_tracking_uri())
    record = Record(opened.info.run_id, store, runs.owner())
    status, kept = "FINISHED", False
    _open.append(record)
    try:
        record.begin()
        yield record.run_id
    except runs.Claimed:
        status = "SCHEDULED"
        raise
    except Exception as error:
        status = "FAILED"
        reason = without_credentials(f"{type(error).__name__}: {error}")
        set_tags({"colazero.error": reason[:4000]})
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM
        status = "KILLED"
        with suppress(MlflowException):
            MlflowClient().set_tag(record.run_id, "colazero.error", _why(error))
        raise
    finally:
        try:
            if status in ("FINISHED", "FAILED"):
                if given:
                    record.tags[NOTE] = pages.with_settings(
                        record.tags.get(NOTE, ""), record.params
                    )
                status, earned = "FAILED", status  # a result that is not in the store is none yet
                _seal(record, earned)
                kept = later is not None and earned == "FINISHED"
                if not kept:
                    deliver(record)
                status = "RUNNING" if kept else earned
            if not kept:
                record.discard()
        finally:
            _open.remove(record)
            with suppress(MlflowException):
                mlflow.end_run(status)
    if later and kept:
        later(record)


def _why(error: BaseException) -> str:
    """Say what ended a run: a signal, told by the exception that it became."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    return f"{type(error).__name__}: {error}"


NOTE = "mlflow.note.content"
"""The tag that the UI shows as a run's description, in markdown."""
_open: list[Record] = []
"""The records of the runs that are open in this process, the innermost last."""


def _seal(record: Record, status: str) -> None:
    """Seal a record; UserError where the disk has no room for it, its numbers sent all the same."""
    try:
        record.seal(status)
    except OSError as error:
        reason = (
            f"{record.folder} cannot be written ({error.strerror}): the files of run "
            f"{record.run_id} are lost. Make room there, or name another folder in COLAZERO_CACHE, "
            "and run it again."
        )
        publishing.leave_reason(record, reason)
        raise UserError(reason) from error


def deliver(record: Record) -> None:
    """Send a sealed record and remove it; UserError, with the record kept, if it is not taken."""
    try:
        runs.patiently(publishing.publish, record)
    except (MlflowException, OSError) as error:
        reason = (
            f"the tracking store {record.store!r} did not take the results of run {record.run_id} "
            f"({first_line(error)}). They are in {record.folder}: the next suite on this "
            "store logs them; `python -m entrypoints.clean` lists them."
        )
        publishing.leave_reason(record, reason)
        raise UserError(reason) from error
    record.discard()


def flush() -> None:
    """Send the values of the open run now instead of when it ends."""
    record = _open[-1]
    publishing.send_values(record, MlflowClient().get_run(record.run_id))


def log_config(config: Common) -> None:
    """Log the resolved parameters under their names."""
    log_params({name: as_text(value) for name, value in config.model_dump().items()})


def log_params(values: Mapping[str, str]) -> None:
    """Log parameters under their names."""
    _open[-1].params.update(values)


def as_text(value: object) -> str:
    """Write a value as a command line would: lists with commas, `none` for an empty one."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def log_datasets(
    calibration: CalibrationSet | None, corpus: Corpus | None, *evaluated: Any
) -> None:
    """Log calibration and evaluation data as dataset inputs, each with its digest."""
    found = _open[-1].datasets
    if calibration is not None and corpus is not None:
        profile = {"windows": calibration.windows.shape[0], "tokens": calibration.windows.size}
        found.append(
            _dataset(names.of_dataset(corpus.name), calibration.digest, "calibration", profile)
        )
    for result in evaluated:
        profile = {"windows": len(result.nll), "tokens": int(result.tokens.sum())}
        found.append(
            _dataset(names.of_dataset(result.corpus), result.digest, "evaluation", profile)
        )


def _dataset(name: str, digest: str, context: str, profile: Mapping[str, int]) -> dict[str, str]:
    return {"name": name, "digest": digest, "context": context, "profile": json.dumps(profile)}


def log_quantization(report: QuantizationReport) -> None:
    """Log what quantizing took, and by module what damp it needed and where it fell back.

    A quantizer that tells nothing of its modules has seconds only.
    """
    log_metrics({"quant_time_sec": report.quant_time_sec, "save_time_sec": report.save_time_sec})
    if report.warm_up_time_sec is not None:
        log_metrics({"warm_up_time_sec": report.warm_up_time_sec})
    if report.windows_at_once is not None:
        log_metrics({"quantize_windows_at_once": report.windows_at_once})
    if not report.modules:
        return
    log_metrics({"modules_unquantized": len(report.unquantized)})
    if report.column_kernel:
        set_tags({"colazero.column_kernel": report.column_kernel})
    log_metrics({"damp_percent_max": report.damp_max, "rtn_fallbacks": report.rtn_fallbacks})
    import pandas as pd

    table = pd.DataFrame([*report.modules, *({"module": name} for name in report.unquantized)])
    table.to_json(_open[-1].artifact("quantization.json"), orient="split", index=False)
    shown = json.dumps([{"path": "quantization.json", "type": "table"}])
    set_tags({"mlflow.loggedArtifacts": shown})  # the UI shows it as a table


def log_checkpoint(checkpoint: Path, files: Mapping[str, str], name: str, base: str) -> None:
    """Log a checkpoint directory as a LoggedModel with its manifest."""
    (checkpoint / "sha256.json").write_text(json.dumps(files, indent=1) + "\n")
    _open[-1].add_files(checkpoint, kind="model", digests=files)
    _open[-1].model.update(name=name, base=base)


@contextmanager
def workspace() -> Iterator[Path]:
    """Yield an empty folder from which `log_checkpoint` and `log_files` copy nothing."""
    with tempfile.TemporaryDirectory(dir=_open[-1].workspace()) as folder:
        yield Path(folder)


def active_run_id() -> str:
    """Return the id of the open run."""
    active = mlflow.active_run()
    assert active, "no run is open"
    return str(active.info.run_id)


def log_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Log perplexities, per-window sums and downstream results; return the metrics.

    `perplexity` is that of the first corpus; each has its own as `perplexity.CORPUS` too.
    Downstream items go to `evaluation/downstream.jsonl.gz`, a JSON object a line.
    """
    import pandas as pd

    metrics = {"eval_time_sec": evaluation.eval_time_sec}
    if evaluation.windows_at_once is not None:
        metrics["eval_windows_at_once"] = evaluation.windows_at_once
    for i, result in enumerate(evaluation.perplexities):
        name = names.of_corpus(result.corpus)
        found = {f"perplexity.{name}": result.perplexity}
        if i == 0:
            found |= {"perplexity": result.perplexity, "nll_per_token": result.nll_per_token}
            found |= result.distances
        found |= {f"{distance}.{name}": v for distance, v in result.distances.items()}
        on = names.of_dataset(result.corpus), result.digest
        _open[-1].measured_on.update(dict.fromkeys(found, on))
        metrics |= found
        rows = {"start": result.starts, "nll": result.nll, "tokens": result.tokens}
        if result.divergence:
            rows |= {"kl": result.divergence.kl, "agreed": result.divergence.agreed}
        pd.DataFrame(rows).rename_axis("window").reset_index().to_parquet(
            _open[-1].artifact(f"evaluation/windows_{name}.parquet")
        )
    items = evaluation.downstream.samples
    if items:
        file = _open[-1].artifact("evaluation/downstream.jsonl.gz")
        with gzip.open(file, "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps(item) + "\n" for item in items)
    directions = evaluation.downstream.higher_is_better
    if directions:
        named = {names.of_result(key): better for key, better in directions.items()}
        set_tags({"colazero.higher_is_better": json.dumps(named)})
    scores = evaluation.downstream.scores
    metrics |= {f"downstream.{names.of_result(key)}": value for key, value in scores.items()}
    log_metrics(metrics)
    return metrics


def log_files(folder: Path, artifact_path: str) -> None:
    """Log a folder's files under `artifact_path`."""
    _open[-1].add_files(folder, artifact_path)


def find_finished(tag: str, value: str) -> Run | None:
    """Return the latest FINISHED run of the experiment that did the work itself and has `tag`.

    One whose files are no longer whole is passed over.
    """
    return runs.patiently(_find_finished, {tag: value})


def newest_finished(tag: str, value: str) -> Run | None:
    """Return what `find_finished` does, but also if its files are not whole."""
    return next(runs.patiently(_finished, {tag: value}), None)


def _find_finished(tags: Mapping[str, str]) -> Run | None:
    return next((run for run in _finished(tags) if publishing.intact(run)), None)


def _finished(tags: Mapping[str, str]) -> Iterator[Run]:
    experiments = homes(runs.experiment_of(active_run_id()))
    found = search(experiments, tags=tags, status="FINISHED")
    return (run for run in found if "colazero.source_run" not in run.data.tags)


def describe(markdown: str) -> None:
    """Set the run's description, which the UI shows as markdown."""
    set_tags({NOTE: markdown})


def set_tags(tags: Mapping[str, str]) -> None:
    """Set tags on the open run; credentials in them are left out."""
    _open[-1].tags.update({name: without_credentials(value) for name, value in tags.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics on the open run."""
    _open[-1].add_metrics(metrics)


def log_json(value: object, name: str) -> None:
    """Log a JSON artifact; ValueError for NaN or infinity, which are no JSON."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    _open[-1].artifact(name).write_text(text, encoding="utf-8")
