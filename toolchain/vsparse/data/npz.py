"""NumPy archives with arrays x, y and, where samples come in groups, track."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import Zip, expect_end, read_exactly, reading
from vsparse.data.dataset import (
    MAX_CLASSES,
    MAX_PIXEL_BYTES,
    MAX_SAMPLES,
    VALUE,
    Loaded,
    Raw,
    check_shape,
    integer_labels,
    require_targets,
)
from vsparse.data.parts import part_of, parts_among
from vsparse.data.table import TableColumn
from vsparse.errors import InputError

LOOKED_FOR = "train.npz (and test.npz)"
MAX_HEADER_BYTES = 4096
MAX_NAME_BYTES = 2**20
# What numpy.save writes for plain arrays; objects (`|O`) and records do not match, so nothing is ever unpickled.
_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[biufU]\d{1,6})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19},? ?)*)\), \}\s*", re.ASCII
)
_DESCR = re.compile(r"'descr': *'([^']{1,20})'")


def read_array(archive: Zip, name: str, limit: int) -> NDArray[Any]:
    """Returns the array of member `name`.npy of at most `limit` bytes; all headers are checked before anything is decompressed or reserved.

    Raises InputError for objects and records, absurd shapes, and members whose size differs from what their header promises.
    """
    member = f"{name}.npy"
    source = f"{archive.source}: {member}"
    with archive.open(member, limit + MAX_HEADER_BYTES) as stream:
        start = read_exactly(stream, 8, source, "its magic number").tobytes()
        if start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
            raise InputError(f"{source} is not a NumPy array; write it with numpy.savez")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(read_exactly(stream, width, source, "its header").tobytes(), "little")
        if length > MAX_HEADER_BYTES:
            raise InputError(
                f"{source} has a header of {length} bytes, more than the {MAX_HEADER_BYTES} that are read; write it with numpy.savez"
            )
        text = read_exactly(stream, length, source, "its header").tobytes().decode("latin-1")
        match = _HEADER.fullmatch(text)
        if match is None:
            kind = _DESCR.search(text)
            what = f"values of type {kind[1]}" if kind else "a header that cannot be read"
            raise InputError(f"{source} has {what}; only plain arrays of numbers are read: save it as integers or floats")
        with reading(source):
            dtype = np.dtype(match[1])
            shape = tuple(int(size) for size in match[3].split(",") if size.strip())
        count = check_shape(shape or (1,), dtype.itemsize, source)
        if count > limit or count + 8 + width + length != archive.members[member].file_size:
            raise InputError(f"{source} does not have the size that its header promises ({count} bytes of values); copy the file again")
        data = read_exactly(stream, count, source, "its header's shape")
        expect_end(stream, source)
    order = "F" if match[2] == "True" else "C"
    values: NDArray[Any] = data.view(dtype).reshape(shape, order="F" if order == "F" else "C")
    return values.astype(dtype.newbyteorder("="), copy=False)


def channels_first(pixels: NDArray[Any], source: str) -> NDArray[Any]:
    """Returns images as [N, C, H, W] from [N, H, W], [N, H, W, C] or [N, C, H, W].

    The channel axis is the one of size 1 or 3 where just one of them is so, else the smaller. Raises InputError for another rank and where
    both axes could be the channels.
    """
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim != 4:
        raise InputError(f"{source}: x has shape {list(pixels.shape)}; images are [N, H, W], [N, H, W, C] or [N, C, H, W]")
    first, last = pixels.shape[1], pixels.shape[3]
    usual_first, usual_last = first in (1, 3), last in (1, 3)
    if first == last or (usual_first and usual_last):
        raise InputError(
            f"{source}: x has shape {list(pixels.shape)}, whose channel axis cannot be told; save it as [N, H, W] or with larger images"
        )
    is_last = usual_last if usual_first != usual_last else last < first
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if is_last else pixels


def laid_out(values: NDArray[Any], layout: str, source: str) -> NDArray[Any]:
    """Returns x as [N, C, H, W] from the axes that data.layout names: windows become [N, C, 1, T], features [N, F, 1, 1].

    Raises InputError where x has another number of axes than the layout.
    """
    if layout == "auto":
        return channels_first(values, source)
    if values.ndim != len(layout):
        raise InputError(f'{source}: x has shape {list(values.shape)}, and data.layout = "{layout}" names {len(layout)} axes; correct one')
    if layout == "NTC":
        values = values.transpose(0, 2, 1)
    elif layout == "NHWC":
        values = values.transpose(0, 3, 1, 2)
    if layout == "NHW":
        return np.ascontiguousarray(values[:, None])
    if layout == "NF":
        return np.ascontiguousarray(values[:, :, None, None])
    return np.ascontiguousarray(values[:, :, None] if layout in ("NCT", "NTC") else values)


def _pixels(values: NDArray[Any], source: str, layout: str, span: tuple[float, float] | None) -> tuple[NDArray[Any], float]:
    """Returns [N, C, H, W] and its scale: uint8 with 255, or floats (rounded to float32) with 1; features with infinity, in their units."""
    if span is not None and values.dtype.kind in "iuf":
        wide = values.astype(np.float64)
        if not np.isfinite(wide).all():
            raise InputError(f"{source}: x has values that are not finite; repair the data")
        return laid_out(((wide - span[0]) / (span[1] - span[0])).clip(0, 1).astype(np.float32), layout, source), 1.0
    if layout == "NF" and values.dtype.kind in "iuf":
        return laid_out(values.astype(np.float64), layout, source), np.inf
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise InputError(f"{source}: x has type {values.dtype}; save it as uint8 (0 to 255) or as float32 (0 to 1)")
    pixels = laid_out(values, layout, source)
    if pixels.dtype == np.uint8:
        return pixels, 255.0
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and most <= 1):  # before the cast to float32, which could round into the range; a NaN fails both
        raise InputError(
            f"{source}: float pixels must lie between 0 and 1, and these go from {least:g} to {most:g}; divide them by their greatest, "
            "or say with data.range which values map to 0 and 1"
        )
    return pixels.astype(np.float32), 1.0


def read_file(
    path: Path, layout: str = "auto", span: tuple[float, float] | None = None, regression: bool = False
) -> tuple[Raw, tuple[str, ...] | None]:
    """Returns the samples of one archive, and its class names where it has a `classes` array of strings.

    For `regression` the array y holds the number to predict of each sample.
    """
    source = str(path)
    with Zip(path) as archive:
        for wanted in ("x", "y"):
            if f"{wanted}.npy" not in archive.members:
                names = ", ".join(sorted(name.removesuffix(".npy") for name in list(archive.members)[:8])) or "nothing"
                raise InputError(f'{source} has no array "{wanted}" (it has: {names}); save it with numpy.savez(path, x=images, y=labels)')
        y, targets = read_array(archive, "y", MAX_SAMPLES * 8), None
        if regression:
            targets, labels = _targets(y, source), np.zeros(len(y), dtype=np.int64)
        elif y.dtype.kind == "f" and y.ndim == 1 and (y != np.rint(y)).any():
            raise InputError(f'{source}: labels must be integers, and these are numbers; to predict them, set data.kind = "regression"')
        else:
            labels = integer_labels(y, "labels", source)
        groups = None
        if "track.npy" in archive.members:
            groups = integer_labels(read_array(archive, "track", MAX_SAMPLES * 8), "track numbers", source, least=None)
        classes = None
        if "classes.npy" in archive.members and not regression:
            names_array = read_array(archive, "classes", MAX_NAME_BYTES)
            if names_array.dtype.kind != "U" or names_array.ndim != 1 or len(names_array) > MAX_CLASSES:
                raise InputError(f'{source}: "classes" must be a list of strings, one a class; save numpy.array(["cat", "dog"])')
            with reading(f"{source}: classes"):  # four bytes a character may be no character
                classes = tuple(str(name) for name in names_array)
                "".join(classes).encode()
        pixels, scale = _pixels(read_array(archive, "x", MAX_PIXEL_BYTES), source, layout, span)
    return Raw(pixels, scale, labels, source, groups, targets), VALUE if regression else classes


def _targets(y: NDArray[Any], source: str) -> NDArray[np.float64]:
    """Returns the numbers to predict as float64 [N]; InputError for another rank, text, and values that are not finite or all the same."""
    if y.dtype.kind not in "iuf" or y.ndim != 1:
        raise InputError(
            f"{source}: y must be one number a sample, and has type {y.dtype} and shape {list(y.shape)}; save it as floats [N]"
        )
    targets = y.astype(np.float64)
    require_targets(targets, f"{source}: y")
    return targets


def layout_for(location: Path, shape: tuple[int, ...]) -> tuple[str, tuple[float, float] | None]:
    """Returns `data.layout` and `data.range` under which an archive, or the test archive of a folder, is read for a network's input shape.

    ("auto", None) where nothing else is called for. Features [N, F] must lie in [0, 1], as a network of someone else's tells no units.
    """
    files = files_at(location) if location.is_dir() else {"test": location}
    path = files.get("test", files.get("train"))
    if path is None or path.suffix.lower() != ".npz":
        return "auto", None
    with Zip(path) as archive:
        if "x.npy" not in archive.members:
            return "auto", None  # its reader says so
        x = read_array(archive, "x", MAX_PIXEL_BYTES)
    if x.ndim == 2:
        if x.dtype.kind not in "iuf" or not (x.min() >= 0 and x.max() <= 1):
            raise InputError(f"{path}: the features x [N, F] must lie in [0, 1], as the network is to take them; scale them")
        return "NF", (0.0, 1.0)
    if x.ndim == 3 and shape == (x.shape[1], 1, x.shape[2]):
        return "NCT", None
    return ("NCHW" if x.ndim == 4 and x.shape[1:] == shape else "auto"), None


def files_at(location: Path) -> dict[str, Path]:
    """Returns the archives train, validation and test of a folder, by part; nothing without a training part."""
    names = {path.stem: path for path in sorted(location.glob("*.npz")) if path.is_file()} if location.is_dir() else {}
    if not any(part_of(name) == "train" for name in names):
        return {}
    return {part: names[name] for part, name in parts_among(names, str(location)).items()}


def read(location: Path, name: str, layout: str = "auto", span: tuple[float, float] | None = None, regression: bool = False) -> Loaded:
    """Returns an .npz file, or train.npz and (where they are there) val.npz and test.npz of a folder, or its <name>.npz; in file order.

    `layout` names the axes of x (data.layout), and `span` the values that map to 0 and 1 (data.range); of `regression` y holds numbers.
    """
    if not location.is_dir():
        only, classes = read_file(location, layout, span, regression)
        return Loaded(only, None, classes, columns=_features(only))
    files = files_at(location)
    if not files:
        return read(location / f"{name}.npz", name, layout, span, regression)
    parts: dict[str, Raw] = {}
    classes = None
    for part in (part for part in ("train", "validation", "test") if part in files):
        raw, own = read_file(files[part], layout, span, regression)
        if part == "train":
            classes = own
        elif classes is not None and own is not None and classes != own:
            raise InputError(f'{files[part]} has other "classes" than {files["train"]}; save the same list in both')
        for other, earlier in parts.items():
            if raw.groups is not None and earlier.groups is not None:
                _require_apart(earlier.groups, files[other], raw.groups, files[part])
        parts[part] = raw
    columns = _features(parts["train"])
    return Loaded(parts["train"], parts.get("test"), classes, parts.get("validation"), columns=columns)


def _features(raw: Raw) -> tuple[TableColumn, ...]:
    """Returns the inputs of a table of features in their own units, by number; nothing for other data."""
    if not np.isinf(raw.scale):
        return ()
    return tuple(TableColumn(f"feature {i}", f"feature {i}", False) for i in range(raw.pixels.shape[1]))


def _require_apart(one: NDArray[np.int64], first: Path, other: NDArray[np.int64], second: Path) -> None:
    shared = np.intersect1d(one, other)
    if shared.size:
        raise InputError(
            f"track {int(shared[0])} is in both {first} and {second}, so the test would not be held out; move it, or number tracks apart"
        )
