"""Statistics, figures and a report of a suite: `python -m entrypoints.analyze --suite=RUN_ID`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.analyze`, or `colazero analyze`.")

import logging
from functools import partial
from typing import Any

from colazero.errors import UserError
from entrypoints._session import main

log = logging.getLogger("colazero")

PARAMETERS = {
    "suite": "run id of a suite. Default: the newest one of the experiment",
    "suites": "run ids of several suites, comma separated: their cells side by side, each setting "
    "within itself. Default: one suite",
    "experiment": "name of an experiment, all cells of which are analyzed. Default: none, one "
    "suite is",
    "filter": "which cells are taken, in MLflow's search syntax (params.quant_bits = '4'); alone: "
    "of all suites. Default: all",
    "primary": "the method whose comparisons are the primary family. Default: what the suite "
    "names, else cola_zero",
    "baseline": "the method that stands second in its comparisons. Default: what the suite names, "
    "else gptq_default",
    "metric": "perplexity, kl_divergence, top1_agreement, nll_per_token, divergence.kl_q99, "
    "NAME.CORPUS or a downstream one (arc_easy.acc). Default: perplexity",
    "direction": "lower or higher is better, for a metric that is not known. Default: what is "
    "known of the metric",
    "margin": "largest difference that does not matter, above 0, % of the second method's. "
    "Default: 1",
    "alpha": "level of the tests, between 0 and 1. Default: 0.05",
    "names": "names of methods in table.tex, METHOD=NAME, comma separated. Default: their own",
    "out": "local folder that gets the files too. Default: none",
}


def run(given: dict[str, str]) -> int:
    from analysis.reading.looks import course_of
    from analysis.reading.runs import latest_suite, load_experiment
    from analysis.report.write import analyze, make_folder, report
    from analysis.summary import Options

    chosen = {name: value for name, value in given.items() if value != "auto"}
    which = [name for name in ("suite", "suites", "experiment") if name in chosen]
    if len(which) > 1:
        raise UserError(f"{' and '.join(which)} exclude each other: name one of them.")
    words = ("baseline", "primary", "direction", "metric")
    given_options: dict[str, Any] = {name: chosen[name] for name in words if name in chosen}
    numbers = [name for name in ("margin", "alpha") if name in chosen]
    given_options |= {name: _number(name, chosen[name]) for name in numbers}
    options = Options(**given_options, names=_names(chosen.get("names", "")))
    if options.margin < 0.1:
        log.warning(
            "margin=%s means %s %% of the second method's value; for one per cent give margin=1",
            *(chosen["margin"], chosen["margin"]),
        )
    out, condition = chosen.get("out"), chosen.get("filter", "")
    if out is not None:
        make_folder(out)  # before any work
    import mlflow

    from colazero.store import claims, client, record
    from colazero.store.open import connect, refuse_missing

    refuse_missing(mlflow.get_tracking_uri())
    connect()
    of = next((chosen[name] for name in which), condition or "newest suite")
    with record.run(client.run_name("analysis", of), "analysis") as run_id:
        tell = partial(claims.log_results, run_id)
        homes = client.homes(client.experiment_of(run_id))
        if "experiment" in chosen or (condition and not which):
            found = [mlflow.get_experiment(home).name for home in homes]
            if which:
                found = [chosen["experiment"]]
            cells = load_experiment(found, condition)
            origin = f"Experiment {', '.join(found)}{f', {condition}' if condition else ''}"
            course = course_of(cells)
            table = report(cells, options, origin, course=course, into=run_id, out=out, tell=tell)
        else:
            suites = chosen.get("suites") or chosen.get("suite") or latest_suite(homes)
            record.log_params({"suite" if "," not in suites else "suites": suites})
            ids = [one.strip() for one in suites.split(",")]
            table = analyze(ids, options, filter=condition, into=run_id, out=out, tell=tell)
        record.describe(table)
    print(f"{table}\n\n{client.where(run_id, analyzed=True)}")
    return 0


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{name}={value!r}: must be a number, without a sign such as %.") from None


def _names(text: str) -> dict[str, str]:
    pairs = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    for method, _, name in pairs:
        if not method or not name:
            raise UserError(f"names={text!r}: must be METHOD=NAME, several comma separated.")
    return {method: name for method, _, name in pairs}


if __name__ == "__main__":
    main(__doc__, PARAMETERS, run)
