"""The comparison: every model × method × seed. `python -m entrypoints.suite --seeds=42-46`.

`python -m entrypoints.suite --status=RUN_ID` prints the state of a suite, from another shell.
"""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.suite`, or `colazero suite`.")

import importlib
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import product
from threading import Thread
from typing import TYPE_CHECKING

from colazero.settings import CELL, SETTINGS, Common
from colazero.suite_settings import SuiteConfig, parse, preset_of, refuse_untaken
from entrypoints._session import explained, fields, main

if TYPE_CHECKING:
    from analysis.report.facts import Headline

PARAMETERS = tuple(sorted(SuiteConfig.model_fields, key=lambda name: name in Common.model_fields))

OTHER = ("eval_windows", "downstream_tasks", "device")
"""Settings in which a suite may differ whose noise a plan takes."""


def run(given: dict[str, str]) -> int:
    config = parse(SuiteConfig, given)
    refuse_untaken(given, config.quantizer)
    from colazero.store import claims, client, record
    from colazero.store.open import connect
    from colazero.suite import run as suite
    from colazero.suite.cells import counted, title

    suite.check(config)
    connect()
    name = title(config, preset_of(given))
    if config.plan:
        from analysis.report.facts import expect

        with record.run(client.run_name("plan", name), "plan"):
            suite.plan_suite(config, expect, print)
            print(_can_find(config), end="")
        return 0
    with record.run(name, "suite") as run_id:
        # This import takes seconds: it is done while the workers start.
        Thread(target=importlib.import_module, args=["analysis.report.write"], daemon=True).start()
        report = suite.run_suite(config, run_id, _judge)
        from analysis.report.write import analyze

        table = client.patiently(analyze, run_id, tell=partial(claims.log_results, run_id))
        record.describe(table)
        if report.failed:
            record.set_tags({"colazero.error": _failures(report.failed)})
    print(f"\n{table}\n")
    if report.reused:
        print(f"{len(report.reused)} of {len(report.done)} cells share the results of another run.")
    if report.not_started:
        print(
            f"budget_hours={config.budget_hours}: {counted(len(report.not_started), 'cell')} not "
            "started, as they would not have ended in time. The same command continues with them."
        )
    print(f"suite run: {run_id}\n{client.where(run_id, analyzed=True)}")
    for name, reason in report.failed.items():
        print(f"FAILED {name}: {explained(reason, given)}", file=sys.stderr)
    return 1 if report.failed else 0


def _failures(failed: Mapping[str, str]) -> str:
    """Return how many cells failed and the commonest reasons."""
    from colazero.suite.cells import counted

    common = Counter(failed.values()).most_common(3)
    reasons = "; ".join(f"{reason} ({counted(n, 'cell')})" for reason, n in common)
    return f"{counted(len(failed), 'cell')} failed: {reasons}"


def _judge(suite_run: str, seeds: int) -> list[Headline]:
    """Analyze a suite's first seeds. The analysis takes seconds to import."""
    from analysis.report.facts import judge

    return judge(suite_run, seeds)


def _can_find(config: SuiteConfig) -> str:
    """Return which differences the suite can show: a line per model and setting."""
    from analysis.stats.power import DOCUMENTED, prospect
    from analysis.stats.text import FEWEST_WINDOWS
    from analysis.summary.noise import noise_in_store
    from colazero import models
    from colazero.evaluation.perplexity import extent
    from colazero.store import client, record

    if len(config.methods) < 2 or len(config.seeds) < 2:
        return ""
    homes = client.homes(client.experiment_of(record.active_run_id()))
    names = [n for n, s in SETTINGS.items() if s.decides and n not in (*CELL, *OTHER)]
    lines = []
    for name, one in product(config.models, config.settings()):
        windows, documents = extent(one, models.fetch(name))
        where = " ".join([name, *(f"{n}={getattr(one, n)}" for n in config.sweep)])
        if windows < FEWEST_WINDOWS:
            lines.append(f"{where}: on {windows} windows no verdict speaks about other text\n")
            continue
        settings = record.params_of(one, names) | {"replicates": str(config.replicates)}
        noise = noise_in_store(homes, name, settings) or DOCUMENTED
        found = prospect(len(config.methods), len(config.seeds), windows, documents, noise=noise)
        lines.append(
            f"{where}: on {windows} windows in {documents} documents, with the noise of "
            f"{noise.source}, a difference of {found.difference:.1f} % is shown with a chance of "
            f"80 %. Equal methods: each is shown to be at most about {found.bound:.1f} % worse "
            f"than the best; equivalence within ±1 % is shown with a chance of "
            f"{100 * found.equivalence:.0f} %\n"
        )
    return "".join(lines)


def show_status(given: dict[str, str]) -> int:
    """Print the cells of a suite by state, from another shell."""
    from colazero.store.open import connect
    from colazero.suite import cells

    connect(reading=True)
    lines = cells.states(given["status"])
    print(cells.text(lines))
    return int(any(line.state in ("failed", "lost", "missing") for line in lines))


if __name__ == "__main__":
    if any(word.startswith("--status") for word in sys.argv[1:]):
        status = "the run id of a suite, which it prints when it begins"
        main(show_status.__doc__ or "", {"status": status}, show_status)
    main(__doc__, fields(PARAMETERS), run)
