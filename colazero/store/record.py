"""Open a run, log into its record on disk, and end it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from colazero import environment
from colazero.cache import new_entry
from colazero.errors import UserError, first_line, without_credentials
from colazero.settings import Common
from colazero.store import claims, client, provenance, publish
from colazero.types import (
    Corpus,
    Evaluation,
    Model,
    Perplexity,
    QuantizationReport,
    label,
)

_open: list[publish.Record] = []
"""The records of the runs that are open in this process, the innermost last."""


@contextmanager
def run(
    name: str,
    kind: str,
    run_id: str | None = None,
    later: Callable[[publish.Record], None] | None = None,
) -> Iterator[str]:
    """Open a run and yield its id: the one that `mlflow run` created, or a new one.

    A worker names the `run_id` that its suite has created. `kind` becomes the tag `colazero.kind`.
    What is logged inside goes to the store when the block ends, after it is whole on disk. When
    the block raises, the run ends as FAILED, or KILLED for an interrupt, with the reason in the
    tag `colazero.error`; it stays open for `Claimed`.

    later: takes the sealed record of a run that finished, for `deliver` to send; until then the
    run is RUNNING.
    """
    name, given = client.run_name(name), environment.run_id()
    tags = {client.KIND: kind, client.OWNER: claims.owner()}
    if given and not run_id:  # again: minutes may have passed since `connect`
        created = client.patiently(MlflowClient().get_run, given)
        claims.refuse_used(created)
    if run_id or not given or not claims.named_by_user(str(created.info.run_name)):
        tags["mlflow.runName"] = name
    client.ignore_overrides()
    opened = client.patiently(
        mlflow.start_run,
        run_id or given,
        run_name=None if run_id or given else name,
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
        record.artifact(provenance.PACKAGES).write_text(provenance.packages(), encoding="utf-8")
        yield record.run_id
    except claims.Claimed:
        status = "SCHEDULED"
        raise
    except Exception as error:
        status = "FAILED"
        reason = without_credentials(f"{type(error).__name__}: {error}")
        record.tags[client.ERROR] = reason[:4000]
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM
        status = "KILLED"
        by_hand = isinstance(error, KeyboardInterrupt)
        reason = "interrupted by Ctrl-C" if by_hand else f"{type(error).__name__}: {error}"
        with suppress(MlflowException):
            MlflowClient().set_tag(record.run_id, client.ERROR, reason)
        raise
    finally:
        try:
            if status in ("FINISHED", "FAILED"):
                if line := _line(record):
                    record.tags.setdefault(client.NOTE, line)
                # The result is not in the store yet.
                status, earned = "FAILED", status
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


def _line(record: publish.Record) -> str:
    """Return a run's description in one line: its result and what it is the result of."""
    values = {name: value for name, value, _ in record.metrics}
    words = {"perplexity": "perplexity", "kl_divergence": "KL divergence"}
    numbers = [f"{words[name]} {values[name]:.4g}" for name in words if name in values]
    params = record.params
    bits = f"{params['quant_bits']} bits" if "quant_bits" in params else ""
    seed = f"seed {params['seed']}" if "seed" in params else ""
    about = [params.get("method", ""), seed, label(params.get("model", "")), bits]
    return ": ".join(filter(None, [", ".join(numbers), ", ".join(filter(None, about))]))


def open_record() -> publish.Record:
    """Return the record of the innermost open run."""
    return _open[-1]


def active_run_id() -> str:
    active = mlflow.active_run()
    assert active, "no run is open"
    return str(active.info.run_id)


def _seal(record: publish.Record, status: str) -> None:
    """Seal a record; UserError if the disk has no room, after the numbers are sent."""
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
    """Send a sealed record and remove it; if the store refuses, keep it and raise UserError."""
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
    record = open_record()
    publish.send_values(record, MlflowClient().get_run(record.run_id))


@contextmanager
def workspace() -> Iterator[Path]:
    """Yield a scratch directory on the record's file system: files are hard-linked, not copied."""
    work = open_record().folder / "work"
    work.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield Path(folder)


