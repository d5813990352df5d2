"""Accuracy on downstream tasks, by EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from colazero.errors import UserError, unknown


def check(tasks: Sequence[str]) -> None:
    """Raise UserError for a task that lm-eval does not know, with the nearest one."""
    known = _manager(tasks).all_tasks
    for name in map(_name, tasks):
        if name not in known:
            raise unknown("downstream task", name, known, listing="`lm-eval ls tasks` lists them")


def evaluate(model: Any, tokenizer: Any, tasks: Sequence[str]) -> dict[str, float]:
    """Return the zero-shot results as `TASK.METRIC` → value, standard errors included.

    A task is a name that lm-eval knows, or the .yaml file of a task of the user's own.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer),
        tasks=[_name(task) for task in tasks],
        task_manager=_manager(tasks),
    )
    return {
        f"{task}.{key.removesuffix(',none')}": float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and isinstance(value, int | float)
    }


def _manager(tasks: Sequence[str]) -> Any:
    from lm_eval.tasks import TaskManager

    own = sorted({str(Path(task).resolve().parent) for task in tasks if _is_file(task)})
    return TaskManager(include_path=own or None)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _name(task: str) -> str:
    if not _is_file(task):
        return task
    try:
        found = yaml.load(Path(task).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        return str(found["task"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"downstream task file {task!r} cannot be read, or names no `task`: {error}"
        ) from error
