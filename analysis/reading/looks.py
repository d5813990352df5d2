"""When a suite's cells were looked at: by the suite itself, and by earlier ones that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from analysis.reading.runs import STOPPED, param

Cell = tuple[str, str, int]
"""Model, method, seed."""
Seen = frozenset[Cell]
KEY = "colazero.key"
LOOKS = "colazero.looks"
"""The tag of a suite with the numbers of seeds at which it was looked at so far."""

__all__ = ["STOPPED", "Course", "Seen", "read_course"]


@dataclass(frozen=True)
class Course:
    """The looks at a suite's cells, in time; the last is at all of them.

    maximum: the number of seeds a method that was declared before the first look; None where none
    was, or where it is exceeded. earlier: run ids of the suites that looked before this one.
    """

    looks: Sequence[Seen]
    maximum: int | None = None
    earlier: Sequence[str] = ()


def read_course(suite_run_id: str, cells: pd.DataFrame) -> Course:
    """Read the looks at the finished ones of `cells`, from `load_suite` or a part of it.

    An earlier suite is one that holds cells of the same key: the same settings, data and code. It
    looked when it was FINISHED, since its analysis ends it; with until=settled also at each look
    that it has logged.
    """
    client = MlflowClient()
    suite = client.get_run(suite_run_id)
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "")]
    here = _cells(good)
    before = _earlier(client, suite, good)
    looks = [seen for run, found in before for seen in _looks(run, found, at_end=True)]
    looks += [*_looks(suite, dict(zip(here, here, strict=True)), at_end=False), frozenset(here)]
    plans = [_maximum(run) for run in (*(run for run, _ in before), suite)]
    most = good.groupby(["model", "method"])["seed"].nunique().max() if len(good) else 0
    kept = plans[0] is not None and most <= plans[0]
    return Course(
        looks=tuple(dict.fromkeys(seen for seen in looks if seen)),
        maximum=plans[0] if kept else None,
        earlier=tuple(str(run.info.run_id) for run, _ in before),
    )


def _cells(rows: pd.DataFrame) -> list[Cell]:
    return [
        (str(model), str(method), int(seed))
        for model, method, seed in zip(rows["model"], rows["method"], rows["seed"], strict=True)
    ]


def _looks(suite: Run, found: dict[Cell, Cell], *, at_end: bool) -> Iterator[Seen]:
    """What a suite saw: at its looks, and at its end if it came to one; found: its cell → ours."""
    seeds = [int(seed) for seed in (param(suite.data.params, "seeds") or "").split(",") if seed]
    for number in filter(None, suite.data.tags.get(LOOKS, "").split(",")):
        first = set(seeds[: int(number)])
        yield frozenset(ours for (_, _, seed), ours in found.items() if seed in first)
    if at_end and suite.info.status == "FINISHED":
        yield frozenset(found.values())


def _maximum(suite: Run) -> int | None:
    params = suite.data.params
    if param(params, "until") != "settled":
        return None
    return len((param(params, "seeds") or "").split(","))


def _earlier(
    client: MlflowClient, suite: Run, good: pd.DataFrame
) -> list[tuple[Run, dict[Cell, Cell]]]:
    """Return the suites that began before and hold some of the cells, oldest first; cell → ours."""
    sources = sorted(set(good["source_run"]) - {""} - set(good["run_id"]))
    if not sources:
        return []
    homes = {str(client.get_run(sources[0]).info.experiment_id), str(suite.info.experiment_id)}
    known = "tags.`colazero.kind` = 'cell' and attributes.status = 'FINISHED'"
    runs = _all(client, sorted(homes), known)
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId", "") for run in runs}
    mine = {
        run.data.tags[KEY]: run
        for run in runs
        if parents[run.info.run_id] == suite.info.run_id and KEY in run.data.tags
    }
    ours = dict(zip(good["run_id"], _cells(good), strict=True))
    found: dict[str, dict[Cell, Cell]] = {}
    for run in runs:
        same = mine.get(run.data.tags.get(KEY, ""))
        parent, p = parents[run.info.run_id], run.data.params
        if same is None or same.info.run_id not in ours or parent in ("", suite.info.run_id):
            continue
        theirs = (str(param(p, "model")), str(param(p, "method")), int(param(p, "seed") or 0))
        found.setdefault(parent, {})[theirs] = ours[same.info.run_id]
    suites = [(client.get_run(run_id), cells) for run_id, cells in found.items()]
    began = [(run, cells) for run, cells in suites if _began_before(run, suite)]
    looked = [(r, c) for r, c in began if r.info.status == "FINISHED" or LOOKS in r.data.tags]
    return sorted(looked, key=lambda item: item[0].info.start_time)


def _began_before(run: Run, suite: Run) -> bool:
    kind = run.data.tags.get("colazero.kind")
    return kind == "suite" and bool(run.info.start_time < suite.info.start_time)


def _all(client: MlflowClient, experiments: list[str], condition: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
