"""What an analysis says, on the run that it is about: metrics to sort by, tags to read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient

from colazero.tracking import names
from colazero.types import label

MOST = 100
"""Tags that MLflow takes at once; of metrics it takes more."""


class Headline(Protocol):
    """What is said of one method of a model, or of two of them."""

    @property
    def model(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def numbers(self) -> Mapping[str, float]: ...
    @property
    def verdict(self) -> str: ...


def log(run_id: str, said: Iterable[Headline]) -> None:
    """Log numbers as `result.MODEL.METHOD.mean`, verdicts as tags `verdict.MODEL.A_vs_B`."""
    now, metrics, tags = int(1000 * time.time()), [], []
    for one in said:
        plain, bracket, setting = one.model.partition(" [")  # a path may be in the latter
        model, *methods = map(names.of_result, (label(plain) + bracket + setting, *one.methods))
        of = f"{model}.{'_vs_'.join(methods)}"
        metrics += [Metric(f"result.{of}.{k}", v, now, step=0) for k, v in one.numbers.items()]
        if one.verdict:
            tags.append(RunTag(f"verdict.{of}", one.verdict))
    client = MlflowClient()
    for start in range(0, max(len(metrics), len(tags)), MOST):
        part = slice(start, start + MOST)
        client.log_batch(run_id, metrics[part], tags=tags[part])
