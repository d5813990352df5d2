"""Kill suites at random moments and hold what comes of them against an undisturbed one.

`python benchmarks/soak.py MODEL CORPUS [--kills=50] [--workers=2] [--mlflow_run] [--json]`

MODEL is a directory with a tiny model, CORPUS a file. A suite is started and killed after a random
time, by SIGKILL, SIGTERM and Ctrl-C in turn, again and again on one store, until it comes through;
then its runs are checked and the next begins on an empty store, until there were --kills of each.
With --mlflow_run the suite is started by `mlflow run` in a terminal, in which Ctrl-C is pressed and
which is closed, in turn. Prints what was done, what was lost and what was doubled; exit code 1 if
anything was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks._terminal import Terminal  # noqa: E402
from colazero.tracking.store import prepare  # noqa: E402

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
IN_A_TERMINAL = ("Ctrl-C pressed", "terminal closed")
METHODS = ("gptq_default", "random", "cola_zero")
SEEDS = (42, 43)


def command(model: str, corpus: str, workers: int) -> list[str]:
    """Return the command of a suite of six cells, four windows of 64 tokens each."""
    settings = {
        "preset": "demo",
        "models": model,
        "methods": ",".join(METHODS),
        "seeds": ",".join(map(str, SEEDS)),
        "corpus": f"file:{corpus}",
        "eval_corpora": f"file:{corpus}",
        "n_calibration_samples": 4,
        "seq_len": 64,
        "eval_windows": 4,
        "device": "cpu",
        "workers": workers,
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "entrypoints.suite", *words]


def environment(folder: Path, path: str = str(ROOT)) -> dict[str, str]:
    """Return the environment of a suite with its store and its cache in `folder`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": path}
    programs = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return clean | store | programs | {"COLAZERO_CACHE": str(folder / "cache")}


def start_in_terminal(arguments: list[str], folder: Path) -> Terminal:
    """Start the suite of these arguments by `mlflow run`, in a terminal of its own."""
    settings = [word.removeprefix("--") for word in arguments if word.startswith("--")]
    command = ["mlflow", "run", str(ROOT), "-e", "suite", "--env-manager", "local"]
    command += [word for setting in settings for word in ("-P", setting)]
    return Terminal(command, folder, environment(folder), folder / "suite.log")


def kill(process: subprocess.Popen[bytes] | Terminal, how: str) -> None:
    """Send a signal, press a key or close the terminal; wait until all that ran is gone."""
    if isinstance(process, Terminal):
        family = process.family()
        process.press_ctrl_c() if how == "Ctrl-C pressed" else process.close()
        _, left = psutil.wait_procs(family, timeout=120)
        assert not left, f"still there after {how}: {left}"
    else:
        # A terminal sends Ctrl-C to all of the group.
        (os.killpg if how == "Ctrl-C" else os.kill)(process.pid, SIGNALS[how])
        process.wait(timeout=120)


def start(arguments: list[str], folder: Path, path: str = str(ROOT)) -> subprocess.Popen[bytes]:
    """Start a suite in `folder`, with its store there, as leader of a process group."""
    log = (folder / "suite.log").open("ab")
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(folder, path),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def stages(runs: list[Run]) -> str:
    """Say how far the suite was when it was killed: cells finished and begun."""
    count = Counter(run.info.status for run in runs if run.data.tags.get("colazero.kind") == "cell")
    return ", ".join(f"{n} {status.lower()}" for status, n in sorted(count.items())) or "no cell"


