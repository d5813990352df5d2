"""Suites of another kind than that of test_suite.py: a sweep, other methods, cells that fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_suite import artifact, children, latest_suite

from analysis.reading import load_suite
from colazero.suite import cells as status
from entrypoints import suite as entry


def test_a_sweep_is_analysed_within_each_setting(store: Path, grid: dict[str, str]) -> None:
    given = grid | {"quant_bits": "3,4", "methods": "random,gptq_default", "seeds": "42"}
    assert entry.run(given | {"replicates": "2"}) == 0
    suite = latest_suite()
    runs = children(suite)
    model = next(name for name in runs if name.startswith("unquantized")).split("·")[1]
    cells = {
        f"42·{method}{again}·quant_bits{bits}·{model}"
        for method in ("random", "gptq_default")
        for again in ("", "·replicate2")
        for bits in (3, 4)
    }
    assert set(runs) == cells | {f"unquantized·{model}"}
    assert json.loads(suite.data.tags["colazero.sweep"]) == {"quant_bits": [3, 4]}
    for bits in (3, 4):
        run = runs[f"42·random·quant_bits{bits}·{model}"]
        assert run.data.params["quant_bits"] == str(bits)
    table = load_suite(suite.info.run_id)
    assert table.groupby("quant_bits")["model"].nunique().to_dict() == {3: 1, 4: 1}
    text = artifact(suite, "analysis/table.md").read_text()
    assert re.search(r"\| quant_bits \| method ", text)
    lines = [line.state for line in status.states(suite.info.run_id)]
    assert lines == ["done"] * 9


def test_without_the_usual_baseline_the_first_method_is_it_and_the_suite_says_so(
    store: Path, grid: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "colazero")
    assert entry.run(grid | {"methods": "stratified,random", "seeds": "42"}) == 0
    said = " ".join(caplog.messages)
    assert "baseline: stratified, the first method named, because gptq_default is not" in said
    assert "no method is the primary one" in said
    suite = latest_suite()
    assert suite.data.params["baseline"] == "stratified"
    results = artifact(suite, "analysis/results.md").read_text()
    assert "Random vs Stratified: " in results


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(
    store: Path,
    grid: dict[str, str],
    in_workers: Callable[[str], None],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    in_workers("""
        from colazero import pipeline

        real = pipeline.quantize

        def broken(config, *rest):
            if config.seed == 53:
                raise MemoryError("no room")
            return real(config, *rest)

        pipeline.quantize = broken
    """)
    measured = {"system_metrics": "true"}
    assert entry.run({**grid, "methods": "random", "seeds": "52,53", **measured}) == 1
    suite = latest_suite()
    runs = children(suite)
    failed = [run for run in runs.values() if run.info.status == "FAILED"]
    assert [run.data.params["seed"] for run in failed] == ["53"]
    assert "MemoryError: no room" in failed[0].data.tags["colazero.error"]
    assert sum(run.info.status == "FINISHED" for run in runs.values()) == 2
    assert re.search(r"53·\S+: MemoryError: no room", capsys.readouterr().err)
    counts = {"cells_done": 1, "cells_failed": 1, "cells_left": 0}
    assert counts.items() <= json.loads(suite.data.tags["colazero.progress"]).items()
    for run in runs.values():
        if run.data.tags["colazero.kind"] == "cell":
            assert "system/cpu_utilization_percentage" in run.data.metrics


def test_a_perplexity_that_is_no_number_fails_the_cell(
    store: Path, grid: dict[str, str], in_workers: Callable[[str], None]
) -> None:
    in_workers("""
        from colazero.evaluation import perplexity

        take = perplexity.Likelihoods.take

        def no_number(self, window, *given):
            found = take(self, window, *given)
            self._sums[window] = float("nan")
            return found

        perplexity.Likelihoods.take = no_number
    """)
    assert entry.run({**grid, "methods": "random", "seeds": "54"}) == 1
    failed = [
        r for r in children(latest_suite()).values() if r.data.tags["colazero.kind"] == "cell"
    ]
    assert failed[0].info.status == "FAILED"
    assert "not finite" in failed[0].data.tags["colazero.error"]


def test_a_damaged_model_is_refused_in_plain_words(
    store: Path, grid: dict[str, str], tiny_llama: Path, tmp_path: Path, caplog: Any
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_llama, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert entry.run({**grid, "models": str(damaged)}) == 1
    failed = children(latest_suite()).values()
    assert len(failed) == 6
    assert {run.info.status for run in failed} == {"FAILED"}
    assert all("is damaged" in run.data.tags["colazero.error"] for run in failed)
    assert "damaged" in caplog.text
    assert "Traceback" not in caplog.text
