"""What a suite's run keeps of the looks at it: metrics by seeds, and where methods stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric, Run
from mlflow.tracking import MlflowClient

LOOKS = "colazero.looks"
"""The tag with the numbers of seeds at which was looked, as in `5,10`."""
STOPPED = "colazero.stopped"
"""The tag, in JSON, with the number of seeds after which a method of a model got no more."""
MOST = 1000
"""Metrics that MLflow takes at once."""


def log_look(
    suite: str,
    looks: Sequence[int],
    metrics: Mapping[str, float],
    stopped: Mapping[str, Mapping[str, int]],
) -> None:
    """Log a look.

    looks: numbers of seeds of all looks so far; the last is the metrics' step. stopped: model →
    method → number of seeds after which it got no more.
    """
    client, now = MlflowClient(), int(1000 * time.time())
    values = [Metric(name, value, now, looks[-1]) for name, value in metrics.items()]
    for start in range(0, len(values), MOST):
        client.log_batch(suite, values[start : start + MOST])
    if stopped:
        client.set_tag(suite, STOPPED, json.dumps(stopped))
    client.set_tag(suite, LOOKS, ",".join(map(str, looks)))  # last: the look is whole then


def stopped_at(suite: Run) -> dict[str, dict[str, int]]:
    """Return where methods stopped, as `log_look` was told: model → method → seeds."""
    found: dict[str, dict[str, int]] = json.loads(suite.data.tags.get(STOPPED, "{}"))
    return found
