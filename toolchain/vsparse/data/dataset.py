"""The shape in which samples travel: `Dataset` is one split, `Splits` are the three of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError

MAX_PIXEL_BYTES = 4 * 2**30
MAX_SAMPLES = 2**26
MAX_CLASSES = 2**16


@dataclass(frozen=True)
class Dataset:
    """One split.

    `pixels` is uint8 or float32 of shape [N, C, H, W]; `scale` is the pixel value that maps to 1.0 (255, 16 or 1); `labels` is int64 [N],
    each a position in `classes`; `groups` is int64 [N] or None, samples of one group (a track, a patient) are never on two sides of a
    split. For regression `targets` is float64 [N], the number to be predicted of each sample, and every label is 0.
    """

    pixels: NDArray[Any]
    scale: float
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None
    targets: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, index: slice | NDArray[np.int64] = slice(None)) -> NDArray[np.float32]:
        """Returns a fresh float32 array [n, C, H, W] in [0, 1]: `pixels / scale`, one float32 division each.

        `index` is a slice or an index array.
        """
        return np.divide(self.pixels[index].astype(np.float32), np.float32(self.scale), dtype=np.float32)


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset; `sha256` covers all pixels, labels, groups, class names and which sample is in which split.

    `origins` says of each split, by name, where it comes from; `notes` what a person should know of the source: what was left out, what
    decoders said.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    name: str
    sha256: str
    origins: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    # Of a table: the map of each input, a `vsparse.data.features.Feature`.
    features: tuple[Any, ...] = ()


# What stands for the class names of a regression, whose samples have one number each.
VALUE = ("value",)


@dataclass(frozen=True)
class Raw:
    """What a loader found, before labels are checked against the classes; `source` names the file in sentences.

    A `scale` of infinity: the values are in their own units, of any size.
    """

    pixels: NDArray[Any]
    scale: float
    labels: NDArray[np.int64]
    source: str
    groups: NDArray[np.int64] | None = None
    targets: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Loaded:
    """A loader's result: `test` and `validation` are None where the source has no such split, `classes` where it has no class names.

    `notes` are sentences on what was left out and what decoders said; `columns` says of a table in its own units what each input is
    (`vsparse.data.table.TableColumn`).
    """

    train: Raw
    test: Raw | None = None
    classes: tuple[str, ...] | None = None
    validation: Raw | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[Any, ...] = ()


def check_shape(shape: tuple[int, ...], itemsize: int, source: str) -> int:
    """Returns the bytes that pixels of that shape need.

    Raises InputError for empty and for absurd sizes, so that nothing is reserved for them.
    """
    count = itemsize
    for size in shape:
        count *= size
    text = " × ".join(str(size) for size in shape)
    if count <= 0:
        raise InputError(f"{source} holds no samples (its shape is {text}); give a dataset with images in it")
    if count > MAX_PIXEL_BYTES or shape[0] > MAX_SAMPLES:
        most = MAX_PIXEL_BYTES // 2**30
        raise InputError(f"{source} claims {text} values, more than the {most} GiB that are read; give a smaller dataset")
    return count


def integer_labels(values: NDArray[Any], what: str, source: str, least: int | None = 0) -> NDArray[np.int64]:
    """Returns integers as int64 [N]; raises InputError for another type or rank, for values below `least`, and for those beyond int64."""
    if values.dtype.kind not in "iu":
        raise InputError(f"{source}: {what} must be integers, and these are {values.dtype}; save them as int64")
    if values.ndim != 1:
        raise InputError(f"{source}: {what} must be one number a sample, and their shape is {list(values.shape)}")
    if values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{source}: {what} go up to {int(values.max())}, which is beyond 64-bit integers; renumber them")
    if values.size and least is not None and int(values.min()) < least:
        raise InputError(f"{source}: {what} must not be negative, and the least is {int(values.min())}; number the classes from 0")
    return values.astype(np.int64)


def require_targets(targets: NDArray[np.float64], what: str) -> None:
    """Raises InputError for numbers to predict that are not finite, beyond float32, or all the same; `what` names them."""
    if not np.isfinite(targets).all() or (targets.size and np.abs(targets).max() > 1e30):
        raise InputError(f"{what} holds numbers that are not finite, or beyond 1e30; correct them, or change their unit")
    if targets.size and targets.min() == targets.max():
        raise InputError(f"{what} is {targets[0]:g} for every sample, so there is nothing to predict; name another, or give other samples")


def check(raw: Raw, classes: tuple[str, ...]) -> Dataset:
    """Returns the samples as a Dataset.

    Raises InputError for counts that differ, wrong rank, labels out of range, and pixels outside the range.
    """
    pixels, labels, source = raw.pixels, raw.labels, raw.source
    if pixels.ndim != 4:
        raise InputError(
            f"{source}: images must have four axes (samples, channels, height, width), and these have shape {list(pixels.shape)}"
        )
    check_shape(pixels.shape, pixels.itemsize, source)
    if len(labels) != len(pixels):
        raise InputError(f"{source} has {len(pixels)} images and {len(labels)} labels; give one label an image")
    if raw.groups is not None and len(raw.groups) != len(pixels):
        raise InputError(f"{source} has {len(pixels)} images and {len(raw.groups)} track numbers; give one track number an image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        wrong, last = low if low < 0 else high, len(classes) - 1
        raise InputError(f"{source}: label {wrong} is out of range, the {len(classes)} classes go from 0 to {last}; correct it")
    least, most = float(pixels.min()), float(pixels.max())
    targets = raw.targets
    if targets is not None and not (targets.shape == (len(pixels),) and np.isfinite(targets).all()):
        raise InputError(f"{source}: the number to predict must be one finite number a sample; correct the targets")
    if np.isinf(raw.scale) and np.isfinite(least) and np.isfinite(most):
        return Dataset(np.ascontiguousarray(pixels), 1.0, labels, classes, raw.groups, targets)
    if not (least >= 0 and most <= raw.scale):  # a NaN fails both
        span = f"between 0 and {raw.scale:g}, and these go from {least:g} to {most:g}"
        raise InputError(f"{source}: pixels must lie {span}; rescale them or save 8-bit values")
    return Dataset(np.ascontiguousarray(pixels), raw.scale, labels, classes, raw.groups, targets)
