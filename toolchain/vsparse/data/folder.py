"""Images in one folder a class, on disk or in a zip (which is never extracted)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import SYSTEM, Zip, reading
from vsparse.data.dataset import Loaded, Raw, check_shape
from vsparse.data.images import Remarks, decode
from vsparse.data.parts import part_of, parts_among
from vsparse.errors import InputError
from vsparse.files import read_bytes

LOOKED_FOR = "train/ and test/, train.zip, or one folder a class"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")
UNREAD = (".gif", ".tif", ".tiff", ".webp", ".heic", ".avif")
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Entry:
    """One image: its class name, how it is called in sentences, how its bytes are got, and the name of its file."""

    class_name: str
    source: str
    get: Callable[[], bytes]
    name: str = ""


@dataclass(frozen=True)
class FolderReading:
    """How images are read: the height and width that they are resized to, and what stands behind the track in a file's name, if any."""

    resize: tuple[int, ...] = ()
    track_separator: str = ""

    def track(self, entry: Entry) -> str:
        """Returns the name of an image's track: its file's up to the last separator; a number alone counts within its class."""
        stem = os.path.splitext(entry.name)[0]
        track = stem.rpartition(self.track_separator)[0]
        if not track:
            raise InputError(
                f'{entry.source}: the name has no "{self.track_separator}" behind a track, which data.track_separator asks for; rename the '
                "image, or leave data.track_separator out"
            )
        return f"{entry.class_name}/{track}" if track.isdecimal() else track


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
                yield Entry(path.name, str(file), lambda file=file: read_bytes(file, "the image", MAX_FILE_BYTES), file.name)  # type: ignore[misc]  # bound now
        if empty:
            raise InputError(f"the class folder {path} has no images; put some in, or remove it")


def _in_zip(archive: Zip) -> dict[str, list[Entry]]:
    """Returns the images of a zip in the order of its members: {"train": …, "test": …} where it has such parts, else {"": …}."""
    paths: list[tuple[tuple[str, ...], str]] = []
    for member in archive.members:
        parts = tuple(member.split("/"))
        if ".." in parts or parts[0] == "" or "\\" in member:
            raise InputError(f"{archive.source} has a member named {member[:80]!r}; names must be class/image: write the zip again")
        if member.endswith("/") or any(part.startswith(".") or part in ("", "__MACOSX") for part in parts):
            continue
        if _is_image(parts[-1], f"{archive.source}: {member}"):
            paths.append((parts, member))
    while paths and min(len(parts) for parts, _ in paths) > 2:
        outer = {parts[0] for parts, _ in paths}
        if len(outer) > 1 or any(part_of(name) for name in outer):
            break
        paths = [(parts[1:], member) for parts, member in paths]  # a wrapper around everything
    divided = bool(paths) and all(len(parts) == 3 and part_of(parts[0]) for parts, _ in paths)
    named = parts_among(dict.fromkeys(parts[0] for parts, _ in paths), archive.source) if divided else {}
    splits = {name: part for part, name in named.items()}
    found: dict[str, list[Entry]] = {}
    for parts, member in paths:
        if len(parts) != (3 if divided else 2):
            way = "name the members class/image, or train/class/image, val/class/image and test/class/image"
            raise InputError(f"{archive.source}: {member} does not lie in one folder a class; {way}")
        entry = Entry(parts[-2], f"{archive.source}: {member}", lambda member=member: _member(archive, member), parts[-1])  # type: ignore[misc]  # bound now
        found.setdefault(splits.get(parts[0], ""), []).append(entry)
    return found


def _member(archive: Zip, name: str) -> bytes:
    with archive.open(name, MAX_FILE_BYTES) as stream:
        return stream.read()


def _raw(entries: list[Entry], classes: tuple[str, ...], source: str, remarks: Remarks, how: FolderReading) -> Raw:
    if not entries:
        raise InputError(f"{source} holds no images; give {LOOKED_FOR}")
    number = {name: index for index, name in enumerate(classes)}
    for entry in entries:
        if entry.class_name not in number:
            what = f'is of the class "{entry.class_name[:60]}", which the training images do not have'
            raise InputError(f"{entry.source} {what}; add it there or remove it")
    mode, first = decode(entries[0].get(), entries[0].source, None, "", remarks, how.resize)
    shape = (len(entries), *first.shape)
    check_shape(shape, 1, source)
    wanted = (mode, (first.shape[2], first.shape[1]))
    pixels: NDArray[Any] = np.empty(shape, dtype=np.uint8)
    pixels[0] = first
    for index, entry in enumerate(entries[1:], start=1):
        pixels[index] = decode(entry.get(), entry.source, wanted, entries[0].source, remarks, how.resize)[1]
    return Raw(pixels, 255.0, np.array([number[entry.class_name] for entry in entries], dtype=np.int64), source)


