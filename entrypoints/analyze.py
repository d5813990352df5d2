"""Statistics, figures and a report of a suite: `python -m entrypoints.analyze --suite=RUN_ID`."""

from __future__ import annotations

from colazero.errors import UserError
from entrypoints._command_line import main

PARAMETERS = {
    "suite": "run id of a suite; auto: the newest one of the experiment",
    "suites": "run ids of several suites, comma separated: their cells side by side, each setting "
    "within itself",
    "experiment": "analyze all cells of this experiment instead of one suite",
    "filter": "which cells are taken, in MLflow's search syntax (params.quant_bits = '4'); alone: "
    "of all suites",
    "primary": "the method whose comparisons are the primary family; auto: cola_zero",
    "baseline": "the method that stands second in its comparisons; auto: gptq_default",
    "metric": "perplexity, kl_divergence, top1_agreement, NAME.CORPUS or a downstream one "
    "(arc_easy.acc); auto: perplexity",
    "direction": "lower or higher is better, for a metric that is not known; auto: what is known",
    "margin": "largest difference that does not matter, % of the second method's; auto: 1",
    "alpha": "level of the tests; auto: 0.05",
    "out": "local folder that gets the files too; auto: none",
}


def run(given: dict[str, str]) -> int:
    from analysis.reading.runs import latest_suite, load_experiment
    from analysis.report.write import analyze, report
    from analysis.summary import Options

    chosen = {name: value for name, value in given.items() if value != "auto"}
    which = [name for name in ("suite", "suites", "experiment") if name in chosen]
    if len(which) > 1:
        raise UserError(f"{' and '.join(which)} exclude each other: name one of them.")
    default = Options()
    options = Options(
        baseline=chosen.get("baseline"),
        primary=chosen.get("primary"),
        direction=chosen.get("direction"),
        metric=chosen.get("metric", default.metric),
        margin=_number("margin", chosen.get("margin", default.margin)),
        alpha=_number("alpha", chosen.get("alpha", default.alpha)),
    )
    out, condition = chosen.get("out"), chosen.get("filter", "")
    import mlflow

    from colazero import tracking
    from colazero.tracking import runs, searching, store

    store.refuse_missing(mlflow.get_tracking_uri())
    tracking.connect()
    with tracking.run("analysis", "analysis") as run_id:
        homes = searching.homes(runs.experiment_of(run_id))
        if "experiment" in chosen or (condition and not which):
            names = (
                [chosen["experiment"]]
                if which
                else [mlflow.get_experiment(home).name for home in homes]
            )
            cells = load_experiment(names, condition)
            origin = f"Experiment {', '.join(names)}{f', {condition}' if condition else ''}"
            table = report(cells, options, origin, into=run_id, out=out)
        else:
            suites = chosen.get("suites") or chosen.get("suite") or latest_suite(homes)
            tracking.log_params({"suite" if "," not in suites else "suites": suites})
            ids = [one.strip() for one in suites.split(",")]
            table = analyze(ids, options, filter=condition, into=run_id, out=out)
        tracking.describe(table)
    print(f"{table}\n\nreport: runs:/{run_id}/analysis/report.html")
    return 0


def _number(name: str, value: str | float) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{name}={value!r}: must be a number.") from None


if __name__ == "__main__":
    main(__doc__, PARAMETERS, run)
