"""How a table or an archive of samples that are no images is read: its target, its columns, the axes and the range of its values."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data import npz, table
from vsparse.data.bounded import Zip
from vsparse.data.dataset import MAX_PIXEL_BYTES, MAX_SAMPLES
from vsparse.errors import InputError, nearest

# Names that people give the column to be predicted, most telling first, and those that number rows.
TARGETS = ("target", "label", "labels", "class", "classes", "y", "outcome", "output")
NUMBERING = ("id", "index", "row", "uid", "uuid", "nr", "no", "number", "key")
# Whole numbers of at most so many values are classes; others are predicted as numbers.
MOST_CLASSES = 20
# Axes of windows: at most so many channels (of bytes the last), and at least so many times as many time steps.
MOST_CHANNELS, LONGER, BYTES_CHANNELS = 32, 2, 4


@dataclass(frozen=True)
class ReadAs:
    """Keys of a recipe's data section beside name and path, each with its reason; what the samples are; and notes."""

    kind: str
    regression: bool
    keys: dict[str, tuple[Any, str]]
    notes: tuple[str, ...] = ()


def table_file(directory: Path, suffix: str, name: str) -> Path:
    """Returns the file with the training rows of a table: itself, train.csv of a folder, or <name>.csv there."""
    if directory.is_file():
        return directory
    return table.files_at(directory, suffix).get("train", directory / f"{name}.{suffix}")


def only_file(directory: Path) -> Path | None:
    """Returns the one table or archive of a folder that holds one, whatever its name; None for another folder."""
    if not directory.is_dir():
        return None
    found = [path for path in sorted(directory.iterdir()) if path.suffix.lower() in (*table.TABLE_SUFFIXES, ".npz") and path.is_file()]
    return found[0] if len(found) == 1 else None


def read_table_as(path: Path, suffix: str, column: str, drop: tuple[str, ...]) -> ReadAs:
    """Returns how a table is read; InputError for columns that are not there, and with the reader's sentences."""
    with table.rows_of(path)(path) as (first, _):
        there = [name.strip() for name in first]
    for name in (*drop, *filter(None, (column,))):
        if name not in there:
            raise InputError(f'{path} has no column "{name}"{nearest(name, there)}; it has {", ".join(there[:12])}')
    if column in drop:
        raise InputError(f'--column and --drop both name "{column}"; the column to predict cannot be left out')
    found = table.read_table(path, drop)
    names = [name for name in there if name in found.names]
    target, why = _target(names, column)
    keys: dict[str, tuple[Any, str]] = {"format": (suffix, "what was found there"), "target": (target, why)}
    regression, reason = _kind(found, target)
    if regression:
        keys["kind"] = ("regression", reason)
    notes = [] if regression else [f'the column "{target}" is read as classes: {reason}']
    left = dict.fromkeys(drop, "as asked")
    for one in names:
        if one != target and (text := _useless(found, one)):
            left[one] = text
    if left:
        keys["drop"] = (list(left), "; ".join(f'"{one}": {text}' for one, text in left.items()))
    pairs = [one for one, values in found.numbers.items() if one not in {*left, target} and len(np.unique(values)) == 2]
    if pairs:
        keys["categorical"] = (pairs, "columns of two values, which nothing between them means: fixed, no radius goes with them")
    texts = [one for one in found.texts if one not in {*left, target}]
    if texts:
        notes.append(f"columns of text are categories, which the certificate takes as fixed: {', '.join(texts[:8])}")
    return ReadAs("table", regression, keys, tuple(notes))


def _target(names: list[str], column: str) -> tuple[str, str]:
    if column:
        return column, "as asked"
    by_name = {name.lower(): name for name in reversed(names)}
    for wanted in TARGETS:
        if wanted in by_name:
            return by_name[wanted], "the column to predict, by its name; another one: init --column NAME"
    return names[-1], "the last column, as no name says which is to be predicted; another one: init --column NAME"


def _kind(found: table.TableFile, target: str) -> tuple[bool, str]:
    """Returns whether a column is predicted as a number, and why."""
    if target in found.texts:
        return False, "it holds text"
    values = found.numbers[target]
    return number_or_class(values)


