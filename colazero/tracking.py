"""The only file on this side that knows MLflow: connect, log, find."""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import provenance, runs
from colazero.config import Settings
from colazero.errors import UserError
from colazero.interfaces import CalibrationSet, Corpus, QuantizationReport
from colazero.pipeline import Evaluation

EXPERIMENT = "colazero"


def connect() -> None:
    """Make sure that the tracking server answers, and create the store and the experiment.

    They must exist before several processes write. UserError within seconds if a server named by
    MLFLOW_TRACKING_URI does not answer. Under `mlflow run` its run and experiment are kept.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    try:
        if not any(name in os.environ for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")):
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        else:
            MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        raise UserError(
            f"the tracking store {uri!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5):
            pass
    except urllib.error.HTTPError:
        pass  # it answers, and whether it lets us in the client will tell
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tracking server {uri} does not answer ({getattr(error, 'reason', error)}). Start "
            "it (mlflow server), or set MLFLOW_TRACKING_URI to one that runs; without it the "
            "results go to ./mlflow.db."
        ) from error


@contextmanager
def run(name: str, kind: str, run_id: str | None = None) -> Iterator[str]:
    """Open a run and yield its id; under `mlflow run` it is the run that made, else a new one.

    A worker names the `run_id` that its suite has created. `kind` (suite, cell, baseline, select,
    …) becomes the tag `colazero.kind`. When the block raises, the run ends as FAILED, or KILLED
    for an interrupt, with the reason in the tag `colazero.error`; it stays open for `Claimed`.
    """
    new_name = None if run_id or "MLFLOW_RUN_ID" in os.environ else name
    run_id = mlflow.start_run(run_id, run_name=new_name, nested=run_id is not None).info.run_id
    status = "FINISHED"
    try:
        about = {"mlflow.runName": name, "colazero.kind": kind, "colazero.owner": runs.owner()}
        mlflow.set_tags(about | provenance.environment())
        yield run_id
    except runs.Claimed:
        status = "SCHEDULED"
        raise
    except Exception as error:
        status = "FAILED"
        mlflow.set_tag("colazero.error", f"{type(error).__name__}: {error}"[:4000])
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM
        status = "KILLED"
        mlflow.set_tag("colazero.error", type(error).__name__)
        raise
    finally:
        mlflow.end_run(status)


def log_config(config: Settings) -> None:
    """Log the resolved parameters under their names."""
    log_params({name: as_text(value) for name, value in config.model_dump().items()})


def log_params(values: Mapping[str, str]) -> None:
    """Log parameters under their names.

    `mlflow run` has logged the strings it was given before we start, and MLflow never changes a
    logged parameter: where `seed=auto` stands already, the value goes to `resolved.seed`.
    """
    there = MlflowClient().get_run(active_run_id()).data.params
    mlflow.log_params(
        {
            name if there.get(name, value) == value else f"resolved.{name}": value
            for name, value in values.items()
        }
    )


def as_text(value: object) -> str:
    """Write a value as a command line would: lists with commas, booleans in lower case."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def log_datasets(
    calibration: CalibrationSet | None, corpus: Corpus | None, *evaluated: Any
) -> None:
    """Log calibration and evaluation data as dataset inputs, each with its digest."""
    inputs = []
    if calibration is not None and corpus is not None:
        profile = {"windows": calibration.windows.shape[0], "tokens": calibration.windows.size}
        inputs.append(_dataset(corpus.name, calibration.digest, "calibration", profile))
    for result in evaluated:
        profile = {"windows": len(result.nll), "tokens": int(result.tokens.sum())}
        inputs.append(_dataset(result.corpus, result.digest, "evaluation", profile))
    MlflowClient().log_inputs(active_run_id(), datasets=inputs)


