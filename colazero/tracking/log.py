"""Tracking as the rest of the project sees it: connect, log, find.

Each file beside this one does one thing with MLflow's store.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Run

from colazero.errors import without_credentials
from colazero.settings import Common
from colazero.tracking import names, publishing, runs
from colazero.tracking.opened import NOTE, active_run_id, open_record
from colazero.tracking.searching import homes, search
from colazero.types import CalibrationSet, Corpus, Evaluation, QuantizationReport


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
        name = names.of_corpus(result.corpus)
        found = {f"perplexity.{name}": result.perplexity}
        if i == 0:
            found |= {"perplexity": result.perplexity, "nll_per_token": result.nll_per_token}
            found |= result.distances
        found |= {f"{distance}.{name}": v for distance, v in result.distances.items()}
        on = names.of_dataset(result.corpus), result.digest
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
        named = {names.of_result(key): better for key, better in directions.items()}
        set_tags({"colazero.higher_is_better": json.dumps(named)})
    scores = evaluation.downstream.scores
    metrics |= {f"downstream.{names.of_result(key)}": value for key, value in scores.items()}
    log_metrics(metrics)
    return metrics


def log_files(folder: Path, artifact_path: str) -> None:
    """Log a folder's files under `artifact_path`."""
    open_record().add_files(folder, artifact_path)


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
    open_record().tags.update({name: without_credentials(value) for name, value in tags.items()})


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Log metrics on the open run."""
    open_record().add_metrics(metrics)


def log_json(value: object, name: str) -> None:
    """Log a JSON artifact; ValueError for NaN or infinity, which are no JSON."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    open_record().artifact(name).write_text(text, encoding="utf-8")