def all_runs(folder: Path) -> list[Run]:
    """Return all runs of the store; none while it is not made yet."""
    if not (folder / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    try:
        experiments = [e.experiment_id for e in client.search_experiments()]
    except MlflowException:
        return []  # `mlflow run` is making the schema just now
    return list(client.search_runs(experiments))


def digests(runs: list[Run]) -> dict[str, tuple[str, str, float]]:
    """Return what each finished cell of the newest suite came to."""
    suite = next(run for run in runs if run.data.tags.get("colazero.kind") == "suite")
    return {
        run.info.run_name: (
            run.data.tags["colazero.calibration_digest"],
            run.data.tags["colazero.checkpoint_digest"],
            run.data.metrics["perplexity"],
        )
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == suite.info.run_id
        and run.data.tags["colazero.kind"] == "cell"
        and run.info.status == "FINISHED"
    }


def faults(runs: list[Run], wanted: dict[str, tuple[str, str, float]]) -> list[str]:
    """Return what is wrong with a store in which the last suite came through."""
    wrong = []
    suite = next(run for run in runs if run.data.tags.get("colazero.kind") == "suite")
    mine = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == suite.info.run_id]
    names = Counter(run.info.run_name for run in mine if run.info.status == "FINISHED")
    cells = len(METHODS) * len(SEEDS)
    if len(names) != cells + 1 or set(names.values()) != {1}:
        wrong.append(f"cells of the last suite: {dict(names)}")
    if digests(runs) != wanted:
        wrong.append("digests differ from the undisturbed suite's")
    wrong += _still_open(runs, "at the end")
    own = Counter(
        run.data.tags.get("colazero.work_key")
        for run in runs
        if run.info.status == "FINISHED"
        and run.data.tags.get("colazero.kind") == "cell"
        and "colazero.source_run" not in run.data.tags
    )
    if set(own.values()) != {1}:
        wrong.append(f"work done twice: {dict(own)}")
    return wrong


OPEN = ("RUNNING", "SCHEDULED")


def _still_open(runs: list[Run], when: str) -> list[str]:
    names = [run.info.run_name for run in runs if run.info.status in OPEN]
    return [f"still open {when}: {names}"] if names else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rng", type=int, default=0)
    parser.add_argument("--spread", type=float, default=0.95, help="latest kill, in whole suites")
    parser.add_argument("--mlflow_run", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    # A shell that starts this in the background has it ignored, here and in what is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(given.rng)
    arguments = command(
        str(Path(given.model).resolve()), str(Path(given.corpus).resolve()), given.workers
    )
    with tempfile.TemporaryDirectory() as name:
        begin = time.monotonic()
        if code := start(arguments, Path(name)).wait():
            print((Path(name) / "suite.log").read_text()[-3000:])
            return code
        whole = time.monotonic() - begin
        wanted = digests(all_runs(Path(name)))
    print(f"undisturbed: {len(wanted)} cells in {whole:.0f} s", flush=True)
    latest = given.spread * whole
    ways = list(IN_A_TERMINAL if given.mlflow_run else SIGNALS)
    result = soak(ways, len(ways) * given.kills, arguments, latest, wanted, rng)
    print(json.dumps(result) if given.json else result)
    return int(bool(result["wrong"]))


def soak(
    ways: list[str],
    kills: int,
    arguments: list[str],
    latest: float,
    wanted: dict[str, tuple[str, str, float]],
    rng: random.Random,
) -> dict[str, Any]:
    """Kill `kills` times, in each way in turn, each within `latest` seconds of a start.

    Returns how often each was sent, how many suites came through, and all that was wrong.
    """
    sent: Counter[str] = Counter()
    suites = 0
    begin = start_in_terminal if ways[0] in IN_A_TERMINAL else start
    wrong: list[str] = []
    while sent.total() < kills:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if begin is start_in_terminal:  # `mlflow run` makes no schema safely, if killed
                prepare(f"sqlite:///{folder}/mlflow.db")
            left: set[str] = set()
            process = begin(arguments, folder)
            while sent.total() < kills and not _ends_within(process, rng.uniform(0, latest)):
                how = ways[sent.total() % len(ways)]
                state = stages(all_runs(folder))
                kill(process, how)
                sent[how] += 1
                print(f"{how} {sent[how]}: {state}", flush=True)
                runs = all_runs(folder)
                if how == "SIGKILL":  # leaves runs open, until the next suite is under way
                    left = {run.info.run_id for run in runs if run.info.status in OPEN}
                else:
                    mine = [run for run in runs if run.info.run_id not in left]
                    wrong += _still_open(mine, f"after {how}")
                process = begin(arguments, folder)
            code = process.wait()
            suites += 1
            found = faults(all_runs(folder), wanted)
            if code:
                found.append(f"exit code {code}: {(folder / 'suite.log').read_text()[-2000:]}")
            wrong += found
            print(f"came through, {found or 'nothing lost, nothing doubled'}", flush=True)
    return {"kills": dict(sent), "suites": suites, "wrong": wrong}


def _ends_within(process: subprocess.Popen[bytes] | Terminal, seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
