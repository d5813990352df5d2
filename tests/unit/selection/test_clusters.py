"""k-means ends no higher than many starts of Lloyd's iterations do, and always goes down."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from colazero.selection import clusters

EXACT = 20_000


def points(seed: int, documents: int = 600, features: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(20, features))
    spread = rng.normal(size=(documents, features))
    return (centres[rng.integers(20, size=documents)] + spread).astype(np.float32)


def inertia(data: np.ndarray, labels: np.ndarray) -> float:
    return sum(
        float(((data[labels == label] - data[labels == label].mean(axis=0)) ** 2).sum())
        for label in np.unique(labels)
    )


@pytest.mark.parametrize("seed", range(3))
def test_one_start_is_within_half_a_percent_of_the_best_of_fifty(seed: int) -> None:
    data = points(seed)
    best = KMeans(40, n_init=50, random_state=seed).fit(data).inertia_
    found = clusters.kmeans(data, 40, seed, EXACT)
    assert found.inertia < 1.005 * best
    assert found.inertia == pytest.approx(inertia(data, found.labels), rel=1e-5)
    assert len(np.unique(found.labels)) == 40


def test_each_round_of_exchanges_lowers_the_inertia(monkeypatch: pytest.MonkeyPatch) -> None:
    data = points(5)
    labels = np.random.default_rng(0).integers(40, size=len(data))
    monkeypatch.setattr(clusters, "SWEEPS", 1)
    for _ in range(20):
        better = clusters.exchange(data, labels)
        assert inertia(data, better) < inertia(data, labels)
        labels = better


def test_the_best_exchange_is_found() -> None:
    """Four points on a line: 0 1 | 10 in one cluster and 11 in the other. 10 belongs to 11."""
    data = np.array([[0.0], [1.0], [10.0], [11.0]], dtype=np.float32)
    assert clusters.exchange(data, np.array([0, 0, 0, 1])).tolist() == [0, 0, 1, 1]


def test_no_cluster_loses_its_last_point() -> None:
    data = points(1, documents=30)
    labels = clusters.exchange(data, np.arange(30) % 25)
    assert np.bincount(labels).min() >= 1
    assert len(np.bincount(labels)) == 25


def test_points_that_are_all_the_same_make_one_cluster() -> None:
    found = clusters.kmeans(np.ones((50, 3), dtype=np.float32), 8, 0, EXACT)
    assert found.labels.tolist() == [0] * 50
    assert found.inertia == 0


def test_many_points_go_in_mini_batches_to_nearly_the_same_end() -> None:
    data = points(2, documents=9_000)
    exact = clusters.kmeans(data, 40, 0, EXACT)
    batched = clusters.kmeans(data, 40, 0, 8_999)
    assert batched.inertia == pytest.approx(inertia(data, batched.labels), rel=1e-5)
    assert exact.inertia < batched.inertia < 1.1 * exact.inertia
