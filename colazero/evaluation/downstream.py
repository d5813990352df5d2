"""Accuracy on downstream tasks, by EleutherAI's lm-evaluation-harness.

A task is a name that lm-eval knows, or a YAML file of the user's own. All files that
decide the latter are part of a result's key: YAML, code and local data.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from colazero.cache import files_digest
from colazero.corpora.chat import Writing
from colazero.errors import UserError, unknown
from colazero.types import Downstream

CODE = (".yaml", ".yml", ".py")
BATCH = 16
"""Sequences run at once: fixed, so that two machines pad alike."""


def check(tasks: Sequence[str]) -> None:
    """Raise UserError for a task that lm-eval does not know, or that cannot be loaded.

    Tasks are loaded with their data, so that no cell is computed first and lost then.
    """
    manager = _manager(tuple(tasks))
    known = manager.all_tasks
    for name in tasks:
        if not is_task_file(name) and name not in known:
            raise unknown("downstream task", name, known, listing="`lm-eval ls tasks` lists them")
    loaded: dict[str, str] = {}
    for task in tasks:
        try:
            members = manager.load(_found_as(task, manager))["tasks"]
        except Exception as error:  # anything from `datasets`, or from the user's own code
            raise UserError(
                f"downstream task {task!r} cannot be loaded: {_reason(error)}. Mend its file and "
                f"the paths in it (relative ones begin at {Path.cwd()}); for data from the Hugging "
                "Face Hub, see that the Hub can be reached, or load them once while it can."
            ) from error
        for name in members:
            if name in loaded:
                raise UserError(
                    f"downstream_tasks: {loaded[name]!r} and {task!r} both hold task {name!r}: "
                    "leave one of them out."
                )
            loaded[name] = task


def context(tasks: Sequence[str]) -> dict[str, str]:
    """Return what decides the results apart from the tasks' names: lm-eval and the user's files.

    Those are the task files, the code in their folders and the local data that they name.
    """
    files = {f"task {task}": task_digest(task) for task in tasks if is_task_file(task)}
    return {"lm_eval": version("lm_eval"), **files}


def evaluate(
    model: Any, tokenizer: Any, tasks: Sequence[str], chat: Writing | None = None
) -> Downstream:
    """Run the tasks on a model in memory, with as many examples in the prompt as each task says.

    A task is a name that lm-eval knows (a group too), or the .yaml file of one of the user's own.
    chat: write prompts as the tokenizer's chat template does, with these options.
    """
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    manager = _manager(tuple(tasks))
    # In bfloat16, log-likelihoods would be rounded to halves, and choices would tie.
    how: dict[str, Any] = {"batch_size": BATCH, "softmax_dtype": torch.float32}
    if chat is not None:
        how["chat_template_args"] = chat.template_options
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, **how),
        apply_chat_template=chat is not None,
        tasks=[_found_as(task, manager) for task in tasks],
        task_manager=manager,
    )
    scores, higher = {}, {}
    for task, values in found["results"].items():
        directions = found.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            metric, name = key.partition(",")[0], f"{task}.{_metric(key)}"
            if "," in key and isinstance(value, int | float):
                scores[name] = float(value)
            if metric in directions:
                higher[name] = bool(directions[metric])
    samples = [
        _sample(task, one)
        for task, all_of_task in sorted(found["samples"].items())
        for one in all_of_task
    ]
    known = scores | averages(scores, [_name(task) for task in tasks])
    return Downstream(known, samples, higher)


def averages(scores: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Return the plain mean over the tasks, of `acc` and of `acc_norm` (`acc` where there is none).

    Standard errors are those of a mean of independent tasks. Return {} if a task has no accuracy.
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
    """Return an item without its text: its identifiers, the model's answer and the scores.

    `response`: a log-likelihood per choice (nats), or the text that the model wrote.
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


