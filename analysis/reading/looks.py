"""The looks at a suite's cells: by the suite itself, and by earlier suites that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from analysis.reading.runs import listed, param, search
from analysis.reading.table import finished

Cell = tuple[str, str, int]
"""Model, method, seed."""
Seen = frozenset[Cell]
KEY = "colazero.key"
LOOKS = "colazero.looks"
"""The tag of a suite with the numbers of seeds at which it was looked at so far."""
ENDED = "colazero.ended"
"""The tag of a suite that ran what it was going to run; one that is FINISHED did so as well."""


@dataclass(frozen=True)
class Course:
    """The looks at a suite's cells, in time; the last is at all of them.

    maxima: by model (and setting), seeds per method that were declared before the first look; None
    if none were declared or if they are exceeded. interrupted: models of which an interrupted suite
    showed values, and whose number of seeds is not the planned one. The values may have decided
    that number.
    """

    looks: Sequence[Seen]
    maxima: Mapping[str, int | None]
    interrupted: frozenset[str] = frozenset()


def course_of(cells: pd.DataFrame) -> Course | None:
    """Read the looks at cells of any suites, as `read_course`; None if a cell has no suite."""
    suites = set(finished(cells)["suite"])
    return read_course(sorted(suites), cells) if suites and "" not in suites else None


def read_course(suite_run_ids: str | Sequence[str], cells: pd.DataFrame) -> Course:
    """Read the looks at the finished ones of `cells`, of one suite or of several side by side.

    An earlier suite is one that holds cells of the same key: the same settings, data and code. It
    looked when it was FINISHED, since its analysis ends it; with until=settled also at each look
    that it has logged. An interrupted suite showed its values until then: see `Course.interrupted`.
    Of several suites each has looked at its own cells before.
    """
    client = MlflowClient()
    ids = [suite_run_ids] if isinstance(suite_run_ids, str) else suite_run_ids
    given = sorted(map(client.get_run, ids), key=lambda run: run.info.start_time)
    good, planned = finished(cells), {_seeds(run) for run in given}
    here, before = frozenset(_cells(good)), _held(client, given, good)
    looks = []
    if len(given) == 1:
        before = [(r, seen) for r, seen in before if r.info.run_id != given[0].info.run_id]
        looks = list(_looks(given[0], here, at_end=False))
    looks = [look for run, seen in before for look in _looks(run, seen, at_end=True)] + looks
    broken = {
        cell[0]
        for run, seen in before
        if not _ended(run) and _seeds(run) not in planned
        for cell in seen
    }
    broken |= {model for run in given for model in _cut_short(run, good)}
    maxima = {
        str(model): _declared(
            rows, [run for run, seen in before if any(cell[0] == model for cell in seen)], given
        )
        for model, rows in good.groupby("model", sort=False)
    }
    looks = list(dict.fromkeys(look for look in (*looks, here) if look))
    return Course(looks, maxima, frozenset(broken))


def _held(
    client: MlflowClient, given: Sequence[Run], good: pd.DataFrame
) -> list[tuple[Run, set[Cell]]]:
    """Return the suites that looked, and what they hold of the cells, by time.

    An interrupted suite with the seeds of a given suite did not look: its plan was kept. For a
    model, only looks before the start of the newest given suite with cells of it count.
    """
    sources = sorted(set(good["source_run"]) - {""} - set(good["run_id"]))
    if not sources and len(given) == 1:
        return []
    homes = {str(run.info.experiment_id) for run in (*given, *map(client.get_run, sources[:1]))}
    ours = dict(zip(good["key"], _cells(good), strict=True))
    held: dict[str, set[Cell]] = {}
    done = "tags.`colazero.kind` = 'cell' and attributes.status = 'FINISHED'"
    for run in search(sorted(homes), done):
        key, parent = run.data.tags.get(KEY, ""), run.data.tags.get("mlflow.parentRunId", "")
        if key and key in ours and parent:
            held.setdefault(parent, set()).add(ours[key])
    mine, planned = {run.info.run_id for run in given}, {_seeds(run) for run in given}
    last = {
        model: max((r.info.start_time for r in given if r.info.run_id in set(own)), default=0)
        for model, own in good.groupby("model")["suite"]
    }
    looked = []
    for run, cells in ((client.get_run(run_id), cells) for run_id, cells in held.items()):
        if run.info.run_id not in mine:
            cells = {cell for cell in cells if run.info.start_time < last[cell[0]]}
        shown = _ended(run) or LOOKS in run.data.tags
        shown = shown or (_seeds(run) not in planned and _comparable(cells))
        if run.data.tags.get("colazero.kind") == "suite" and cells and shown:
            looked.append((run, cells))
    return sorted(looked, key=lambda item: item[0].info.start_time)


def _comparable(seen: Collection[Cell]) -> bool:
    """Return True if cells allow a comparison: two seeds of two methods of a model."""
    twice = [key for key, n in Counter(cell[:2] for cell in seen).items() if n > 1]
    return any(n > 1 for n in Counter(model for model, _ in twice).values())


def _looks(suite: Run, found: Collection[Cell], *, at_end: bool) -> Iterator[Seen]:
    """Return the cells that a suite had at each look, and at its end if it came to one."""
    seeds = [int(seed) for seed in listed(suite, "seeds")]
    for number in filter(None, suite.data.tags.get(LOOKS, "").split(",")):
        first = set(seeds[: int(number)])
        yield frozenset(cell for cell in found if cell[2] in first)
    if at_end and suite.info.status == "FINISHED":
        yield frozenset(found)


def _declared(rows: pd.DataFrame, before: Sequence[Run], given: Sequence[Run]) -> int | None:
    """Return the maximum that the first suite to look at a model declared, if it was kept.

    rows: the model's finished cells. Suites that were given together must have declared the same.
    """
    own = [run for run in given if run.info.run_id in set(rows["suite"])]
    plans = [
        len(listed(run, "seeds")) if param(run, "until") == "settled" else None
        for run in (*before, *own[-1:])
    ]
    most = rows.groupby("method")["seed"].nunique().max()
    if not plans or plans[0] is None or most > plans[0] or (len(own) > 1 and len(set(plans)) > 1):
        return None
    return plans[0]


def _cut_short(suite: Run, good: pd.DataFrame) -> set[str]:
    """Return the models of a suite that was interrupted before its cells were done.

    A method without a cell, such as one that a filter leaves out, does not count.
    """
    if _ended(suite):
        return set()
    own = good[good["suite"] == suite.info.run_id]
    whole = own.groupby(["model", "method"])["seed"].nunique() >= len(_seeds(suite))
    return {str(model) for model, done in whole.groupby("model") if not done.all()}


def _ended(suite: Run) -> bool:
    return suite.info.status == "FINISHED" or ENDED in suite.data.tags


def _seeds(suite: Run) -> frozenset[int]:
    return frozenset(map(int, listed(suite, "seeds")))


def _cells(rows: pd.DataFrame) -> list[Cell]:
    return list(zip(rows["model"], rows["method"], map(int, rows["seed"]), strict=True))
