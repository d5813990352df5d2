"""Sequential suites (until=settled): analyze after each look, and run the cells still needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from colazero.errors import UserError
from colazero.store import claims, client
from colazero.store.claims import Headline
from colazero.suite.worker import Job
from colazero.suite_settings import SuiteConfig

log = logging.getLogger(__name__)

Method = tuple[str, str]
"""A model and a method."""

Judge = Callable[[str, int], Sequence[Headline]]
"""(run id of a suite, number of its first seeds) → the verdicts of the finished cells of these.

They depend on the store alone: every look at the same cells gives the same verdicts.
"""

SETTLED = ("different", "equivalent")


def closed(found: Iterable[Headline]) -> set[Method]:
    """Return the methods whose comparisons are all settled: they need no more seeds."""
    compared, still_open = set(), set()
    for finding in found:
        methods = {(finding.model, method) for method in finding.methods}
        compared |= methods
        if finding.verdict not in SETTLED:
            still_open |= methods
    return compared - still_open


def due(jobs: Iterable[Job], seeds: Sequence[int], without: set[Method]) -> list[Job]:
    """Return the cells of `seeds`, in order, without those of some methods."""
    return [
        job
        for job in jobs
        if job.kind == "cell"
        and job.config.seed in seeds
        and (job.config.model, job.config.method) not in without
    ]


def follow(
    config: SuiteConfig,
    suite: str,
    jobs: Sequence[Job],
    do: Callable[[list[Job], int], bool],
    judge: Judge,
) -> None:
    """Run the cells look by look until every comparison is settled, or all seeds are done.

    do: runs jobs, given how many may follow; returns True if it ran all of them. Unquantized models
    and controls run first. A look at cells that another suite has finished is repeated.
    """
    stopped: dict[Method, int] = {}
    before = 0
    for k, seeds in enumerate(config.schedule):
        batch = due(jobs, config.seeds[before:seeds], set(stopped))
        later = len(due(jobs, config.seeds[seeds:], set(stopped)))
        first = [job for job in jobs if job.kind != "cell"] if not before else []
        if not do([*first, *batch], later):
            return
        before = seeds
        found = _look(suite, k, config, judge)
        stopped |= dict.fromkeys(closed(found) - set(stopped), seeds)
        by_model: dict[str, dict[str, int]] = {model: {} for model, _ in stopped}
        for (model, method), last in stopped.items():
            by_model[model][method] = last
        looks = config.schedule[: k + 1]
        client.patiently(claims.log_look, suite, looks, _metrics(found), by_model)
        if not due(jobs, config.seeds, set(stopped)):
            log.info("all is settled after %d of %d seeds", seeds, len(config.seeds))
            return


def _look(suite: str, k: int, config: SuiteConfig, judge: Judge) -> Sequence[Headline]:
    seeds = config.schedule[k]
    head = f"look {k + 1} of at most {len(config.schedule)}, {seeds} of {len(config.seeds)} seeds"
    try:
        found = client.patiently(judge, suite, seeds)
    except UserError as error:  # such as no cell with a result: later seeds may have some
        log.warning("%s: nothing can be compared: %s", head, error)
        return []
    for finding in found:
        log.info("%s: %s", head, finding.text)
    return found


def _metrics(found: Iterable[Headline]) -> dict[str, float]:
    """Return the numbers of a look, named as in `look.MODEL.A_vs_B.p_value`."""
    metrics: dict[str, float] = {}
    for one in found:
        model, *methods = map(client.result_name, (one.model, *one.methods))
        stem = f"look.{model}.{'_vs_'.join(methods)}"
        metrics |= {f"{stem}.{name}": value for name, value in one.numbers.items()}
    return metrics
