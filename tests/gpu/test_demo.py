"""The demo on a CUDA device: a cell on the real model, and the same cell twice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def quantized(folder: Path) -> tuple[str, float]:
    """Run the demo's cell of `cola_zero`; return the digest of its weights and its perplexity."""
    from colazero import models, pipeline, preconditions
    from colazero.config import RunConfig, parse
    from colazero.tracking import provenance

    config = parse(RunConfig, {"preset": "demo", "method": "cola_zero", "device": "cuda"})
    model = models.fetch(config.model)
    config = preconditions.resolve(config, model)
    calibration, _ = pipeline.calibrate(config, model)
    rider = pipeline.evaluator(config, model)
    pipeline.quantize(config, model, calibration, folder, lambda *_: None, rider)
    evaluation = pipeline.evaluate(config, model, folder, lambda *_: None, rider)
    pipeline.verify(config, model, folder, evaluation)
    digest = provenance.weights_digest(provenance.manifest(folder))
    return digest, evaluation.perplexities[0].perplexity


def test_the_demo_runs_on_cuda_and_twice_alike(tmp_path: Path) -> None:
    first = quantized(tmp_path / "first")
    assert 25 < first[1] < 45, "SmolLM2's, quantized"
    second = quantized(tmp_path / "second")
    assert second[1] == pytest.approx(first[1], rel=1e-3)
    assert second[0] == first[0], (
        "the same bits: docs/evidence/performance.md says so, or what differs"
    )
