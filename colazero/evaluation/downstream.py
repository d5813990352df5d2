"""Accuracy on downstream tasks, by EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colazero.errors import unknown


def check(tasks: Sequence[str]) -> None:
    """Raise UserError for a task that lm-eval does not know, with the nearest one."""
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    for task in tasks:
        if task not in known:
            raise unknown("downstream task", task, known, listing="`lm-eval ls tasks` lists them")


def evaluate(model: Any, tokenizer: Any, tasks: Sequence[str]) -> dict[str, float]:
    """Return the zero-shot results as `TASK.METRIC` → value, standard errors included."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    found = lm_eval.simple_evaluate(HFLM(pretrained=model, tokenizer=tokenizer), tasks=list(tasks))
    return {
        f"{task}.{key.split(',')[0]}": float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if isinstance(value, int | float)
    }
