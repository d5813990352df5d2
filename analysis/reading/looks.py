"""The looks at a suite's cells: by the suite itself, and by earlier suites that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from analysis.reading.runs import param

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

    maximum: seeds per method, declared before the first look; None if none was declared or if it is
    exceeded; maxima: by model, where models have several. earlier: run ids of
    the suites that looked before this one. interrupted: models of which an
    interrupted suite showed values, and whose number of seeds is not the planned one. The values
    may have decided that number.
    """

    looks: Sequence[Seen]
    maximum: int | None = None
    earlier: Sequence[str] = ()
    maxima: Mapping[str, int | None] = field(default_factory=dict)
    interrupted: frozenset[str] = frozenset()

    def maximum_of(self, model: str) -> int | None:
        """Return the maximum that holds for a model (and setting)."""
        return self.maxima.get(model, self.maximum)


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
    suite, several = given[-1], len(given) > 1
    good = cells[(cells["kind"] == "cell") & (cells["error"] == "")]
    here = _cells(good)
    before = _held(client, given, good)
    if not several:
        before = [(r, seen) for r, seen in before if r.info.run_id != suite.info.run_id]
    planned = {_seeds(run) for run in given}
    left = [seen for run, seen in before if not _ended(run) and _seeds(run) not in planned]
    broken = {cell[0] for seen in left for cell in seen}
    broken |= {model for run in given for model in _cut_short(run, good)}
    looks = [seen for run, found in before for seen in _looks(run, found, at_end=True)]
    looks += [*([] if several else _looks(suite, set(here), at_end=False)), frozenset(here)]
    maxima = {
        str(model): _declared(rows, [run for run, seen in before if _holds(seen, model)], given)
        for model, rows in good.groupby("model", sort=False)
    }
    return Course(
        looks=tuple(dict.fromkeys(seen for seen in looks if seen)),
        maximum=next(iter(maxima.values())) if len(set(maxima.values())) == 1 else None,
        earlier=tuple(str(run.info.run_id) for run, _ in before),
        maxima=maxima,
        interrupted=frozenset(broken),
    )


def course_of(cells: pd.DataFrame) -> Course | None:
    """Read the looks at cells of any suites, as `read_course`; None if a cell has no suite."""
    suites = set(cells.loc[(cells["kind"] == "cell") & (cells["error"] == ""), "suite"])
    return read_course(sorted(suites), cells) if suites and "" not in suites else None


def _ended(suite: Run) -> bool:
    return suite.info.status == "FINISHED" or ENDED in suite.data.tags


def _seeds(suite: Run) -> frozenset[int]:
    return frozenset(int(seed) for seed in (param(suite.data.params, "seeds") or "").split(","))


def _cut_short(suite: Run, good: pd.DataFrame) -> set[str]:
    """Return the models of a suite that was interrupted before its cells were done.

    A method without a cell, such as one that a filter leaves out, does not count.
    """
    if _ended(suite):
        return set()
    own = good[good["suite"] == suite.info.run_id]
    whole = own.groupby(["model", "method"])["seed"].nunique() >= len(_seeds(suite))
    return {str(model) for model, done in whole.groupby("model") if not done.all()}


def _shows(seen: Collection[Cell]) -> bool:
    """Return True if cells allow a comparison: two seeds of two methods of a model."""
    twice = [key for key, n in Counter(cell[:2] for cell in seen).items() if n > 1]
    return any(n > 1 for n in Counter(model for model, _ in twice).values())


def _holds(seen: Collection[Cell], model: object) -> bool:
    return any(cell[0] == model for cell in seen)


def _declared(rows: pd.DataFrame, before: Sequence[Run], given: Sequence[Run]) -> int | None:
    """Return the maximum that the first suite to look at a model declared, if it was kept.

    rows: the model's finished cells. Suites that were given together must have declared the same.
    """
    own = [run for run in given if run.info.run_id in set(rows["suite"])]
    plans = [_maximum(run) for run in (*before, *own[-1:])]
    most = rows.groupby("method")["seed"].nunique().max()
    if not plans or plans[0] is None or most > plans[0] or (len(own) > 1 and len(set(plans)) > 1):
        return None
    return plans[0]


def _cells(rows: pd.DataFrame) -> list[Cell]:
    return [
        (str(model), str(method), int(seed))
        for model, method, seed in zip(rows["model"], rows["method"], rows["seed"], strict=True)
    ]


def _looks(suite: Run, found: Collection[Cell], *, at_end: bool) -> Iterator[Seen]:
    """Return the cells that a suite had at each look, and at its end if it came to one."""
    seeds = [int(seed) for seed in (param(suite.data.params, "seeds") or "").split(",") if seed]
    for number in filter(None, suite.data.tags.get(LOOKS, "").split(",")):
        first = set(seeds[: int(number)])
        yield frozenset(cell for cell in found if cell[2] in first)
    if at_end and suite.info.status == "FINISHED":
        yield frozenset(found)


def _maximum(suite: Run) -> int | None:
    params = suite.data.params
    if param(params, "until") != "settled":
        return None
    return len((param(params, "seeds") or "").split(","))


def _held(
    client: MlflowClient, given: Sequence[Run], good: pd.DataFrame
) -> list[tuple[Run, set[Cell]]]:
    """Return the suites that looked, and what they hold of the cells.

    An interrupted suite with the seeds of a given suite did not look: its plan was kept. For a
    model, only looks before the start of the newest given suite with cells of it count.
    """
    mine = {run.info.run_id for run in given}
    sources = sorted(set(good["source_run"]) - {""} - set(good["run_id"]))
    if not sources and len(given) == 1:
        return []
    homes = {str(run.info.experiment_id) for run in (*given, *map(client.get_run, sources[:1]))}
    known = "tags.`colazero.kind` = 'cell' and attributes.status = 'FINISHED'"
    ours = dict(zip(good["key"], _cells(good), strict=True))
    found: dict[str, set[Cell]] = {}
    for run in _all(client, sorted(homes), known):
        key, parent = run.data.tags.get(KEY, ""), run.data.tags.get("mlflow.parentRunId", "")
        if key and key in ours and parent:
            found.setdefault(parent, set()).add(ours[key])
    suites = [(client.get_run(run_id), cells) for run_id, cells in found.items()]
    last = {
        str(model): max((r.info.start_time for r in given if r.info.run_id in set(own)), default=0)
        for model, own in good.groupby("model")["suite"]
    }
    began = [
        (run, seen)
        for run, cells in suites
        if run.data.tags.get("colazero.kind") == "suite"
        and (
            seen := {
                cell
                for cell in cells
                if run.info.run_id in mine or run.info.start_time < last[cell[0]]
            }
        )
    ]
    planned = {_seeds(run) for run in given}
    looked = [
        (r, c)
        for r, c in began
        if _ended(r) or LOOKS in r.data.tags or (_seeds(r) not in planned and _shows(c))
    ]
    return sorted(looked, key=lambda item: item[0].info.start_time)


def _all(client: MlflowClient, experiments: list[str], condition: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
