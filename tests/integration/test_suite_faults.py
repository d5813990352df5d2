"""What can happen to a suite, made to happen: nothing lost, nothing doubled, nothing open."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from mlflow.entities import Run

from colazero.tracking.store import prepare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    """The soak script, whose ways to start, kill and check a suite are used here."""
    spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arguments(soak: ModuleType, tiny_llama: Path, corpus_file: Path) -> list[str]:
    return list(soak.command(str(tiny_llama), str(corpus_file), workers=2))


def test_killed_nine_times_at_random_suites_come_through(
    soak: ModuleType, tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=1)
    begin = time.monotonic()
    assert soak.start(arguments, tmp_path).wait() == 0, log_of(tmp_path)
    seconds = time.monotonic() - begin
    wanted = soak.digests(soak.all_runs(tmp_path))
    result = soak.soak(list(soak.SIGNALS), 9, arguments, 0.7 * seconds, wanted, random.Random(1))
    assert result["kills"] == dict.fromkeys(soak.SIGNALS, 3)
    assert result["wrong"] == []


def test_two_suites_at_once_on_a_new_store_do_everything_once(
    soak: ModuleType, tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=1)
    both = [soak.start(arguments, tmp_path) for _ in range(2)]
    assert [suite.wait() for suite in both] == [0, 0], log_of(tmp_path)
    runs = soak.all_runs(tmp_path)
    newest, other = (r for r in runs if r.data.tags.get("colazero.kind") == "suite")
    newer = newest.info.run_id
    older = [r for r in runs if newer not in (r.info.run_id, r.data.tags.get("mlflow.parentRunId"))]
    assert soak.faults(runs, soak.digests(older)) == []
    finished = Counter(
        (run.data.tags["mlflow.parentRunId"], run.info.run_name)
        for run in runs
        if "mlflow.parentRunId" in run.data.tags and run.info.status == "FINISHED"
    )
    assert len(finished) == 2 * (len(soak.METHODS) * len(soak.SEEDS) + 1)
    assert set(finished.values()) == {1}
    assert {parent for parent, _ in finished} == {newest.info.run_id, other.info.run_id}


def test_killing_mlflow_run_alone_ends_the_suite_and_its_workers(
    soak: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    settings = [word.removeprefix("--") for word in arguments if word.startswith("--")]
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "run", str(ROOT), "-e", "suite", "--env-manager", "local"]
    command += ["--experiment-name", "colazero"]
    command += [word for setting in settings for word in ("-P", setting)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = store_of(tmp_path)
    prepare(store_of(tmp_path))  # two that make a schema at once, `mlflow run` and we, destroy it
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    wait_until(lambda: any_run(soak, tmp_path, status="RUNNING", kind="cell"))
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert sum("colazero.suite.execution.worker" in " ".join(p.cmdline()) for p in family) == 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    _, left = psutil.wait_procs(family, timeout=240)
    assert left == []
    runs = soak.all_runs(tmp_path)
    assert "RUNNING" not in {run.info.status for run in runs}
    suite = next(run for run in runs if run.data.tags.get("colazero.kind") == "suite")
    assert suite.info.status == "KILLED"
    told = status(tmp_path, suite.info.run_id)
    assert told.returncode == 1
    assert "lost" in told.stdout
    assert "interrupted" in told.stdout


@pytest.mark.parametrize("how", ["Ctrl-C pressed", "terminal closed"])
def test_mlflow_run_in_a_terminal_leaves_nothing_open(
    soak: ModuleType, arguments: list[str], tmp_path: Path, how: str
) -> None:
    """At the start and when cells are at work.

    Earlier, before the program that `mlflow run` starts has begun, its run is MLflow's alone: a
    Ctrl-C there leaves it RUNNING, for the next suite to end.
    """
    prepare(store_of(tmp_path))
    for kind in ("suite", "cell"):
        terminal = soak.start_in_terminal(arguments, tmp_path)
        wait_until(lambda kind=kind: any_run(soak, tmp_path, "RUNNING", kind))
        soak.kill(terminal, how)
        runs = soak.all_runs(tmp_path)
        assert {run.info.status for run in runs} <= {"KILLED", "FAILED", "FINISHED"}
    cut_short = [
        run.data.tags["colazero.error"]
        for run in runs
        if run.info.status == "KILLED" and run.data.tags.get("colazero.kind") == "cell"
    ]
    # None where the cell ended, and the next had not begun, in the moment of the signal.
    assert set(cut_short) <= {"the suite was interrupted"}
    if how == "Ctrl-C pressed":
        assert "the same command goes on" in log_of(tmp_path)


def test_status_tells_from_another_shell_and_ends_what_is_dead(
    soak: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    suite = soak.start(arguments, tmp_path)
    wait_until(lambda: any_run(soak, tmp_path, status="RUNNING", kind="cell"))
    run_id = any_run(soak, tmp_path, status="RUNNING", kind="suite")[0].info.run_id
    told = status(tmp_path, run_id).stdout
    assert "running" in told.splitlines()[0]
    assert "missing" in told.splitlines()[0]
    suite.kill()
    suite.wait()
    told = status(tmp_path, run_id).stdout
    assert "running" not in told
    assert "lost" in told
    assert not any_run(soak, tmp_path, status="RUNNING")


def test_lost_hung_and_failing_cells_cost_only_themselves(
    soak: ModuleType, arguments: list[str], tmp_path: Path, in_workers: Callable[[str], None]
) -> None:
    in_workers(f"""
        import os, resource, signal, time
        from pathlib import Path
        from colazero import pipeline

        real = pipeline.quantize

        def disturbed(config, *rest):
            once = Path({str(tmp_path)!r}) / "killed_once"
            if config.seed == 60 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is out
            if config.seed == 61:
                os.kill(os.getpid(), signal.SIGKILL)
            if config.seed == 62:
                limit = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (1, limit[1]))
                try:
                    bytearray(10**10)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, limit)
            if config.seed == 63:
                time.sleep(10**6)
            if config.seed == 64:
                limit = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
                try:
                    return real(config, *rest)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            return real(config, *rest)

        pipeline.quantize = disturbed
    """)
    given = [word for word in arguments if not word.startswith(("--seeds", "--methods"))]
    given += ["--methods=random", "--seeds=60-65", "--cell_time_limit=3"]
    suite = soak.start(given, tmp_path, os.environ["PYTHONPATH"])
    assert suite.wait() == 1
    names = [(run.info.run_name.partition("seed")[2], run) for run in soak.all_runs(tmp_path)]
    runs = {seed.partition("·")[0]: run for seed, run in names}
    said = {seed: run.data.tags.get("colazero.error", "") for seed, run in runs.items()}
    statuses = {seed: run.info.status for seed, run in runs.items() if seed}
    assert statuses == {
        "60": "FINISHED",
        "61": "FAILED",
        "62": "FAILED",
        "63": "FAILED",
        "64": "FAILED",
        "65": "FINISHED",
    }, said
    assert "out of memory?" in said["61"]
    assert "MemoryError" in said["62"]
    assert "cell_time_limit=3" in said["63"]
    assert "File too large" in said["64"]
    assert said["60"] == said["65"] == ""
    shutil.rmtree(tmp_path / "in_workers")
    assert soak.start([*given[:-1], "--cell_time_limit=60"], tmp_path).wait() == 0
    finished = [run.info.run_name for run in any_run(soak, tmp_path, "FINISHED", "cell")]
    own = Counter(
        run.info.run_name
        for run in any_run(soak, tmp_path, "FINISHED", "cell")
        if "colazero.source_run" not in run.data.tags
    )
    assert len(finished) == 2 + 6
    assert set(own.values()) == {1}
    assert len(own) == 6


def log_of(folder: Path) -> str:
    return (folder / "suite.log").read_text()[-3000:]


def store_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)


def any_run(soak: ModuleType, folder: Path, status: str, kind: str = "") -> list[Run]:
    """Return the runs of a status, and of a kind if one is named."""
    return [
        run
        for run in soak.all_runs(folder)
        if run.info.status == status and kind in ("", run.data.tags.get("colazero.kind"))
    ]


def status(folder: Path, run_id: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment |= {"MLFLOW_TRACKING_URI": store_of(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "entrypoints.suite", "--status", run_id]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