def _dataset(name: str, digest: str, context: str, profile: Mapping[str, int]) -> DatasetInput:
    source = json.dumps({"corpus": name})
    dataset = Dataset(name, digest, "colazero", source, profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def log_quantization(report: QuantizationReport) -> None:
    """Log what quantizing took, and by module what damp it needed and where it fell back."""
    mlflow.log_metrics(
        {
            "quant_time_sec": report.quant_time_sec,
            "save_time_sec": report.save_time_sec,
            "damp_percent_max": report.damp_max,
            "rtn_fallbacks": report.rtn_fallbacks,
        }
    )
    rows = list(report.modules)
    mlflow.log_table({key: [row[key] for row in rows] for key in rows[0]}, "quantization.json")


def log_checkpoint(checkpoint: Path, files: Mapping[str, str], name: str, base: str) -> str:
    """Log a checkpoint directory as a LoggedModel with its manifest; return its model id."""
    (checkpoint / "sha256.json").write_text(json.dumps(files, indent=1) + "\n")
    model = mlflow.initialize_logged_model(name=name, model_type="gptq", tags={"base_model": base})
    try:
        MlflowClient().log_model_artifacts(model.model_id, str(checkpoint))
    except BaseException:
        mlflow.finalize_logged_model(model.model_id, "FAILED")
        raise
    mlflow.finalize_logged_model(model.model_id, "READY")
    MlflowClient().log_outputs(active_run_id(), [LoggedModelOutput(model.model_id, step=0)])
    return model.model_id


def active_run_id() -> str:
    """Return the id of the open run."""
    active = mlflow.active_run()
    assert active, "no run is open"
    return str(active.info.run_id)


def log_evaluation(evaluation: Evaluation, model_id: str | None = None) -> dict[str, float]:
    """Log perplexities, per-window sums and downstream results; return the metrics.

    `perplexity` is that of the first corpus; each has its own as `perplexity.CORPUS` too.
    """
    import pandas as pd

    metrics = {"eval_time_sec": evaluation.eval_time_sec}
    with tempfile.TemporaryDirectory() as folder:
        for i, result in enumerate(evaluation.perplexities):
            name = metric_name(result.corpus)
            metrics |= {f"perplexity.{name}": result.perplexity}
            if i == 0:
                metrics |= {"perplexity": result.perplexity, "nll_per_token": result.nll_per_token}
            rows = {"start": result.starts, "nll": result.nll, "tokens": result.tokens}
            pd.DataFrame(rows).rename_axis("window").reset_index().to_parquet(
                f"{folder}/windows_{name}.parquet"
            )
        mlflow.log_artifacts(folder, "evaluation")
    metrics |= {f"downstream.{key}": value for key, value in evaluation.downstream.items()}
    mlflow.log_metrics(metrics, model_id=model_id)
    return metrics


def metric_name(corpus: str) -> str:
    """Return a corpus's name with only what MLflow and file systems allow in names."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in corpus.removeprefix("file:"))


def log_files(folder: Path, artifact_path: str) -> None:
    """Log a folder's files under `artifact_path`."""
    mlflow.log_artifacts(str(folder), artifact_path)


def find_finished(tag: str, value: str) -> Run | None:
    """Return the latest FINISHED run of the experiment that did the work itself and has `tag`."""
    client = MlflowClient()
    runs = client.search_runs(
        [client.get_run(active_run_id()).info.experiment_id],
        f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'",
        max_results=20,
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in runs if "colazero.source_run" not in run.data.tags), None)


def fetch_artifacts(uri: str, what: str) -> Path:
    """Resolve `runs:/RUN_ID` to a local folder with its `what` (`calibration` or `model`).

    UserError if there is no such run or it has none. A run that shares another's results is
    followed to its source.
    """
    run_id = uri.removeprefix("runs:/").strip("/").split("/")[0]
    client = MlflowClient()
    try:
        found = client.get_run(run_id)
        source = found.data.tags.get("colazero.source_run")
        if source:
            found = client.get_run(source)
        if what == "calibration":
            return Path(mlflow.artifacts.download_artifacts(f"runs:/{found.info.run_id}/{what}"))
        outputs = found.outputs.model_outputs if found.outputs else []
        if outputs:
            return Path(mlflow.artifacts.download_artifacts(f"models:/{outputs[0].model_id}"))
        raise UserError(
            f"{uri} has no model: it was run with save_model={_param(found, 'save_model')}."
        )
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri} cannot be used as {what}: {str(error).splitlines()[0]} (tracking store "
            f"{mlflow.get_tracking_uri()})."
        ) from error


def _param(run: Run, name: str) -> str:
    params = run.data.params
    return str(params.get(f"resolved.{name}", params.get(name, "unknown")))


def describe(markdown: str) -> None:
    """Set the run's description, which the UI shows as markdown."""
    mlflow.set_tag("mlflow.note.content", markdown)


def set_tags(tags: Mapping[str, str]) -> None:
    """Set tags on the open run."""
    mlflow.set_tags(dict(tags))


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics on the open run."""
    mlflow.log_metrics(dict(metrics))


def log_json(value: object, name: str) -> None:
    """Log a JSON artifact; ValueError for NaN or infinity, which are no JSON."""
    mlflow.log_text(json.dumps(value, indent=1, allow_nan=False) + "\n", name)
