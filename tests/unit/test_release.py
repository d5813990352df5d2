"""What a cell needed is gone when it is over: models, streams, packed tensors, whatever it did."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from colazero import devices, models, pipeline
from colazero.blocks import weights
from colazero.blocks.sequence import Sequence
from colazero.evaluation.through_blocks import Evaluator, Reference
from colazero.quantizers import gptqmodel, onepass
from colazero.settings import RunConfig
from colazero.store import claims, record
from colazero.suite.worker import Event, Job, Sender, run_job


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to everything large that is made from here on."""
    found: list[weakref.ref[Any]] = []
    for kind in (Sequence, Evaluator, Reference, onepass.Solver, onepass.Input):
        begun = kind.__init__

        def remembered(self: Any, *args: Any, _begun: Any = begun, **kwargs: Any) -> None:
            found.append(weakref.ref(self))
            _begun(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", remembered)
    return found


def job_of(model: Path, corpus: Path, seed: int, suite: str) -> Job:
    name = f"file:{corpus}"
    given = {"model": str(model), "corpus": name, "eval_corpora": name, "method": "random"}
    shape = {"n_calibration_samples": 4, "seq_len": 64, "eval_windows": 4, "group_size": 32}
    more = {"device": "cpu", "save_model": "none", "act_group_aware": True, "seed": seed}
    config = RunConfig.model_validate(given | shape | more)
    return Job(
        *(f"cell{seed}", "cell", config, models.fetch(str(model))),
        run_id=claims.create_child(suite, f"cell{seed}", "cell"),
    )


def test_nothing_of_four_cells_stays_though_one_of_them_fails(
    made: list[weakref.ref[Any]],
    shared_store: MlflowClient,
    tiny_llama: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify = pipeline.verify

    def third_fails(config: RunConfig, *args: Any) -> float:
        if config.seed == 3:
            raise RuntimeError("the third fails")
        return verify(config, *args)

    monkeypatch.setattr(pipeline, "verify", third_fails)
    ends: list[Event] = []
    alive: list[int] = []

    def said(event: Event) -> None:
        if event.last:
            ends.append(event)
        if event.kind in ("computed", "failed"):  # another job may be started from here on
            alive.append(sum(ref() is not None for ref in made))

    with record.run("suite", "suite") as suite:
        sender = Sender()
        for seed in (1, 2, 3, 4):
            run_job(job_of(tiny_llama, corpus_file, seed, suite), said, sender)
        sender.begin(lambda: None)  # after the last is sent
    assert [event.kind for event in ends] == ["done", "done", "failed", "done"]
    assert len(made) > 4 * 4
    assert alive == [0, 0, 0, 0]


def test_a_cell_whose_checkpoint_cannot_be_written_keeps_its_numbers(
    tiny_llama: Path, corpus_file: Path, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights, "write_tensors", full)
    ends: list[Event] = []
    with record.run("suite", "suite") as suite:
        job = job_of(tiny_llama, corpus_file, 7, suite)
        run_job(job, ends.append, Sender())
    assert ends[-1].kind == "failed"
    assert "cannot be written (No space left on device)" in ends[-1].data["reason"]
    run = shared_store.get_run(job.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["perplexity"] > 1
    assert "No space left" in run.data.tags["colazero.error"]


def test_gptqmodel_keeps_no_frames_of_a_model(tiny_llama: Path, tmp_path: Path) -> None:
    from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION as stop

    class Large:
        pass

    def forward() -> weakref.ref[Large]:
        large = Large()
        with gptqmodel.contained():
            try:
                raise stop
            except Exception:
                return weakref.ref(large)

    held = forward()
    gc.collect()
    assert held() is None


def test_what_gptqmodel_moved_to_main_memory_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    line = "Quantization: Module `down_proj` -> CUDA OOM during Hessian inverse on cuda:0"
    with caplog.at_level(logging.WARNING), gptqmodel.contained():
        print(f"WARN  {line}; falling back to CPU.")
        print("INFO  all is well")
    (record,) = caplog.records
    assert line in record.message


@pytest.mark.parametrize("used", [True, False])
def test_an_idle_worker_gives_a_gpus_memory_back_and_opens_none_for_it(
    used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []
    cuda = SimpleNamespace(is_initialized=lambda: used, empty_cache=lambda: emptied.append(True))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    devices.release()
    assert emptied == [True] * used
