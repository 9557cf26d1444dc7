"""Images in one folder a class, on disk or in a zip (which is never extracted)."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsparse.data.bounded import SYSTEM, Zip, reading
from vsparse.data.dataset import Loaded, Raw, check_shape
from vsparse.errors import InputError
from vsparse.files import read_bytes

LOOKED_FOR = "train/ and test/, train.zip, or one folder a class"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")
UNREAD = (".gif", ".tif", ".tiff", ".webp", ".heic", ".avif")
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "PPM")
CHANNELS = {"L": 1, "RGB": 3}
MAX_FILE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 16 * 2**20


@dataclass(frozen=True)
class Entry:
    """One image: its class name, how it is called in sentences, and how its bytes are got."""

    class_name: str
    source: str
    get: Callable[[], bytes]


def _is_image(name: str, source: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in UNREAD:
        raise InputError(f"{source} is of a kind that is not read; save it as PNG, JPEG, BMP, PPM or PGM")
    return suffix in SUFFIXES


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def has_classes(folder: Path) -> bool:
    """Returns whether some direct subfolder holds an image, looking no further than the first one."""
    with reading(str(folder)):
        for path in _visible(folder) if folder.is_dir() else ():
            if path.is_dir() and any(entry.name.lower().endswith(SUFFIXES) for entry in os.scandir(path)):
                return True
    return False


def _on_disk(folder: Path) -> Iterator[Entry]:
    for path in _visible(folder):
        if not path.is_dir():
            if _is_image(path.name, str(path)):
                raise InputError(f"{path} is in no class; put it into a folder named after its class")
            continue
        empty = True
        for file in _visible(path):
            if file.is_dir():
                raise InputError(f"{file} is a folder inside a class; put the images directly into {path}")
            if _is_image(file.name, str(file)):
                empty = False
                yield Entry(path.name, str(file), lambda file=file: read_bytes(file, "the image", MAX_FILE_BYTES))  # type: ignore[misc]  # bound now
        if empty:
            raise InputError(f"the class folder {path} has no images; put some in, or remove it")


def _in_zip(archive: Zip) -> dict[str, list[Entry]]:
    """Returns the images of a zip in the order of its members: {"train": …, "test": …} where it has both levels, else {"": …}."""
    paths: list[tuple[tuple[str, ...], str]] = []
    for member in archive.members:
        parts = tuple(member.split("/"))
        if ".." in parts or parts[0] == "" or "\\" in member:
            raise InputError(f"{archive.source} has a member named {member[:80]!r}; names must be class/image: write the zip again")
        if member.endswith("/") or any(part.startswith(".") or part in ("", "__MACOSX") for part in parts):
            continue
        if _is_image(parts[-1], f"{archive.source}: {member}"):
            paths.append((parts, member))
    while paths and min(len(parts) for parts, _ in paths) > 2 and len({parts[0] for parts, _ in paths} - {"train", "test"}) == 1:
        if len({parts[0] for parts, _ in paths}) > 1:
            break
        paths = [(parts[1:], member) for parts, member in paths]  # a wrapper around everything
    both = bool(paths) and all(len(parts) == 3 and parts[0] in ("train", "test") for parts, _ in paths)
    found: dict[str, list[Entry]] = {}
    for parts, member in paths:
        if len(parts) != (3 if both else 2):
            way = "name the members class/image, or train/class/image and test/class/image"
            raise InputError(f"{archive.source}: {member} does not lie in one folder a class; {way}")
        entry = Entry(parts[-2], f"{archive.source}: {member}", lambda member=member: _member(archive, member))  # type: ignore[misc]  # bound now
        found.setdefault(parts[0] if both else "", []).append(entry)
    return found


def _member(archive: Zip, name: str) -> bytes:
    with archive.open(name, MAX_FILE_BYTES) as stream:
        return stream.read()


def _decode(entry: Entry, wanted: tuple[str, tuple[int, int]] | None, first: str) -> tuple[str, NDArray[np.uint8]]:
    """Returns an image's mode and its pixels [C, H, W]; its header is compared with the first image's before anything is decoded."""
    data = entry.get()
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            mode, size = image.mode, image.size
            if mode not in CHANNELS:
                raise InputError(f"{entry.source} has Pillow mode {mode}; save it as 8-bit grey or RGB, without transparency or palette")
            if size[0] * size[1] > MAX_IMAGE_PIXELS or 0 in size:
                raise InputError(f"{entry.source} has {size[0]} × {size[1]} pixels; give images of 1 to {MAX_IMAGE_PIXELS} pixels")
            if wanted is not None and (mode, size) != wanted:
                what = f"{size[0]} × {size[1]} {mode}, and {first} is {wanted[1][0]} × {wanted[1][1]} {wanted[0]}"
                raise InputError(f"{entry.source} is {what}; make all images one size and one mode")
            pixels = np.asarray(image, dtype=np.uint8)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged files
        raise InputError(f"{entry.source} is no readable PNG, JPEG, BMP, PPM or PGM image ({str(error)[:120]}); replace it") from error
    return mode, pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _raw(entries: list[Entry], classes: tuple[str, ...], source: str) -> Raw:
    if not entries:
        raise InputError(f"{source} holds no images; give {LOOKED_FOR}")
    number = {name: index for index, name in enumerate(classes)}
    for entry in entries:
        if entry.class_name not in number:
            what = f'is of the class "{entry.class_name[:60]}", which the training images do not have'
            raise InputError(f"{entry.source} {what}; add it there or remove it")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        mode, first = _decode(entries[0], None, "")
        shape = (len(entries), *first.shape)
        check_shape(shape, 1, source)
        wanted = (mode, (first.shape[2], first.shape[1]))
        pixels: NDArray[Any] = np.empty(shape, dtype=np.uint8)
        pixels[0] = first
        for index, entry in enumerate(entries[1:], start=1):
            pixels[index] = _decode(entry, wanted, entries[0].source)[1]
    return Raw(pixels, 255.0, np.array([number[entry.class_name] for entry in entries], dtype=np.int64), source)


def class_order(entries: list[Entry]) -> tuple[str, ...]:
    """Returns the class names, sorted: as numbers where all are decimal numbers, else as text."""
    names = {entry.class_name for entry in entries}
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _finish(train: list[Entry], train_source: str, test: list[Entry] | None, test_source: str) -> Loaded:
    classes = class_order(train)
    raw = _raw(train, classes, train_source)
    return Loaded(raw, None if test is None else _raw(test, classes, test_source), classes)


def _one(found: dict[str, list[Entry]], source: str) -> list[Entry]:
    if len(found) > 1:
        raise InputError(f"{source} holds train/ and test/, and a zip of only one of them is wanted here; name the members class/image")
    return next(iter(found.values()), [])


def read(place: Path, name: str) -> Loaded:
    """Returns images by class as uint8 [N, C, H, W]: on disk in the order of sorted names, in a zip in the order of its members.

    `place` is a zip, or a folder with train/ and test/, with train.zip and test.zip, with <name>.zip, or with one folder a class; a zip
    holds class/image, or train/class/image and test/class/image, in a folder around all or not. Without a test part `test` is None.
    """
    with ExitStack() as stack, reading(str(place), SYSTEM):
        if not place.is_dir():
            found = _in_zip(stack.enter_context(Zip(place)))
            if set(found) == {"train", "test"}:
                return _finish(found["train"], f"{place}: train", found["test"], f"{place}: test")
            return _finish(_one(found, str(place)), str(place), None, "")
        if (place / "train.zip").is_file():
            train_zip, test_zip = place / "train.zip", place / "test.zip"
            train = _one(_in_zip(stack.enter_context(Zip(train_zip))), str(train_zip))
            test = _one(_in_zip(stack.enter_context(Zip(test_zip))), str(test_zip)) if test_zip.is_file() else None
            return _finish(train, str(train_zip), test, str(test_zip))
        if (place / "train").is_dir():
            held = place / "test"
            return _finish(
                list(_on_disk(place / "train")), str(place / "train"), list(_on_disk(held)) if held.is_dir() else None, str(held)
            )
        if (place / f"{name}.zip").is_file():
            return read(place / f"{name}.zip", name)
        return _finish(list(_on_disk(place)), str(place), None, "")
