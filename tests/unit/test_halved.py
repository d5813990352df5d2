"""A cell in which memory ran out is another draw of the arithmetic: tagged, and not reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from colazero import cell, models
from colazero.blocks.sequence import Sequence
from colazero.settings import RunConfig
from colazero.store import record
from colazero.suite import plan
from colazero.suite.worker import Job


def test_it_is_computed_again_and_then_reused(
    shared_store: MlflowClient, tiny_llama: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"file:{corpus_file}"
    given = {"model": str(tiny_llama), "corpus": name, "eval_corpora": name, "method": "random"}
    shape = {"n_calibration_samples": 4, "seq_len": 64, "eval_windows": 4, "group_size": 32}
    more = {"device": "cpu", "save_model": "none", "act_group_aware": True}
    config: Any = RunConfig.model_validate(given | shape | more)
    model = models.fetch(str(tiny_llama))

    def run() -> cell.Outcome:
        with record.run("cell", "cell"):
            return cell.run_cell(config, model, lambda _: lambda *_: None, reuse=True)

    own, failed = Sequence.run_block, []

    def run_block(sequence: Sequence, index: int, stream: Any, part: slice) -> None:
        if index == 1 and part.stop - part.start == 4 and not failed:
            failed.append(part)
            raise torch.OutOfMemoryError("CUDA out of memory")
        own(sequence, index, stream, part)

    monkeypatch.setattr(Sequence, "run_block", run_block)
    first = run()
    assert failed
    tags = shared_store.get_run(first.run_id).data.tags
    assert tags["colazero.halved"] == "quantization"
    with record.run("plan", "cell"):
        job = Job("cell", "cell", config, model)
        assert "memory ran out" in next(iter(plan.Finished([job]).why_new([job])))
    second = run()
    assert second.source_run is None, "computed anew"
    assert "colazero.halved" not in shared_store.get_run(second.run_id).data.tags
    assert run().source_run == second.run_id
