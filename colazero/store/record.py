"""Records a run: opens it, logs into its record, and ends it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils import validation

from colazero import environment
from colazero.cache import new_entry
from colazero.errors import UserError, first_line, without_credentials
from colazero.settings import Common
from colazero.store import claims, client, provenance, publish
from colazero.types import CalibrationSet, Corpus, Evaluation, Model, QuantizationReport


def artifact_folder() -> Path | None:
    """Return where the open run's artifacts are kept; None if that is no local folder."""
    return client.local_folder(mlflow.get_artifact_uri())


def write_now(value: object, name: str) -> None:
    """Write a JSON artifact of the open run at once; UserError if the store does not take it."""
    try:
        mlflow.log_text(json.dumps(value, indent=1) + "\n", name)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the artifact store {mlflow.get_artifact_uri()} cannot be written: {first_line(error)}"
        ) from error


NOTE = "mlflow.note.content"
"""The tag that the UI shows as a run's description, in markdown."""


_open: list[publish.Record] = []
"""The records of the runs that are open in this process, the innermost last."""


@contextmanager
def run(
    name: str,
    kind: str,
    run_id: str | None = None,
    later: Callable[[publish.Record], None] | None = None,
) -> Iterator[str]:
    """Open a run and yield its id; under `mlflow run` it is the run that made, else a new one.

    A worker names the `run_id` that its suite has created. `kind` (suite, cell, baseline, select,
    …) becomes the tag `colazero.kind`. What is logged inside goes to the store when the block
    ends, after it is whole on disk. When the block raises, the run ends as FAILED, or KILLED for
    an interrupt, with the reason in the tag `colazero.error`; it stays open for `Claimed`.

    later: takes the sealed record of a run that finished, for `deliver` to send; until then the
    run is RUNNING.
    """
    name, given = client.run_name(name), environment.run_id()
    new_name = None if run_id or given else name
    tags = {"colazero.kind": kind, "colazero.owner": claims.owner()}
    if run_id or not given or not client.patiently(claims.named_by_user, given):
        tags["mlflow.runName"] = name
    if given and not run_id:  # again: minutes may have passed since `connect`
        claims.refuse_used(client.patiently(MlflowClient().get_run, given))
    client.ignore_overrides()
    opened = client.patiently(
        mlflow.start_run,
        run_id or given,
        run_name=new_name,
        nested=run_id is not None,
        tags=tags | provenance.environment(),
    )
    if not run_id:
        os.environ.pop("MLFLOW_RUN_ID", None)
    store = without_credentials(mlflow.get_tracking_uri())
    record = publish.Record(opened.info.run_id, store, claims.owner())
    status, kept = "FINISHED", False
    _open.append(record)
    try:
        record.begin()
        yield record.run_id
    except claims.Claimed:
        status = "SCHEDULED"
        raise
    except Exception as error:
        status = "FAILED"
        reason = without_credentials(f"{type(error).__name__}: {error}")
        record.tags["colazero.error"] = reason[:4000]
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
                    record.tags[NOTE] = client.with_settings(
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


def open_record() -> publish.Record:
    """Return the record of the innermost open run."""
    return _open[-1]


def _why(error: BaseException) -> str:
    """Say what ended a run: a signal, told by the exception that it became."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    return f"{type(error).__name__}: {error}"


def _seal(record: publish.Record, status: str) -> None:
    """Seal a record; UserError where the disk has no room for it, its numbers sent all the same."""
    try:
        record.seal(status)
    except OSError as error:
        reason = (
            f"{record.folder} cannot be written ({error.strerror}): the files of run "
            f"{record.run_id} are lost. Make room there, or name another folder in COLAZERO_CACHE, "
            "and run it again."
        )
        publish.leave_reason(record, reason)
        raise UserError(reason) from error


def deliver(record: publish.Record) -> None:
    """Send a sealed record and remove it; UserError, with the record kept, if it is not taken."""
    try:
        client.patiently(publish.publish, record)
    except (MlflowException, OSError) as error:
        reason = (
            f"the tracking store {record.store!r} did not take the results of run {record.run_id} "
            f"({first_line(error)}). They are in {record.folder}: the next suite on this "
            "store logs them; `python -m entrypoints.clean` lists them."
        )
        publish.leave_reason(record, reason)
        raise UserError(reason) from error
    record.discard()


def flush() -> None:
    """Send the values of the open run now instead of when it ends."""
    publish.send_values(open_record(), MlflowClient().get_run(open_record().run_id))


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


def log_config(config: Common) -> None:
    """Log the resolved parameters under their names."""
    log_params({name: as_text(value) for name, value in config.model_dump().items()})


def log_params(values: Mapping[str, str]) -> None:
    """Log parameters under their names."""
    open_record().params.update(values)


def as_text(value: object) -> str:
    """Write a value as a command line would: lists with commas, `none` for an empty one."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def log_datasets(
    calibration: CalibrationSet | None, corpus: Corpus | None, *evaluated: Any
) -> None:
    """Log calibration and evaluation data as dataset inputs, each with its digest."""
    found = open_record().datasets
    if calibration is not None and corpus is not None:
        profile = {"windows": calibration.windows.shape[0], "tokens": calibration.windows.size}
        found.append(
            _dataset(client.dataset_name(corpus.name), calibration.digest, "calibration", profile)
        )
    for result in evaluated:
        profile = {"windows": len(result.nll), "tokens": int(result.tokens.sum())}
        found.append(
            _dataset(client.dataset_name(result.corpus), result.digest, "evaluation", profile)
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
    table.to_json(open_record().artifact("quantization.json"), orient="split", index=False)
    shown = json.dumps([{"path": "quantization.json", "type": "table"}])
    set_tags({"mlflow.loggedArtifacts": shown})  # the UI shows it as a table


def log_checkpoint(checkpoint: Path, files: Mapping[str, str], name: str, base: str) -> None:
    """Log a checkpoint directory as a LoggedModel with its manifest."""
    (checkpoint / "sha256.json").write_text(json.dumps(files, indent=1) + "\n")
    open_record().add_files(checkpoint, kind="model", digests=files)
    open_record().model.update(name=name, base=base)


def log_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Log perplexities, per-window sums and downstream results; return the metrics.

    `perplexity` is that of the first corpus; each has its own as `perplexity.CORPUS` too.
    Downstream items go to `evaluation/downstream.jsonl.gz`, a JSON object a line.
    """
    import numpy as np
    import pandas as pd

    metrics = {"eval_time_sec": evaluation.eval_time_sec}
    if evaluation.windows_at_once is not None:
        metrics["eval_windows_at_once"] = evaluation.windows_at_once
    for i, result in enumerate(evaluation.perplexities):
        name = client.corpus_name(result.corpus)
        found = {f"perplexity.{name}": result.perplexity}
        if i == 0:
            found |= {"perplexity": result.perplexity, "nll_per_token": result.nll_per_token}
            found |= result.distances
        found |= {f"{distance}.{name}": v for distance, v in result.distances.items()}
        on = client.dataset_name(result.corpus), result.digest
        open_record().measured_on.update(dict.fromkeys(found, on))
        metrics |= found
        rows = {"start": result.starts, "nll": result.nll, "tokens": result.tokens}
        if result.documents is not None:
            available = np.full(len(result.nll), result.available)
            rows |= {"document": result.documents, "available": available}
        if result.divergence:
            rows |= {"kl": result.divergence.kl, "agreed": result.divergence.agreed}
        pd.DataFrame(rows).rename_axis("window").reset_index().to_parquet(
            open_record().artifact(f"evaluation/windows_{name}.parquet")
        )
    items = evaluation.downstream.samples
    if items:
        file = open_record().artifact("evaluation/downstream.jsonl.gz")
        with gzip.open(file, "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps(item) + "\n" for item in items)
    directions = evaluation.downstream.higher_is_better
    if directions:
        named = {client.result_name(key): better for key, better in directions.items()}
        set_tags({"colazero.higher_is_better": json.dumps(named)})
    scores = evaluation.downstream.scores
    metrics |= {f"downstream.{client.result_name(key)}": value for key, value in scores.items()}
    log_metrics(metrics)
    return metrics


def log_files(folder: Path, artifact_path: str) -> None:
    """Log a folder's files under `artifact_path`."""
    open_record().add_files(folder, artifact_path)


def describe(markdown: str) -> None:
    """Set the run's description, which the UI shows as markdown."""
    set_tags({NOTE: markdown})


def set_tags(tags: Mapping[str, str]) -> None:
    """Set tags on the open run; credentials in them are left out."""
    open_record().tags.update({name: without_credentials(value) for name, value in tags.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics on the open run."""
    open_record().add_metrics(metrics)


def log_json(value: object, name: str) -> None:
    """Log a JSON artifact; ValueError for NaN or infinity, which are no JSON."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    open_record().artifact(name).write_text(text, encoding="utf-8")


LOCAL = Path("outputs/checkpoints")
"""Where save_model=local keeps checkpoints, below the current directory."""


def refuse_unkeepable(config: Common, name: str) -> None:
    """Raise UserError, before the work, if its results could not be kept under this name."""
    _try_names(config, name)
    if config.save_model == "local":
        try:
            LOCAL.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{client.file_name(name)}-", dir=LOCAL):
                pass
        except OSError as error:
            raise UserError(
                f"save_model='local': checkpoints go to {LOCAL.absolute()}, which cannot be "
                f"written ({error.strerror}). Make room for that folder, or set save_model to "
                "artifact or none."
            ) from error


def keep(config: Common, model: Model, checkpoint: Path, name: str) -> None:
    """Keep a checkpoint where `save_model` says.

    `local` puts a copy to LOCAL/NAME-DIGEST. The digest over the weights is a tag in every case.
    """
    files = provenance.manifest(checkpoint)
    digest = provenance.weights_digest(files)
    set_tags({"colazero.checkpoint_digest": digest})
    if config.save_model == "artifact":
        log_checkpoint(checkpoint, files, name, model.name)
    if config.save_model == "local":
        target = LOCAL / f"{client.file_name(name)}-{digest}"
        with new_entry(target) as draft:
            shutil.copytree(
                checkpoint, draft, dirs_exist_ok=True, copy_function=publish.link_or_copy
            )
        set_tags({"colazero.checkpoint_path": str(target.resolve())})


def _try_names(config: Common, name: str) -> None:
    """Raise UserError if MLflow would refuse the names of a run's model, metrics or parameters.

    Its own validators are asked. A parameter that is longer than MLflow keeps would be cut.
    """
    try:
        validation._validate_logged_model_name(client.model_name(name))
        for corpus in config.eval_corpora:
            _metric(f"perplexity.{client.corpus_name(corpus)}")
        for task in config.downstream_tasks if config.do_downstream else ():
            _metric(f"downstream.{client.result_name(task)}")
    except MlflowException as error:
        raise UserError(f"the tracking store takes no such name: {first_line(error)}") from error
    for parameter, value in config.model_dump().items():
        length = len(as_text(value))
        if length > validation.MAX_PARAM_VAL_LENGTH:
            raise UserError(
                f"{parameter}: {length:,} characters, of which the tracking store keeps "
                f"{validation.MAX_PARAM_VAL_LENGTH:,}. Divide the work among several runs, or use "
                "shorter names."
            )


def _metric(name: str) -> None:
    validation._validate_metric_name(name)  # type: ignore[no-untyped-call]
    if len(name) > validation.MAX_ENTITY_KEY_LENGTH:
        raise MlflowException(f"metric {name!r} is longer than {validation.MAX_ENTITY_KEY_LENGTH}")