def _tracks(parts: dict[str, ImagePart], how: FolderReading) -> dict[str, NDArray[np.int64]]:
    """Returns the number of each image's track, by part; InputError for a track that is in two parts."""
    names: dict[str, int] = {}
    seen: dict[str, str] = {}
    found = {}
    for part, images in parts.items():
        tracks = [how.track(entry) for entry in images.entries]
        for track in dict.fromkeys(tracks):
            if seen.setdefault(track, part) != part:
                raise InputError(
                    f'track "{track}" is in both {parts[seen[track]].source} and {images.source}, so the test would not be held out; move '
                    "it, rename the files of one, or leave data.track_separator out"
                )
        found[part] = np.array([names.setdefault(track, len(names)) for track in tracks], dtype=np.int64)
    return found


def class_order(entries: list[Entry]) -> tuple[str, ...]:
    """Returns the class names, sorted: as numbers where all are decimal numbers, else as text."""
    names = {entry.class_name for entry in entries}
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


@dataclass(frozen=True)
class ImagePart:
    """One part of the data: where it lies, in words, and its images."""

    source: str
    entries: list[Entry]


def _finish(parts: dict[str, ImagePart], how: FolderReading, notes: tuple[str, ...] = ()) -> Loaded:
    """Decodes every part; the classes are those of the training part."""
    tracks = _tracks(parts, how) if how.track_separator else {}
    classes, remarks = class_order(parts["train"].entries), Remarks()
    raws = {name: replace(_raw(part.entries, classes, part.source, remarks, how), groups=tracks.get(name)) for name, part in parts.items()}
    said = remarks.sentences(sum(len(part.entries) for part in parts.values()))
    return Loaded(raws["train"], raws.get("test"), classes, raws.get("validation"), (*notes, *said))


def _one(found: dict[str, list[Entry]], source: str) -> list[Entry]:
    if len(found) > 1:
        raise InputError(
            f"{source} holds {' and '.join(found)}, and a zip of only one of them is wanted here; name the members class/image"
        )
    return next(iter(found.values()), [])


def parts_at(location: Path) -> dict[str, Path]:
    """Returns the folders train, validation and test of a folder, by part, where its training part has class folders; else nothing.

    A folder `train` that holds images itself is a class, of trains. InputError where two folders stand for one part.
    """
    with reading(str(location)):
        folders = [path for path in _visible(location) if path.is_dir()] if location.is_dir() else []
    if not any(part_of(path.name) == "train" and has_classes(path) for path in folders):
        return {}
    named = parts_among((path.name for path in folders), str(location))
    return {part: location / name for part, name in named.items()}


def zips_at(location: Path) -> dict[str, Path]:
    """Returns the zips train, validation and test of a folder, by part; nothing without a training part."""
    names = (
        {path.stem: path for path in _visible(location) if path.suffix.lower() == ".zip" and path.is_file()} if location.is_dir() else {}
    )
    if not any(part_of(name) == "train" for name in names):
        return {}
    return {part: names[name] for part, name in parts_among(names, str(location)).items()}


def _left_out(location: Path, used: dict[str, Path]) -> tuple[str, ...]:
    """Returns a sentence for every folder beside the parts that is not read, hidden ones apart."""
    others = [path for path in _visible(location) if path.is_dir() and path not in used.values()]
    beside = " and ".join(path.name for path in used.values())
    return tuple(
        f'the folder "{path.name}" beside {beside} is not read{", though it holds images" if has_classes(path.parent / path.name) else ""}'
        for path in others
    )


def parts_of(stack: ExitStack, location: Path, name: str) -> tuple[dict[str, ImagePart], tuple[str, ...]]:
    """Returns the images of each part of `location`, not decoded, and sentences on what is left out; archives stay open in `stack`."""
    if not location.is_dir():
        found = _in_zip(stack.enter_context(Zip(location)))
        if "train" in found and len(found) > 1:
            return {part: ImagePart(f"{location}: {part}", entries) for part, entries in found.items()}, ()
        return {"train": ImagePart(str(location), _one(found, str(location)))}, ()
    zips = zips_at(location)
    if zips:
        parts = {part: ImagePart(str(path), _one(_in_zip(stack.enter_context(Zip(path))), str(path))) for part, path in zips.items()}
        return parts, _left_out(location, zips)
    folders = parts_at(location)
    if folders:
        return {part: ImagePart(str(path), list(_on_disk(path))) for part, path in folders.items()}, _left_out(location, folders)
    if (location / f"{name}.zip").is_file():
        return parts_of(stack, location / f"{name}.zip", name)
    return {"train": ImagePart(str(location), list(_on_disk(location)))}, ()


def read(location: Path, name: str, how: FolderReading = FolderReading()) -> Loaded:
    """Returns images by class as uint8 [N, C, H, W]: on disk in the order of sorted names, in a zip in the order of its members.

    `location` is a zip, or a folder with train/, val/ and test/, with train.zip, val.zip and test.zip, with <name>.zip, or with one folder
    a class; a zip holds class/image, or train/class/image and the like, in a folder around all or not. Without a test or validation part
    that one is None. What was left out, and what decoders said, stands in `notes`.
    """
    with ExitStack() as stack, reading(str(location), SYSTEM):
        parts, notes = parts_of(stack, location, name)
        return _finish(parts, how, notes)
