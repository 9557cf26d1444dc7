"""What data looks like: format, sizes of images, classes, splits, tracks by the names of files, statistics of the pixels."""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsparse.data import Splits, load
from vsparse.data.bounded import SYSTEM, reading
from vsparse.data.folder import Entry, parts_of
from vsparse.data.images import ORIENTATION, PILLOW_FORMATS
from vsparse.data.load import DRAWN
from vsparse.data.names import CLASS_NAMES
from vsparse.data.source import formats_at
from vsparse.errors import InputError
from vsparse.recipe import Data
from vsparse.schema import validate
from vsparse.starter.columns import ReadAs, only_file, read_archive_as, read_table_as, table_file
from vsparse.starter.first_tests import linear_explained, nearest_mean_accuracy

# Images up to this side stay as they are; others are resized so that their longer side is RESIZED.
LARGEST_SIDE, RESIZED, LEAST_SIDE = 48, 32, 8
# Separators that stand before the number of a frame, and the fewest tracks of a class that three splits can be drawn from.
SEPARATORS, LEAST_TRACKS = ("_", "-"), 5
# A pixel within this distance of black or white counts as one of the two.
NEAR_EDGE = 1 / 16
# Samples of which distances and the first test of the labels are computed.
MOST_COMPARED, MOST_FEATURES = 600, 3072


@dataclass(frozen=True)
class DataSurvey:
    """What was found; pixel values are on the [0, 1] scale, and all statistics are those of the training split.

    `sizes` counts images by [height, width] as stored, upright, where images are files. `resize` is what they must be resized to, empty
    where they have one size that suits. `half_distances` are the 5th percentile and the median of half the l∞ distance from a sample to
    the nearest one of another class: no classifier certifies both beyond that. `centroid_accuracy` is what naming the nearest class mean
    reaches on the validation split: a first test of whether labels have to do with the images. `keys` says how tables and archives are
    read, with reasons; distances between rows of a table count standard deviations, of which `deviations` make up the range of an input.
    Of numbers to predict `linear_explained` is the share of their variance on the validation split that a linear fit explains.
    """

    directory: Path
    format: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    counts: dict[str, int]
    per_class: dict[str, int]
    origins: dict[str, str]
    sizes: dict[tuple[int, int], int]
    resize: tuple[int, ...]
    track_separator: str
    tracks: int
    tracks_said: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    near_edge: float
    majority: float
    half_distances: tuple[float, float]
    centroid_accuracy: float
    notes: tuple[str, ...]
    # Of tables and archives: what the samples are, how they are read, and of numbers to predict their deviation.
    kind: str = "images"
    regression: bool = False
    keys: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    deviations: int = 1
    target_deviation: float = 0.0
    linear_explained: float = 0.0

    @property
    def samples(self) -> int:
        """How many samples there are, of all splits."""
        return sum(self.counts.values())

    @property
    def own_test(self) -> bool:
        """Whether the source has a test split of its own."""
        return not self.origins["test"].startswith(DRAWN)

    @property
    def own_validation(self) -> bool:
        """Whether the source has a validation split of its own."""
        return not self.origins["validation"].startswith(DRAWN)

    def as_dict(self) -> dict[str, Any]:
        """Returns the survey as JSON values."""
        return {
            "directory": str(self.directory),
            "format": self.format,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "counts": self.counts,
            "training_samples_by_class": self.per_class,
            "origins": self.origins,
            "image_sizes": [{"height": h, "width": w, "images": n} for (h, w), n in self.sizes.items()],
            "tracks": self.tracks,
            "tracks_by": self.tracks_said,
            "mean": list(self.mean),
            "std": list(self.std),
            "near_black_or_white": self.near_edge,
            "majority_share": self.majority,
            "half_distance_to_another_class": {"percentile_5": self.half_distances[0], "median": self.half_distances[1]},
            "nearest_class_mean_accuracy": self.centroid_accuracy,
            "notes": list(self.notes),
            "kind": self.kind,
            "regression": self.regression,
            "read_as": {key: value for key, (value, _) in self.keys.items()},
            "target_deviation": self.target_deviation if self.regression else None,
            "linear_fit_explains": self.linear_explained if self.regression else None,
        }


