"""The inputs on which a file is compared with its reading: points of the region that is asked about, its corners, extremes, stress."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Shape

Points = NDArray[np.float32]
# Samples of a region whose points are taken; further ones would show nothing that these do not.
SAMPLES = 3
# Powers of ten of the stress inputs: beyond the ends of clips, beyond int32 in units of a quantisation, and near overflow.
LARGE = (1.5, 4.0, 8.0, 12.0, 18.0)


@dataclass(frozen=True)
class Asked:
    """The region that is asked about: float32 `lower` and `upper` [n, *shape] of its samples, all of whose points are members.

    `inside` (lowest, highest) keeps every further point within that range of values, where the reading is about no others.
    """

    lower: Points | None = None
    upper: Points | None = None
    inside: tuple[float, float] | None = None


def probes(shape: Shape, asked: Asked, most: int, seed: int = 0) -> Points:
    """Returns at most `most` float32 points [n, *shape], those that show most first; the same arguments give the same points.

    Points of the region (centre, both corners, a random corner, a random point of its first samples) and stress inputs (random in [0, 1],
    normal, a ramp, constants, zeros of both signs, subnormal numbers, single large values, magnitudes up to 1e18) take turns.
    """
    rng = np.random.default_rng([seed, prod(shape)])
    near, far = _region(asked, rng), _stress(shape, rng)
    if asked.inside is not None:
        low, high = (np.float32(end) for end in asked.inside)
        far = [np.clip(point, low, high) for point in far]
    turns = [point for pair in zip(near, far, strict=False) for point in pair]
    rest = near[len(far) :] + far[len(near) :]
    points: Points = np.stack([*turns, *rest]).astype(np.float32, copy=False)
    # Equal points (of a region without width, or clipped ones) would only cost time; a zero's sign counts.
    _, first = np.unique(points.reshape(len(points), -1).view(np.uint32), axis=0, return_index=True)
    return points[np.sort(first)][:most]


def _region(asked: Asked, rng: np.random.Generator) -> list[Points]:
    if asked.lower is None or asked.upper is None:
        return []
    found = []
    for lower, upper in zip(asked.lower[:SAMPLES], asked.upper[:SAMPLES], strict=True):
        if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
            continue
        fraction = rng.random(lower.shape, dtype=np.float32)
        middle = lower * np.float32(0.5) + upper * np.float32(0.5)
        inner = [middle, lower * (np.float32(1) - fraction) + upper * fraction]
        found.append([lower, upper, np.where(fraction < 0.5, lower, upper), *(np.clip(point, lower, upper) for point in inner)])
    # The first point of every sample, then the second of every sample, and so on.
    return [point.astype(np.float32) for turn in zip(*found, strict=True) for point in turn]


def _stress(shape: Shape, rng: np.random.Generator) -> list[Points]:
    size = prod(shape)

    def normal() -> Points:
        return rng.standard_normal(shape, dtype=np.float32)

    def uniform() -> Points:
        return rng.random(shape, dtype=np.float32)

    ramp = (np.arange(1, size + 1, dtype=np.float64) / size).astype(np.float32).reshape(shape)
    single = np.zeros(shape, np.float32)
    single.flat[:: max(1, size // 5)] = 1000.0
    tiny = np.where(uniform() < 0.5, np.float32(1e-40), np.float32(-1e-42)).astype(np.float32)
    signs = np.where(uniform() < 0.5, np.float32(-1.0), np.float32(1.0)).astype(np.float32)
    return [
        uniform(),
        normal(),
        *(normal() * np.float32(10.0**power) for power in LARGE[:2]),
        (uniform() < 0.5).astype(np.float32),
        ramp,
        *(normal() * np.float32(10.0**power) for power in LARGE[2:]),
        np.zeros(shape, np.float32),
        np.ones(shape, np.float32),
        signs,
        tiny,
        np.full(shape, -0.0, np.float32),
        single,
        np.full(shape, -1.0, np.float32),
        uniform() * np.float32(1e-20),
        uniform() - np.float32(0.5),
        normal() * np.float32(3.0),
    ]
