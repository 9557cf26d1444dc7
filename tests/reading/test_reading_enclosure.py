"""Nothing that is read right is refused: random networks of all formats, batch normalisation wherever runtimes fold it."""

from __future__ import annotations

import numpy as np
import pytest
from reading_nets import Model

from vsparse.reading import Asked, check_reading
from vsparse.reading.points import probes


def normalised(seed: int) -> bytes:
    """Convolutions with batch normalisations, factors, residual additions and padding that ONNX Runtime folds and fuses as it pleases."""
    rng = np.random.default_rng(seed)
    m = Model(3, 6, 6, batch=1 if seed % 2 else "N", seed=seed)
    channels = 3

    def norm() -> None:
        spread = np.float32(10 ** rng.uniform(-2, 2))
        variance = rng.uniform(1e-6, 2, channels).astype(np.float32)
        m.add("BatchNormalization", m.weights(channels) * spread, m.weights(channels), m.weights(channels) * spread, variance)

    if rng.random() < 0.3:
        norm()
    for _ in range(3):
        before, width = m.last, channels
        channels = int(rng.choice([3, 4]))
        bias = [m.weights(channels)] if rng.random() < 0.5 else []
        m.add("Conv", m.weights(channels, width, 3, 3), *bias, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        if rng.random() < 0.8:
            norm()
        if channels == width and rng.random() < 0.7:
            m.add("Add", inputs=[m.last, before])
        for operator in ("Mul", "Add"):
            if rng.random() < 0.3:
                m.add(operator, m.weights(channels, 1, 1) * np.float32(10 ** rng.uniform(-5, 5)))
        if rng.random() < 0.8:
            m.add("Relu" if rng.random() < 0.7 else "Sigmoid")
    m.add("Flatten")
    m.add("MatMul", m.weights(channels * 36, 5))
    m.add("Add", m.weights(5))
    channels = 5
    if rng.random() < 0.5:
        norm()
    return m.data(5)


@pytest.mark.parametrize("seed", range(24))
def test_batch_normalisation_that_runtimes_fold_is_within_its_enclosure(seed: int) -> None:
    evidence = check_reading(normalised(seed))
    assert evidence.values_compared > 1000


def test_points_are_those_of_the_region_and_stress_and_never_change() -> None:
    lower = np.random.default_rng(0).random((5, 4, 5), dtype=np.float32)
    asked = Asked(lower, lower + np.float32(0.1))
    points = probes((4, 5), asked, 100)
    assert points.dtype == np.float32
    assert np.array_equal(points.view(np.uint32), probes((4, 5), asked, 100).view(np.uint32))
    inside = [((points >= asked.lower[i]) & (points <= asked.upper[i])).all(axis=(1, 2)).sum() for i in range(5)]
    assert inside == [5, 5, 5, 0, 0]
    assert np.isfinite(points).all()
    size = np.abs(points[points != 0])
    assert size.max() > 1e18
    assert 0 < size.min() < 2.0**-126
    assert (np.signbit(points) & (points == 0)).any()
    # A large network sees points of the region and stress alike.
    few = probes((4, 5), asked, 4)
    near = [any((point >= asked.lower[i]).all() and (point <= asked.upper[i]).all() for i in range(3)) for point in few]
    assert np.array_equal(few, points[:4])
    assert sum(near) == 2


def test_points_can_be_kept_within_a_range_and_what_is_not_finite_is_left_out() -> None:
    points = probes((4,), Asked(inside=(0.0, 1.0)), 100)
    assert (points >= 0).all()
    assert (points <= 1).all()
    assert len(points) > 8
    infinite = np.full((1, 4), np.inf, np.float32)
    assert np.isfinite(probes((4,), Asked(-infinite, infinite), 100)).all()
