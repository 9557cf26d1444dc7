"""Detects a classifier that expects inputs scaled differently from the values in [0, 1] that it is verified on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.data import Dataset, Splits
from vsparse.majority import sign_test
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import Runtime, read_model

# Samples tried with each scaling, and training samples for means and deviations, evenly spaced.
SAMPLES, STATISTICS = 500, 5000
# Another scaling is reported where it gains more than this fraction, and chance does not explain it (several scalings are tried).
LEAST_GAIN, LEVEL = 0.05, 1e-4
# Of fewer samples nothing is said of a low accuracy.
LEAST_SAMPLES = 100
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Scaling:
    """One way of scaling, (x − mean)/std for each channel of values from 0 to 1, and what it is called."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def numbers(self) -> str:
        """The two arguments as Python tuples."""
        return ", ".join("(" + "".join(f"{value:.4g}, " for value in values).removesuffix(" ") + ")" for values in (self.mean, self.std))

    def option(self, name: str) -> str:
        """Returns `mean` or `std` as the option of that name takes it."""
        return ",".join(f"{value:.4g}" for value in getattr(self, name))


def scalings(train: Dataset) -> Iterator[Scaling]:
    """Yields the usual ways: standardised by each channel's own statistics and by all values', from −1 to 1, from 0 to 255, ImageNet's."""
    index = np.unique(np.linspace(0, len(train) - 1, min(STATISTICS, len(train))).round().astype(np.int64))
    values = train.inputs(index).astype(np.float64)
    channels = values.shape[1]
    deviations = values.std((0, 2, 3))
    if deviations.all():
        yield Scaling("standardised by mean and deviation", tuple(values.mean((0, 2, 3)).tolist()), tuple(deviations.tolist()))
    if channels > 1 and values.std() > 0:
        yield Scaling(
            "standardised by the mean and deviation of all channels", (float(values.mean()),) * channels, (float(values.std()),) * channels
        )
    yield Scaling("from -1 to 1", (0.5,) * channels, (0.5,) * channels)
    yield Scaling("from 0 to 255", (0.0,) * channels, (1 / 255,) * channels)
    if channels == len(IMAGENET[0]):
        yield Scaling("standardised as ImageNet is", *IMAGENET)


def other_scaling(path: Path, splits: Splits, samples: int) -> str:
    """Returns a sentence where the model's clean accuracy is clearly higher on inputs of another scale, with the way out; else "".

    Executed by ONNX Runtime on at most 500 of the first `samples` (0: all) test samples, evenly spaced. Clearly higher is more than 5
    points, on a sign test of level 1e-4.
    """
    model = read_model(path)
    inputs, labels = take_samples(splits.test, model, samples)
    index = np.unique(np.linspace(0, len(labels) - 1, min(SAMPLES, len(labels))).round().astype(np.int64))
    inputs, labels = inputs[index], labels[index]
    runtime = Runtime(model.data)
    shape = splits.test.pixels.shape[1:]

    def right(x: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(runtime.logits(x).argmax(1) == labels)

    plain = right(inputs)
    best: tuple[float, Scaling] | None = None
    if 1 - plain.mean() > LEAST_GAIN:
        for scaling in scalings(splits.train):
            mean, std = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (scaling.mean, scaling.std))
            found = right(((inputs.reshape(-1, *shape) - mean) / std).reshape(inputs.shape).astype(np.float32))
            gain = float(found.mean() - plain.mean())
            luck = sign_test(int((found & ~plain).sum()), int((~found & plain).sum()))
            if luck <= LEVEL and gain > max(LEAST_GAIN, best[0] if best else 0.0):
                best = (gain, scaling)
    if best is None:
        majority = float(np.bincount(labels).max() / len(labels)) if len(labels) else 1.0
        if len(labels) < LEAST_SAMPLES or plain.mean() > majority + LEAST_GAIN:
            return ""
        return (
            f"clean accuracy is {100 * plain.mean():.1f} % on values from 0 to 1, not above a constant answer ({100 * majority:.1f} %): "
            "if the network was trained on normalised values, which it does not compute itself, give these with --mean and --std"
        )
    clean, scaling = float(plain.mean()), best[1]
    return (
        f"clean accuracy is {100 * clean:.1f} % on values from 0 to 1 and {100 * (clean + best[0]):.1f} % on values {scaling.name} "
        f"({len(labels)} samples), so the file seems to expect those; give --mean {scaling.option('mean')} --std {scaling.option('std')}, "
        "or put the scaling into the network and verify that, in PyTorch: "
        f"torch.nn.Sequential(vsparse.networks.Normalise({scaling.numbers}), network)"
    )
