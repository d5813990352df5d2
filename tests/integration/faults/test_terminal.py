"""Ctrl-C and a closed terminal leave no run open."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak

from colazero.store.open import prepare


@pytest.mark.parametrize("how", ["Ctrl-C pressed", "terminal closed"])
def test_mlflow_run_in_a_terminal_leaves_nothing_open(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, how: str
) -> None:
    """At the start and when cells are at work.

    Earlier, before the program that `mlflow run` starts has begun, its run is MLflow's alone: a
    Ctrl-C there leaves it RUNNING, for the next suite to end.
    """
    arguments = soak.command(str(tiny_llama), str(corpus_file), workers=2)
    prepare(soak.store_of(tmp_path))
    for kind in ("suite", "cell"):
        terminal = soak.start_in_terminal(arguments, tmp_path)
        soak.wait_until(lambda kind=kind: soak.any_run(tmp_path, "RUNNING", kind))
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
        assert "the same command goes on" in soak.log_of(tmp_path)