def number_or_class(values: NDArray[Any]) -> tuple[bool, str]:
    """Returns whether targets are numbers to predict, and why: other than whole numbers, or whole ones of many values."""
    different = len(np.unique(values))
    if different == 2:
        return False, "it has two values"
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        return True, f"a number is predicted: it has {different:,} values, which are no whole numbers"
    if different > MOST_CLASSES:
        return True, f"a number is predicted: it has {different:,} values, more than the {MOST_CLASSES} that are taken for classes"
    return False, f"it has {different} whole numbers"


def _useless(found: table.TableFile, name: str) -> str:
    """Returns why a column can tell nothing: it numbers the rows, or holds a text of its own for each; else empty."""
    values: Any = found.numbers.get(name, found.texts.get(name))
    different = len(set(values.tolist() if name in found.numbers else values))
    if different == found.rows and found.rows > table.MAX_CATEGORIES and name in found.texts:
        return "another text in each row"
    if name in found.texts and different > table.MAX_CATEGORIES:
        return f"{different} different texts, more than {table.MAX_CATEGORIES} categories"
    if name.lower() in NUMBERING and different == found.rows:
        return "it numbers the rows"
    return ""


def read_archive_as(directory: Path, name: str) -> ReadAs | None:
    """Returns how an archive of windows or features is read; None for one of images, or one that its reader will refuse."""
    files = npz.files_at(directory) if directory.is_dir() else {"train": directory}
    path = files.get("train", directory / f"{name}.npz")
    with Zip(path) as archive:
        if not {"x.npy", "y.npy"} <= set(archive.members):
            return None
        x = npz.read_array(archive, "x", MAX_PIXEL_BYTES)
        y = npz.read_array(archive, "y", MAX_SAMPLES * 8)
    if x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf" or y.ndim != 1 or not y.size or not x.size:
        return None
    keys: dict[str, tuple[Any, str]] = {"format": ("npz", "what was found there")}
    layout, what = _layout(x.shape, x.dtype == np.uint8)
    regression, reason = number_or_class(y) if y.dtype.kind == "f" or layout else (False, "")
    if not layout and not regression:
        return None
    if layout:
        keys["layout"] = (layout, f"x has shape {list(x.shape)}: {what}")
    if regression:
        keys["kind"] = ("regression", reason)
    if layout != "NF" and x.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        if not np.isfinite(low + high):
            raise InputError(f"{path}: x has values that are not finite; repair the data")
        if x.dtype.kind != "f" or low < 0 or high > 1:
            span = _range(low, high)
            keys["range"] = (
                list(span),
                f"values that become 0 and 1: these go from {low:.4g} to {high:.4g}; take the range of the sensor, "
                "if you know it: what lies outside is clipped",
            )
    kind = "table" if layout == "NF" else "windows" if layout else "images"
    return ReadAs(kind, regression, keys)


def _layout(shape: tuple[int, ...], bytes_: bool) -> tuple[str, str]:
    """Returns data.layout for windows and features, and what it means; empty for images, which arrays of bytes are taken for."""
    if len(shape) == 2:
        return "NF", f"{shape[1]} features of each sample"
    if len(shape) == 3 and not (bytes_ and min(shape[1:]) > BYTES_CHANNELS):
        _, first, second = shape
        if first <= MOST_CHANNELS and second >= LONGER * first and second > 1:
            return "NCT", f"windows of {second} time steps in {first} channels"
        if second <= MOST_CHANNELS and first >= LONGER * second:
            return "NTC", f"windows of {first} time steps in {second} channels"
    return "", ""


def _range(low: float, high: float) -> tuple[float, float]:
    """Returns a range of two digits around all values, about 0 where these are on both sides of it."""
    if low < 0 < high:
        most = _outward(max(-low, high))
        return -most, most
    return (0.0, _outward(high)) if low >= 0 else (-_outward(-low), 0.0)


def _outward(value: float) -> float:
    """Returns the number of two digits that is next above a positive one; 1 for 0."""
    if value <= 0:
        return 1.0
    unit = floor(log10(value)) - 1
    return float(f"{ceil(value / 10**unit - 1e-9) * 10**unit:.6g}")
