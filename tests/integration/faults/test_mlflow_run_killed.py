"""A suite whose `mlflow run` is killed ends, with its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import soak

from colazero.store.open import prepare


def test_killing_mlflow_run_alone_ends_the_suite_and_its_workers(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=2)
    settings = [word.removeprefix("--") for word in arguments if word.startswith("--")]
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "run", str(soak.ROOT), "-e", "suite", "--env-manager", "local"]
    command += ["--experiment-name", "colazero"]
    command += [word for setting in settings for word in ("-P", setting)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = soak.store_of(tmp_path)
    # Two processes that create a schema at once, `mlflow run` and this one, destroy it.
    prepare(soak.store_of(tmp_path))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    soak.wait_until(lambda: soak.any_run(tmp_path, status="RUNNING", kind="cell"))
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert sum("colazero.suite.worker" in " ".join(p.cmdline()) for p in family) == 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    _, left = psutil.wait_procs(family, timeout=240)
    assert left == []
    runs = soak.all_runs(tmp_path)
    assert "RUNNING" not in {run.info.status for run in runs}
    suite = next(run for run in runs if run.data.tags.get("colazero.kind") == "suite")
    assert suite.info.status == "KILLED"
    told = soak.status(tmp_path, suite.info.run_id)
    assert told.returncode == 1
    assert "lost" in told.stdout
    assert "interrupted" in told.stdout
