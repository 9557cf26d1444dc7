"""TinyImageNet as it is distributed, unpacked: train/CLASS/images, val/images and val/val_annotations.txt, 200 classes of 64×64 pixels."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from pathlib import Path

import numpy as np

from vsparse.data.bounded import reading
from vsparse.data.dataset import MAX_SAMPLES, Loaded, Raw, check_shape
from vsparse.data.folder import MAX_FILE_BYTES, SUFFIXES
from vsparse.data.images import Remarks, decode
from vsparse.errors import InputError
from vsparse.files import read_bytes

ANNOTATIONS = Path("val") / "val_annotations.txt"
LOOKED_FOR = f"train/CLASS/images and {ANNOTATIONS}"
SHAPE = (3, 64, 64)
MAX_ANNOTATION_BYTES = 64 * 2**20


def find(path: Path) -> bool:
    """Returns whether a folder is laid out as tiny-imagenet-200."""
    return (path / ANNOTATIONS).is_file() and (path / "train").is_dir()


def read(folder: Path) -> Loaded:
    """Returns the training images by class, and as the test split those of val/: test/ has no labels.

    Classes are the WordNet numbers in the order of their text; images are sorted by name within a class, and those of val/ are in the order
    of val_annotations.txt. Grey images, of which the set has some, are read as three equal channels.
    """
    if not find(folder):
        raise InputError(f"{folder} is not TinyImageNet: {LOOKED_FOR} are wanted there; unpack its zip")
    remarks = Remarks()
    with reading(str(folder)):
        names = tuple(sorted(path.name for path in (folder / "train").iterdir() if path.is_dir() and not path.name.startswith(".")))
        number = {name: index for index, name in enumerate(names)}
        train = [(path, number[name]) for name in names for path in _images(folder / "train" / name / "images")]
    test = list(_annotated(folder, number))
    raws = [_decoded(samples, str(where), remarks) for samples, where in ((train, folder / "train"), (test, folder / "val"))]
    return Loaded(raws[0], raws[1], names, notes=remarks.sentences(len(train) + len(test)))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"the folder {folder} is not there; unpack tiny-imagenet-200.zip again")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    if not found:
        raise InputError(f"the folder {folder} has no images; unpack tiny-imagenet-200.zip again")
    return found


def _annotated(folder: Path, number: dict[str, int]) -> Iterable[tuple[Path, int]]:
    """Yields the images of val/ with their classes: lines of a file's name, a class and the corners of a box, between tabs."""
    path = folder / ANNOTATIONS
    with reading(str(path)):
        lines = read_bytes(path, "the classes of val/", MAX_ANNOTATION_BYTES).decode().splitlines()
    seen: set[str] = set()
    for line, text in zip(count(1), lines, strict=False):
        if not text.strip():
            continue
        name, _, rest = text.partition("\t")
        known = rest.partition("\t")[0]
        if known not in number:
            raise InputError(f"{path}, line {line}: {known[:40]!r} is no class of train/; unpack tiny-imagenet-200.zip again")
        if Path(name).name != name or name in ("", ".", "..") or "\0" in name or "\\" in name or name in seen:
            raise InputError(
                f"{path}, line {line}: {name[:60]!r} is no name of one image, or comes twice; unpack tiny-imagenet-200.zip again"
            )
        seen.add(name)
        yield folder / "val" / "images" / name, number[known]


def _decoded(samples: list[tuple[Path, int]], source: str, remarks: Remarks) -> Raw:
    if not 0 < len(samples) <= MAX_SAMPLES:
        raise InputError(f"{source} names {len(samples)} images; unpack tiny-imagenet-200.zip again")
    check_shape((len(samples), *SHAPE), 1, source)
    pixels = np.empty((len(samples), *SHAPE), dtype=np.uint8)
    for index, (path, _) in enumerate(samples):
        mode, found = decode(read_bytes(path, "the image", MAX_FILE_BYTES), str(path), None, "", remarks)
        if found.shape[1:] != SHAPE[1:]:
            size = f"{found.shape[2]} × {found.shape[1]}"
            raise InputError(f"{path} has {size} pixels, and TinyImageNet's images 64 × 64; unpack tiny-imagenet-200.zip again")
        if mode == "L":
            remarks.add("are grey and read as three equal channels", str(path))
        pixels[index] = found
    return Raw(pixels, 255.0, np.array([label for _, label in samples], dtype=np.int64), source)