def artifact_folder() -> Path | None:
    """Return the local folder of the open run's artifacts; None if they are kept elsewhere."""
    return client.local_folder(mlflow.get_artifact_uri())


def write_now(value: object, name: str) -> None:
    """Write a JSON artifact of the open run at once; UserError if the store refuses it."""
    try:
        mlflow.log_text(json.dumps(value, indent=1) + "\n", name)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the artifact store {mlflow.get_artifact_uri()} cannot be written: {first_line(error)}"
        ) from error


# --- What a run says.


def log_config(config: Common, names: Iterable[str] | None = None) -> None:
    log_params(params_of(config, names))


def params_of(config: Common, names: Iterable[str] | None = None) -> dict[str, str]:
    """Return parameters of a configuration as texts: those of these names, or all."""
    names = type(config).model_fields if names is None else names
    return {name: as_text(getattr(config, name)) for name in names}


def log_params(values: Mapping[str, str]) -> None:
    open_record().params.update(values)


def as_text(value: object) -> str:
    """Write a value as a command line would: lists with commas, `none` for an empty one."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def set_tags(tags: Mapping[str, str]) -> None:
    """Set tags on the open run, without the credentials in them."""
    open_record().tags.update({name: without_credentials(value) for name, value in tags.items()})


def describe(markdown: str) -> None:
    set_tags({client.NOTE: markdown})


def log_metrics(metrics: Mapping[str, float]) -> None:
    open_record().add_metrics(metrics)


def log_json(value: object, name: str) -> None:
    """Log a JSON artifact; ValueError for NaN or infinity, which JSON does not have."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    open_record().artifact(name).write_text(text, encoding="utf-8")


def log_files(folder: Path, artifact_path: str) -> None:
    open_record().add_files(folder, artifact_path)


def log_dataset(
    of: Corpus | Perplexity, digest: str, context: str, *, windows: int, tokens: int
) -> None:
    """Log a dataset input whose source `mlflow.data.get_source` can resolve.

    context: `calibration` or `evaluation`. windows, tokens: how many of them were used.
    """
    corpus = of.name if isinstance(of, Corpus) else of.corpus
    kind = "local" if "uri" in of.source else "hugging_face" if of.source else "code"
    source: Mapping[str, Any] = of.source
    if kind == "code":
        source = {"tags": {"corpus": corpus, **provenance.git_state()}}
    profile = json.dumps({"windows": windows, "tokens": tokens})
    about = {"name": client.dataset_name(corpus), "digest": digest, "context": context}
    about |= {"profile": profile, "source_type": kind, "source": json.dumps(source)}
    open_record().datasets.append(about)


def log_quantization(report: QuantizationReport) -> None:
    """Log the seconds of quantizing, and per module its damp and whether it was rounded.

    Quantizers that do not report modules log only seconds.
    """
    metrics = {
        "quant_time_sec": report.quant_time_sec,
        "save_time_sec": report.save_time_sec,
        "warm_up_time_sec": report.warm_up_time_sec,
        "quantize_windows_at_once": report.windows_at_once,
    }
    if report.modules:
        shares = report.first_position_shares
        metrics |= {
            "modules_unquantized": len(report.unquantized),
            "scales_outside_float16": report.scales_outside_float16 or None,
            "damp_percent_max": report.damp_max,
            "rtn_fallbacks": report.rtn_fallbacks,
            "first_position_share_max": max(shares, default=None),
            "first_position_share_mean": sum(shares) / len(shares) if shares else None,
        }
    log_metrics({name: value for name, value in metrics.items() if value is not None})
    if not report.modules:
        return
    if report.column_kernel:
        set_tags({"colazero.column_kernel": report.column_kernel})
    import pandas as pd

    table = pd.DataFrame([*report.modules, *({"module": name} for name in report.unquantized)])
    table.to_json(open_record().artifact("quantization.json"), orient="split", index=False)
    shown = json.dumps([{"path": "quantization.json", "type": "table"}])
    set_tags({"mlflow.loggedArtifacts": shown})  # MLflow's pages show it as a table


