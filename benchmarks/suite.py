"""Where a suite's time goes: `python benchmarks/suite.py [--json] [any parameter of suite]`.

Runs the suite, of preset demo unless said otherwise, in a store of its own, and prints its
wall-clock time, the worker time spent in selection, quantization and evaluation (of which
verification is that of the saved checkpoint), and the share of all worker time (wall-clock ×
workers) that went elsewhere: starting up, waiting, recording. Give `--workers=1` or
`--executor=ray` to compare wall-clock times. Fetching and converting a model and making a store,
which happen once, are done before the clock starts; warm-up is GPTQModel's, once a worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._harness import options_of, read, told
from colazero import models
from colazero.store.client import metrics_of
from colazero.store.open import prepare
from colazero.suite_settings import SuiteConfig, parse

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "selection": "selection_time_sec",
    "warm-up": "warm_up_time_sec",
    "quantization": "quant_time_sec",
    "saving": "save_time_sec",
    "evaluation": "eval_time_sec",
    "verification": "verify_time_sec",
}


def measure(arguments: list[str]) -> dict[str, float]:
    """Run a suite with these arguments; return seconds by stage, and the share of the rest."""
    with tempfile.TemporaryDirectory() as folder:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        store = f"sqlite:///{folder}/mlflow.db"
        environment = clean | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "entrypoints.suite", *arguments]
        given = dict(word.removeprefix("--").split("=", 1) for word in arguments)
        for name in parse(SuiteConfig, given).models:
            models.fetch(name)
        prepare(store)
        begin = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        wall = time.perf_counter() - begin
        runs = MlflowClient(store).search_runs(["1"])
    suite = next(run for run in runs if run.data.tags["colazero.kind"] == "suite")
    own = [run for run in runs if run.data.tags["colazero.kind"] != "suite"]
    own = [run for run in own if "colazero.source_run" not in run.data.tags]
    found = {
        stage: sum(metrics_of(run).get(metric, 0.0) for run in own)
        for stage, metric in STAGES.items()
    }
    # Counted by every seed that used them, but spent once: by one of them, or in the picture of a
    # cell before them.
    seconds = [
        (run.data.params["method"], metrics_of(run)["selection.features_reused_sec"])
        for run in own
        if "selection.features_reused_sec" in metrics_of(run)
    ]
    found["selection"] -= sum(reused for _, reused in seconds)
    clustered = [reused for method, reused in seconds if method == "cola_zero"]
    found["selection"] += min(clustered, default=0.0)
    params = suite.data.params
    workers = int(params.get("resolved.workers", params["workers"]))
    elsewhere = workers * wall - sum(found.values())
    return found | {
        "elsewhere": elsewhere,
        "wall_clock": wall,
        "workers": workers,
        "elsewhere_share": elsewhere / (workers * wall),
    }


def main() -> None:
    options, given = read(options_of(__doc__), SuiteConfig)
    with told():
        found = measure([f"--{name}={value}" for name, value in given.items()])
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return
    for name in (*STAGES, "elsewhere", "wall_clock"):
        print(f"{name:12} {found[name]:8.1f} s")
    print(f"elsewhere: {100 * found['elsewhere_share']:.1f} % of {found['workers']:.0f} worker(s)")


if __name__ == "__main__":
    main()
