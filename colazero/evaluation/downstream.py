"""Accuracy on downstream tasks, by EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from colazero.errors import UserError, unknown
from colazero.interfaces import Downstream

BATCH = 16
"""Sequences run at once: fixed, so that two machines pad alike."""


def check(tasks: Sequence[str]) -> None:
    """Raise UserError for a task that lm-eval does not know, with the nearest one."""
    known = _manager(tuple(tasks)).all_tasks
    for name in map(_name, tasks):
        if name not in known:
            raise unknown("downstream task", name, known, listing="`lm-eval ls tasks` lists them")


def context(tasks: Sequence[str]) -> dict[str, str]:
    """Return what decides the results beside the tasks' names: lm-eval, and the user's own files.

    Those are the task files, the code beside them and the local data that they name.
    """
    found = {"lm_eval": version("lm_eval")}
    for task in filter(_is_file, tasks):
        beside = (f for f in Path(task).resolve().parent.iterdir() if f.suffix in _TASK_CODE)
        files = {*beside, *map(Path, _local_data(_read(task).get("dataset_kwargs")))}
        digest = hashlib.sha256()
        for file in sorted(files):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        found[f"task {task}"] = digest.hexdigest()[:16]
    return found


def evaluate(model: Any, tokenizer: Any, tasks: Sequence[str]) -> Downstream:
    """Run the tasks on a model in memory, with as many examples in the prompt as each task says.

    A task is a name that lm-eval knows (a group too), or the .yaml file of one of the user's own.
    """
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    names = [_name(task) for task in tasks]
    found = lm_eval.simple_evaluate(
        # In bfloat16, log-likelihoods would be rounded to halves, and choices would tie.
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, softmax_dtype=torch.float32),
        tasks=names,
        task_manager=_manager(tuple(tasks)),
    )
    scores = {
        f"{task}.{_metric(key)}": float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and isinstance(value, int | float)
    }
    samples = [
        _sample(task, one)
        for task, all_of_task in sorted(found["samples"].items())
        for one in all_of_task
    ]
    return Downstream(scores | averages(scores, names), samples)


def averages(scores: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Return the plain mean over the tasks, of `acc` and of `acc_norm` (`acc` where there is none).

    Standard errors are those of a mean of independent tasks. Nothing if a task has no accuracy.
    """
    found = {}
    for wanted in ("acc", "acc_norm"):
        used = [next((m for m in (wanted, "acc") if f"{t}.{m}" in scores), None) for t in tasks]
        if any(metric is None for metric in used):
            return {}
        keys = [f"{task}.{metric}" for task, metric in zip(tasks, used, strict=True)]
        found[f"average.{wanted}"] = math.fsum(scores[key] for key in keys) / len(keys)
        errors = [scores.get(f"{key}_stderr") for key in keys]
        known = [error for error in errors if error is not None]
        if len(known) == len(keys):
            found[f"average.{wanted}_stderr"] = math.hypot(*known) / len(keys)
    return found


def _metric(key: str) -> str:
    """Turn lm-eval's `METRIC,FILTER` into `METRIC`, or METRIC.FILTER where there is a filter."""
    metric, _, rest = key.partition(",")
    return metric if rest == "none" else f"{metric}.{rest}"


def _sample(task: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of an item what identifies it, what the model said and how it was scored, not its text.

    `response`: a log-likelihood a choice (nats), or what the model wrote.
    """
    response = [
        answer[0] if isinstance(answer, list | tuple) else answer
        for answer in one["filtered_resps"]
    ]
    scored = {f"{name},{one['filter']}": one[name] for name in one["metrics"]}
    return {
        "task": task,
        "doc_id": one["doc_id"],
        "doc_hash": one["doc_hash"],
        "target": one["target"] if isinstance(one["target"], int | str) else str(one["target"]),
        "response": response,
        **{_metric(key): value for key, value in scored.items() if isinstance(value, int | float)},
    }


_TASK_CODE = (".yaml", ".yml", ".py")


@lru_cache
def _manager(tasks: tuple[str, ...]) -> Any:
    """Return lm-eval's index of tasks; reading that of its own 14,000 takes half a minute."""
    from lm_eval.tasks import TaskManager

    own = sorted({str(Path(task).resolve().parent) for task in tasks if _is_file(task)})
    alone = all(_is_file(task) and "group" not in _read(task) for task in tasks)
    return TaskManager(include_path=own or None, include_defaults=not alone)


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _name(task: str) -> str:
    if not _is_file(task):
        return task
    found = _read(task)
    return str(found.get("group", found.get("task")))


def _read(task: str) -> dict[str, Any]:
    try:
        found = yaml.load(Path(task).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"downstream task file {task!r} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"task", "group"} & found.keys():
        raise UserError(f"downstream task file {task!r} names no `task` and no `group`.")
    return found


def _local_data(value: Any) -> Iterator[str]:
    """Find the paths of files among whatever a task hands to `datasets`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _local_data(item)
    elif isinstance(value, str) and Path(value).is_file():
        yield value