def log_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Log perplexities, per-window sums and downstream results; return the metrics.

    `perplexity` is that of the first corpus; each has its own as `perplexity.CORPUS` too.
    Downstream items go to `evaluation/downstream.jsonl.gz`, one JSON object per line.
    """
    import numpy as np
    import pandas as pd

    metrics = {"eval_time_sec": evaluation.eval_time_sec}
    if evaluation.windows_at_once is not None:
        metrics["eval_windows_at_once"] = evaluation.windows_at_once
    for i, result in enumerate(evaluation.perplexities):
        name = client.corpus_name(result.corpus)
        values = {f"perplexity.{name}": result.perplexity}
        if i == 0:
            values |= {"perplexity": result.perplexity, "nll_per_token": result.nll_per_token}
            values |= result.distances
        values |= {f"{distance}.{name}": v for distance, v in result.distances.items()}
        on = client.dataset_name(result.corpus), result.digest
        open_record().measured_on.update(dict.fromkeys(values, on))
        used = {"windows": len(result.nll), "tokens": int(result.tokens.sum())}
        log_dataset(result, result.digest, "evaluation", **used)
        metrics |= values
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


# --- Checkpoints.

LOCAL = Path("outputs/checkpoints")
"""Where save_model=local keeps checkpoints, below the current directory."""


def refuse_unkeepable(config: Common, name: str) -> None:
    """Raise UserError if the parameters or the checkpoint could not be stored."""
    for parameter, value in params_of(config).items():
        if len(value) > MAX_PARAM_VAL_LENGTH:
            raise UserError(
                f"{parameter}: {len(value):,} characters, of which the tracking store keeps "
                f"{MAX_PARAM_VAL_LENGTH:,}. Divide the work among several runs, or use shorter "
                "names."
            )
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


def keep(
    config: Common,
    model: Model,
    checkpoint: Path,
    name: str,
    known: Mapping[str, str] | None = None,
) -> None:
    """Keep a checkpoint where `save_model` says; `local` copies it to LOCAL/NAME-DIGEST.

    Tag the run with the digest over the weights. `known`: SHA-256 of files that were hashed while
    they were written.
    """
    files = provenance.manifest(checkpoint, known)
    digest = provenance.weights_digest(files)
    set_tags({client.CHECKPOINT: digest})
    if config.save_model == "artifact":
        log_checkpoint(checkpoint, files, name, model.name)
    if config.save_model == "local":
        target = LOCAL / f"{client.file_name(name)}-{digest}"
        with new_entry(target) as draft:
            shutil.copytree(
                checkpoint, draft, dirs_exist_ok=True, copy_function=publish.link_or_copy
            )
        set_tags({client.CHECKPOINT_PATH: str(target.resolve())})


def log_checkpoint(checkpoint: Path, files: Mapping[str, str], name: str, base: str) -> None:
    """Log a checkpoint directory with its manifest, as a model that MLflow can load."""
    (checkpoint / "sha256.json").write_text(json.dumps(files, indent=1) + "\n")
    record = open_record()
    record.add_files(checkpoint, kind="model", digests=files)
    record.model.update(name=name, base=base)
    _describe_flavors(record.folder / "model", base)


TOKENIZER = ("token", "vocab", "merges", "special_tokens", "chat_template", "spiece", "tekken")
"""How the files of a tokenizer begin."""


def _describe_flavors(folder: Path, base: str) -> None:
    """Write the `MLmodel` by which mlflow.transformers and mlflow.pyfunc load a checkpoint.

    MLflow looks for a tokenizer in `components/tokenizer`: its files get a second name there.
    """
    from mlflow.models import Model as Description
    from mlflow.models import infer_signature

    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.startswith((*TOKENIZER, "added_tokens", "config.json")):
            target = folder / "components" / "tokenizer" / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            publish.link_or_copy(file, target)
    described = Description(signature=infer_signature(["a text"], ["a text that goes on"]))
    described.add_flavor(
        "transformers",
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",
        source_model_name=base,
        model_binary=".",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        framework="pt",
    )
    described.add_flavor("python_function", loader_module="mlflow.transformers", model_binary=".")
    described.save(str(folder / "MLmodel"))
    needed = [f"{name}=={v}" for name, v in sorted(provenance.versions().items())]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
