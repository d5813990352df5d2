"""How long reading a suite takes: `python -m benchmarks.analysis --cells=2000`.

Writes a suite of that many cells, with the parameters, metrics and tags of a real one, into a new
sqlite store, and prints the seconds that `load_suite` and `summarize` take. The claim: 2,000 runs
are read in under 10 s.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from analysis.reading.runs import load_suite
from analysis.summary import Options, summarize

METHODS = ("gptq_default", "random", "cola_zero")
PARAMETERS = 19  # that a cell logs
METRICS = 14
TAGS = 16


def write_suite(client: MlflowClient, cells: int) -> str:
    """Log a suite with about `cells` cells, and return its run id."""
    seeds = [str(seed) for seed in range(cells // len(METHODS))]
    experiment = client.create_experiment("benchmark")
    suite = client.create_run(experiment, tags={"colazero.kind": "suite"}).info.run_id
    grid = {"models": "m", "methods": ",".join(METHODS)}
    client.log_batch(suite, params=[Param(k, v) for k, v in grid.items()])
    client.log_batch(suite, params=[Param("seeds", ",".join(seeds))])
    _write(client, experiment, suite, {"model": "m", "method": "unquantized"}, "baseline", 20.0)
    for method in METHODS:
        for seed in seeds:
            cell = {"model": "m", "method": method, "seed": seed, "seq_len": "512"}
            _write(client, experiment, suite, cell, "cell", 23 + int(seed) / 1000)
    return suite


def _write(
    client: MlflowClient,
    experiment: str,
    suite: str,
    params: dict[str, str],
    kind: str,
    perplexity: float,
) -> None:
    tags = {"mlflow.parentRunId": suite, "colazero.kind": kind}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    now = int(time.time() * 1000)
    metrics = {"perplexity": perplexity, "selection_time_sec": 1.0, "quant_time_sec": 20.0}
    metrics |= {f"selection.measure_{i}": float(i) for i in range(METRICS - len(metrics))}
    params = params | {f"parameter_{i}": str(i) for i in range(PARAMETERS - len(params))}
    more = {f"tag_{i}": str(i) for i in range(TAGS - len(tags))}
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in metrics.items()],
        params=[Param(name, value) for name, value in params.items()],
        tags=[RunTag(name, value) for name, value in more.items()],
    )
    client.set_terminated(run_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    cells = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        suite = write_suite(MlflowClient(), cells)
        begin = time.perf_counter()
        table = load_suite(suite)
        read = time.perf_counter() - begin
        summarize(table, Options())
        summed = time.perf_counter() - begin - read
    print(f"{len(table)} runs: read in {read:.2f} s, summed up in {summed:.2f} s")


if __name__ == "__main__":
    main()
