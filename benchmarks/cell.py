"""Where a cell's time goes: `python benchmarks/cell.py [--json] [any parameter of single]`.

One cell of preset demo (unless said otherwise) is done by the same functions that `single` calls,
in a store of its own, after a warm-up. Prints seconds, shares and the most memory that the process
had (resident, mapped files among it); with --json, one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks._harness import options_of, peak_resident, read, told
from colazero.settings import RunConfig
from colazero.suite_settings import parse

STAGES = {
    "select": "selection_time_sec",
    "quantize": "quant_time_sec",
    "save": "save_time_sec",
    "evaluate": "eval_time_sec",
    "verify": "verify_time_sec",
}
"""Stage → the metric of a cell that has its seconds."""


@contextmanager
def clocked(owner: Any, names: list[str], seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent in the functions `names` of `owner` to `seconds[stage]`, meanwhile."""
    real: dict[str, Callable[..., Any]] = {name: getattr(owner, name) for name in names}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[stage] += time.perf_counter() - begin

        return call

    for name, function in real.items():
        setattr(owner, name, timed(function))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(owner, name, function)


def measure(config: RunConfig) -> dict[str, float]:
    """Run one cell and return seconds by stage, with `other` and `total`."""
    from colazero import cell, models, pipeline
    from colazero.store import record
    from colazero.store.open import connect

    model = models.fetch(config.model)
    config = pipeline.resolve(config, model)
    pipeline.check_data(config, model)
    seconds = dict.fromkeys((*STAGES, "tracking"), 0.0)
    logging = ["log_config", "log_files", "log_metrics", "log_dataset", "log_quantization"]
    logging += ["log_checkpoint", "log_evaluation", "log_json", "set_tags"]
    connect()
    begin = time.perf_counter()
    with (
        clocked(record, logging, seconds, "tracking"),
        record.run("benchmark", "cell"),
    ):
        outcome = cell.run_cell(config, model, lambda _: lambda *_: None, reuse=False)
    total = time.perf_counter() - begin
    seconds |= {stage: outcome.metrics[metric] for stage, metric in STAGES.items()}
    return seconds | {"other": total - sum(seconds.values()), "total": total}


def main() -> None:
    options, given = read(options_of(__doc__), RunConfig)
    config = parse(RunConfig, {"preset": "demo"} | given)
    with tempfile.TemporaryDirectory() as folder, told():
        os.chdir(folder)
        found = measure(config)
    peak = peak_resident()
    if options.json:
        seconds = {f"{name}_sec": round(value, 3) for name, value in found.items()}
        print(json.dumps(seconds | {"peak_memory_gib": round(peak, 3)}))
        return
    for name, value in found.items():
        print(f"{name:10} {value:8.2f} s {100 * value / found['total']:6.1f} %")
    print(f"peak       {peak:8.2f} GiB")


if __name__ == "__main__":
    main()
