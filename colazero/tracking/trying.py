"""What a run will log, tried against the store's own rules before anything is computed."""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from colazero.config import Settings
from colazero.errors import UserError, first_line
from colazero.tracking import names
from colazero.tracking.log import as_text


def try_names(config: Settings, name: str) -> None:
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