def survey(directory: Path, seed: int = 0, column: str = "", drop: tuple[str, ...] = ()) -> DataSurvey:
    """Looks at the data in a folder, zip, table or archive as a build would read it; raises InputError with the reader's sentences.

    `column` of a table is the one to predict, and columns of `drop` are left out.
    """
    directory = directory.absolute()
    if not directory.exists():
        raise InputError(f"{directory} is not there; give the folder that holds the data")
    name = data_name(directory)
    found = formats_at(directory, name)
    if not found and (only := only_file(directory)) is not None:
        directory, name = only, data_name(only)
        found = formats_at(directory, name)
    of_table = len(found) == 1 and found[0] in ("csv", "parquet")
    if (column or drop) and not of_table:
        raise InputError(f"--{'column' if column else 'drop'} is about tables (CSV, Parquet), and {directory} is none; leave it out")
    read = read_table_as(table_file(directory, found[0], name), found[0], column, drop) if of_table else None
    if found == ["npz"]:
        read = read_archive_as(directory, name)
    if read is not None:
        return _survey_as(directory, name, read, seed)
    sizes: Counter[tuple[int, int]] = Counter()
    separator, said = "", "no names of files to tell them by"
    if found == ["folder"]:
        with ExitStack() as stack, reading(str(directory), SYSTEM):
            parts, _ = parts_of(stack, directory, name)
            for part in parts.values():
                sizes.update(size for entry in part.entries if (size := _size(entry)))
            separator, said = tracks_in({label: part.entries for label, part in parts.items()})
    spec = Data(name=name, path=str(directory), resize=wanted_size(sizes), track_separator=separator)
    splits = load(spec, directory, seed)
    groups = splits.train.groups
    if groups is not None and not separator:
        said = "the array `track` of the archive"
    train = splits.train.inputs()
    return DataSurvey(
        directory=directory,
        format=found[0] if found else spec.format,
        shape=tuple(train.shape[1:]),
        classes=splits.train.classes,
        counts={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        per_class=dict(zip(splits.train.classes, _counts(splits).tolist(), strict=True)),
        origins=splits.origins,
        sizes=dict(sizes.most_common()),
        resize=spec.resize,
        track_separator=separator,
        tracks=sum(len(np.unique(one.groups)) for one in (splits.train, splits.validation, splits.test) if one.groups is not None),
        tracks_said=said,
        mean=tuple(round(float(value), 3) for value in train.mean(axis=(0, 2, 3), dtype=np.float64)),
        std=tuple(round(float(value), 3) for value in train.std(axis=(0, 2, 3), dtype=np.float64)),
        near_edge=float(((train <= NEAR_EDGE) | (train >= 1 - NEAR_EDGE)).mean()),
        majority=float(np.bincount(splits.test.labels).max() / len(splits.test)),
        half_distances=half_distances(train, splits.train.labels),
        centroid_accuracy=_centroid_accuracy(splits, train),
        notes=splits.notes,
    )


def _survey_as(directory: Path, name: str, read: ReadAs, seed: int) -> DataSurvey:
    """Looks at samples that are no images, or have numbers to predict."""
    keys = {key: value for key, (value, _) in read.keys.items()}
    splits = load(validate(Data, {"name": name, "path": str(directory), **keys}, "the data"), directory, seed)
    train, groups = splits.train.inputs(), splits.train.groups
    moving = [not one.fixed for one in splits.features] or slice(None)
    deviations = next((one.deviations for one in splits.features if not one.fixed), 1)
    targets = splits.train.targets
    distances = (1.0, 1.0) if read.regression else half_distances(train[:, moving], splits.train.labels)
    return DataSurvey(
        directory=directory,
        format=keys["format"],
        shape=tuple(train.shape[1:]),
        classes=splits.train.classes,
        counts={"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        per_class=dict(zip(splits.train.classes, _counts(splits).tolist(), strict=True)),
        origins=splits.origins,
        sizes={},
        resize=(),
        track_separator="",
        tracks=sum(len(np.unique(one.groups)) for one in (splits.train, splits.validation, splits.test) if one.groups is not None),
        tracks_said="the array `track` of the archive" if groups is not None else "nothing tells them",
        mean=tuple(round(float(value), 4) for value in train.mean(axis=(0, 2, 3), dtype=np.float64)),
        std=tuple(round(float(value), 4) for value in train.std(axis=(0, 2, 3), dtype=np.float64)),
        near_edge=0.0,
        majority=1.0 if read.regression else float(np.bincount(splits.test.labels).max() / len(splits.test)),
        half_distances=(distances[0] * deviations, distances[1] * deviations),
        centroid_accuracy=0.0 if read.regression else nearest_mean_accuracy(splits, train),
        notes=(*read.notes, *splits.notes),
        kind=read.kind,
        regression=read.regression,
        keys=read.keys,
        deviations=deviations,
        target_deviation=0.0 if targets is None else float(targets.std()),
        linear_explained=linear_explained(splits, train) if read.regression else 0.0,
    )


def _counts(splits: Splits) -> NDArray[np.int64]:
    return np.bincount(splits.train.labels, minlength=len(splits.train.classes))


def data_name(directory: Path) -> str:
    """Returns a name for the dataset from that of its folder, never that of a built-in one."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.stem if directory.is_file() else directory.name).strip("-._")[:48] or "data"
    return f"my-{stem}" if stem in CLASS_NAMES else stem


def _size(entry: Entry) -> tuple[int, int] | None:
    """Returns the height and width of an upright image by its header; None where the reader will refuse it with a sentence."""
    try:
        with Image.open(io.BytesIO(entry.get()), formats=PILLOW_FORMATS) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)
    except InputError:
        raise
    except Exception:  # Pillow raises a dozen unrelated types; `decode` names the file and the reason
        return None


def wanted_size(sizes: Counter[tuple[int, int]]) -> tuple[int, ...]:
    """Returns the height and width that images of these sizes are to have, nothing where they have one that suits.

    The longer side is that of the median image, RESIZED at most; the other one follows from the median shape, in steps of four.
    """
    if not sizes or (len(sizes) == 1 and max(next(iter(sizes))) <= LARGEST_SIDE):
        return ()
    all_sizes = np.repeat(np.array(list(sizes)), list(sizes.values()), axis=0)
    longer = min(RESIZED, max(LEAST_SIDE, int(np.median(all_sizes.max(axis=1))) // 4 * 4))
    shape = float(np.median(all_sizes[:, 0] / all_sizes[:, 1]))  # height / width
    shorter = max(LEAST_SIDE, round(longer * min(shape, 1 / shape) / 4) * 4)
    return (longer, shorter) if shape > 1 else (shorter, longer)


def tracks_in(parts: Mapping[str, Iterable[Entry]]) -> tuple[str, str]:
    """Returns the separator behind a track in the names of files, if any, and what the names say, in words.

    They name tracks where each ends in a separator and a number, images are fewer than half as many tracks, every class has at least five
    of them, and no track is in two parts.
    """
    entries = {part: list(images) for part, images in parts.items()}
    stems = [(part, entry.class_name, entry.name.rpartition(".")[0]) for part, images in entries.items() for entry in images]
    said = "the names of files show none"
    for separator in SEPARATORS:
        split = [(part, name, *stem.rpartition(separator)[::2]) for part, name, stem in stems]
        if not all(track and frame.isdecimal() for _, _, track, frame in split):
            continue
        of_class: dict[str, set[str]] = defaultdict(set)
        of_part: dict[str, set[str]] = defaultdict(set)
        for part, name, track, _ in split:
            key = f"{name}/{track}" if track.isdecimal() else track
            of_class[name].add(key)
            of_part[key].add(part)
        fewest = min(len(tracks) for tracks in of_class.values())
        example = split[0][2]
        if fewest == 1 and max(len(tracks) for tracks in of_class.values()) == 1:
            continue  # the class's name before each number says nothing
        if 2 * len(of_part) > len(split):
            continue
        if any(len(there) > 1 for there in of_part.values()):
            return "", f'the names of files show tracks (such as "{example}"), and some are in two parts: the test is not held out then'
        if fewest < LEAST_TRACKS:
            return "", f'the names of files show tracks (such as "{example}"), but a class has only {fewest}, too few to draw splits from'
        return separator, f'the names of files up to the last "{separator}" (such as "{example}")'
    return "", said


def half_distances(x: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Returns the 5th percentile and the median of half the l∞ distance from a sample to the nearest one of another class."""
    step = max(1, len(x) // MOST_COMPARED)
    some, theirs = x[::step].reshape(len(x[::step]), -1), labels[::step]
    nearest = []
    for one, label in zip(some, theirs, strict=True):
        others = some[theirs != label]
        if len(others):
            nearest.append(float(np.abs(others - one).max(axis=1).min()) / 2)
    return (float(np.percentile(nearest, 5)), float(np.median(nearest))) if nearest else (1.0, 1.0)


def _centroid_accuracy(splits: Splits, train: NDArray[np.float32]) -> float:
    """Returns the fraction of validation samples whose nearest class mean, brightness apart, is that of their own class."""
    labels = splits.train.labels

    def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = x.reshape(len(x), -1)
        centred = flat[:, :: max(1, flat.shape[1] // MOST_FEATURES)]
        centred = centred - centred.mean(axis=1, keepdims=True)
        return np.asarray(centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-3), dtype=np.float32)

    known = features(train)
    means = np.stack([known[labels == label].mean(axis=0) for label in range(len(splits.train.classes))])
    asked = features(splits.validation.inputs())
    distances = (means**2).sum(axis=1) - 2 * asked @ means.T
    return float((distances.argmin(axis=1) == splits.validation.labels).mean())
