"""The files that decide a downstream task of the user's own: its YAML, code and local data."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from colazero.cache import files_digest
from colazero.errors import UserError

CODE = (".yaml", ".yml", ".py")


def is_file(task: str) -> bool:
    """Tell a task file from the name of a task that lm-eval has."""
    return task.endswith((".yaml", ".yml"))


def read(task: str | Path) -> dict[str, Any]:
    """Return a task file's settings, all as strings; UserError if it is none."""
    found = _parsed(task)
    if not {"task", "group"} & found.keys():
        raise UserError(f"downstream task file {str(task)!r} names no `task` and no `group`.")
    return found


def digest(task: str) -> str:
    """Return a digest of all files that decide the task.

    Those are its YAML file, the files that it includes, the members of a group below the group's
    folder, the code beside each, and the data they name: files, patterns, and whole folders. What
    a task's own Python opens is not known here.
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

    Which of several files says what counts is lm-eval's business: every path is tried from every
    folder that one of them names. A file too many costs an evaluation, one too few a wrong result.
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
    """Return a file itself, of a folder all files in it; hidden ones are no data."""
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
