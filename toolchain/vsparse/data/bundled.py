"""Data that needs no download: bundled with scikit-learn, or generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsparse.data import diabetes, digits
from vsparse.data.dataset import Loaded, Raw
from vsparse.data.names import CLASS_NAMES
from vsparse.data.table import TableColumn

# Of the vibration set: samples of a class, length of a window, sampling rate in Hz, and the counts of a 12-bit converter over ±8 g.
WINDOWS, LENGTH, RATE, COUNTS, RANGE_G = 400, 64, 1600.0, 4095.0, 8.0
# Its machines, and between what their noise (g) and the severity of a fault are drawn.
MACHINES, NOISE, SEVERITY = 40, (0.15, 0.35), (0.25, 1.2)


def breast_cancer() -> Loaded:
    """Returns 569 samples of 30 features in their own units, float64 [569, 30, 1, 1] (Wolberg, Street and Mangasarian, UCI, 1995)."""
    from sklearn.datasets import load_breast_cancer  # a second of import that other datasets do not need

    bunch = load_breast_cancer()
    columns = tuple(TableColumn(str(name), str(name), False) for name in bunch.feature_names)
    values = np.asarray(bunch.data, dtype=np.float64)[:, :, None, None]
    raw = Raw(values, np.inf, np.asarray(bunch.target).astype(np.int64), "scikit-learn's breast cancer")
    return Loaded(raw, None, CLASS_NAMES["breast-cancer"], columns=columns)


def vibration() -> Loaded:
    """Returns 1,600 generated windows of a three-axis accelerometer on a shaft, float32 [1600, 3, 1, 64] of 12-bit counts.

    Four classes: a healthy shaft (a weak line at the speed of rotation), unbalance (a strong one in x and y), a bearing fault (bursts of
    ringing at about 3.6 a turn) and looseness (harmonics, and knocks in z). 40 machines, which are the groups of the split, differ in
    resonance, unbalance left over, noise, gain of each axis and tilt of the sensor, and each runs in all four conditions; speed, phase,
    load and severity of the fault differ from window to window, and slight faults look like healthy shafts of other machines: no classifier
    tells all apart. A model of what such signals are like and no measurement of any machine. The same bits each time: numpy's frozen
    legacy generator draws, and rounding to counts takes what mathematical libraries differ in.
    """
    random = np.random.RandomState(20231)
    classes = CLASS_NAMES["vibration"]
    machines = [_Machine.drawn(random) for _ in range(MACHINES)]
    labels = np.tile(np.arange(len(classes)), WINDOWS)
    groups = np.repeat(np.arange(MACHINES), len(labels) // MACHINES)
    windows = np.empty((len(labels), 3, 1, LENGTH), dtype=np.float32)
    for index, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        signal = machines[group].window(random, label)
        windows[index, :, 0] = np.rint(((signal + RANGE_G) / (2 * RANGE_G)).clip(0, 1) * COUNTS)
    raw = Raw(windows, COUNTS, labels.astype(np.int64), "generated vibration", groups.astype(np.int64))
    return Loaded(raw, None, classes)


@dataclass(frozen=True)
class _Machine:
    """One machine of the vibration set; accelerations are in g, [3] or [3, LENGTH]."""

    ring_hz: float
    unbalance: float
    noise: float
    gain: NDArray[np.float64]
    gravity: NDArray[np.float64]

    @classmethod
    def drawn(cls, random: np.random.RandomState) -> _Machine:
        """Draws a machine."""
        tilt, turned = random.uniform(0, 0.25), random.uniform(0, 2 * np.pi)
        gravity = np.array([np.sin(tilt) * np.cos(turned), np.sin(tilt) * np.sin(turned), np.cos(tilt)])
        return cls(random.uniform(330, 520), random.uniform(0.2, 0.6), random.uniform(*NOISE), random.uniform(0.8, 1.2, size=3), gravity)

    def window(self, random: np.random.RandomState, label: int) -> NDArray[np.float64]:
        """Returns the acceleration of one window in the condition of a class."""
        speed, phase, load = random.uniform(55, 75), random.uniform(0, 2 * np.pi), random.uniform(0.8, 1.2)
        severity = random.uniform(*SEVERITY)
        turn = 2 * np.pi * speed * np.arange(LENGTH) / RATE + phase
        signal = self.unbalance * load * np.stack([np.cos(turn), np.sin(turn), 0.3 * np.cos(turn)])
        if label == 1:
            signal = signal + 1.8 * severity * load * np.stack([np.cos(turn), np.sin(turn), 0.1 * np.cos(turn)])
        elif label == 2:
            since = (turn * 3.6 / (2 * np.pi) % 1.0) / (3.6 * speed)
            ring = 2.5 * severity * load * np.exp(-since * 500) * np.sin(2 * np.pi * self.ring_hz * since)
            signal = signal + np.stack([0.7 * ring, ring, 0.4 * ring])
        elif label == 3:
            harmonics = sum(np.cos(order * turn) / order for order in (2, 3, 4))
            knock = np.maximum(np.cos(turn), 0.0) ** 8
            signal = signal + severity * load * np.stack([0.6 * harmonics, 0.4 * harmonics, 1.6 * knock])
        noise = random.normal(size=(3, LENGTH)) * self.noise
        return np.asarray(self.gain[:, None] * (signal + noise) + self.gravity[:, None])


# What is there without a file: how its note begins, and its reader.
BUNDLED: dict[str, tuple[str, Callable[[], Loaded]]] = {
    "digits": ("the digits are", digits.read),
    "breast-cancer": ("the breast cancer table is", breast_cancer),
    "vibration": ("the vibration set is", vibration),
    "diabetes": ("the diabetes table is", diabetes.read),
}