def _reason(error: BaseException) -> str:
    words = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": .")
    return f"{words} ({_reason(error.__cause__)})" if error.__cause__ else words


def _manager(tasks: tuple[str, ...]) -> Any:
    """Return lm-eval's index of tasks, its own left out where all tasks are files."""
    files = [task for task in tasks if is_task_file(task)]
    folders = sorted({str(Path(file).resolve().parent) for file in files})
    alone = len(files) == len(tasks) and all("group" not in task_file(f) for f in files)
    return _index(tuple(folders), alone)


@lru_cache
def _index(folders: tuple[str, ...], alone: bool) -> Any:
    """Return the index, kept in memory: reading lm-eval's own 14,000 tasks takes half a minute."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders) or None, include_defaults=not alone)


def _found_as(task: str, manager: Any) -> str:
    name = _name(task)
    return name if name in manager.all_tasks else task


def _name(task: str) -> str:
    if not is_task_file(task):
        return task
    found = task_file(task)
    return str(found.get("group", found.get("task")))


def is_task_file(task: str) -> bool:
    """Return True for a task file, and False for the name of a task that lm-eval has."""
    return task.lower().endswith((".yaml", ".yml"))


def task_file(task: str | Path) -> dict[str, Any]:
    """Return a task file's settings, all as strings; UserError if it is not a task file."""
    found = _parsed(task)
    if not {"task", "group"} & found.keys():
        raise UserError(f"downstream task file {str(task)!r} names no `task` and no `group`.")
    return found


def task_digest(task: str) -> str:
    """Return a digest of all files that decide the task.

    Those are its YAML file, the files that it includes, the members of a group below the group's
    folder, the code next to each, and the data they name: files, patterns, and whole folders. Files
    that a task's own Python opens are not known here.
    """
    found: set[Path] = set()
    configs: dict[Path, dict[str, Any]] = {}
    waiting = [Path(task).resolve()]
    while waiting:
        file = waiting.pop().resolve()
        if file in configs:
            continue
        config = configs[file] = _parsed(file)
        found |= {file, *(f for f in file.parent.iterdir() if f.suffix in CODE)}
        waiting += [file.parent / name for name in _under(config.get("include"))]
        if "group" in config:
            waiting += _members(file, set(_under(config.get("task"))))
    found |= set(_data(list(configs.values())))
    return files_digest(sorted(found))


def _parsed(file: str | Path) -> dict[str, Any]:
    try:
        found = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"downstream task file {str(file)!r} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _members(group: Path, names: set[str]) -> Iterator[Path]:
    """Find the files below a group's folder whose task, group or tag is among the names."""
    for file in group.parent.rglob("*.yaml"):
        try:
            config = _parsed(file)
        except UserError:
            continue  # some other YAML: lm-eval passes over it too
        if names & set(_under([config.get(key) for key in ("task", "group", "tag")])):
            yield file


def _data(configs: list[dict[str, Any]]) -> Iterator[Path]:
    """Find the local data that task files name.

    lm-eval decides which of several files counts. So every path is tried from every folder that one
    of them names. A file too many costs an evaluation, one too few a wrong result.
    """
    roots = list(_under(configs, "dataset_path"))
    named = {*roots, *_under(configs, "dataset_kwargs")} - {""}
    folders = product(["", *roots], ["", *_under(configs, "data_dir")])
    for folder in {Path(root).expanduser() / part for root, part in folders}:
        for name in named:
            pattern = str(folder / Path(name).expanduser())
            there = Path(pattern).exists()
            for path in [pattern] if there else glob.glob(pattern, recursive=True):
                yield from _files(Path(path).resolve())


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts):
            yield file


def _under(value: Any, key: str = "") -> Iterator[str]:
    """Find the strings at any depth, or those at any depth under `key`."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _under(one, "" if name == key else key)
    elif isinstance(value, list):
        for one in value:
            yield from _under(one, key)
    elif isinstance(value, str) and not key:
        yield value
