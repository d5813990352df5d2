"""Keeping what a run made: whether it can be is asked before anything is computed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from colazero.cache import new_entry
from colazero.errors import UserError, first_line
from colazero.settings import Common
from colazero.tracking import names, provenance, records
from colazero.tracking.log import as_text, log_checkpoint, set_tags
from colazero.types import Model

LOCAL = Path("outputs/checkpoints")
"""Where save_model=local keeps checkpoints, below the current directory."""


def check(config: Common, name: str) -> None:
    """Raise UserError, before the work, if its results could not be kept under this name."""
    _try_names(config, name)
    if config.save_model == "local":
        try:
            LOCAL.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{names.of_file(name)}-", dir=LOCAL):
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
        target = LOCAL / f"{names.of_file(name)}-{digest}"
        with new_entry(target) as draft:
            shutil.copytree(
                checkpoint, draft, dirs_exist_ok=True, copy_function=records.link_or_copy
            )
        set_tags({"colazero.checkpoint_path": str(target.resolve())})


def _try_names(config: Common, name: str) -> None:
    """Raise UserError if MLflow would refuse the names of a run's model, metrics or parameters.

    Its own validators are asked. A parameter that is longer than MLflow keeps would be cut.
    """
    try:
        validation._validate_logged_model_name(names.of_model(name))
        for corpus in config.eval_corpora:
            _metric(f"perplexity.{names.of_corpus(corpus)}")
        for task in config.downstream_tasks if config.do_downstream else ():
            _metric(f"downstream.{names.of_result(task)}")
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
