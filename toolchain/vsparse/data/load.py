"""`load`: from a recipe's data section to three checked splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.data.bounded import SYSTEM, reading
from vsparse.data.dataset import MAX_CLASSES, Dataset, Loaded, Raw, Splits, check
from vsparse.data.features import Feature, scaled_splits
from vsparse.data.names import CLASS_NAMES, SHAPES
from vsparse.data.source import read_source
from vsparse.data.split import TEST, VALIDATION, hold_out
from vsparse.errors import InputError
from vsparse.files import canonical_json
from vsparse.recipe import Data

# How the origin of a split begins that the source has not.
DRAWN = "drawn out of"


def _class_names(loaded: Loaded, name: str) -> tuple[str, ...]:
    """Returns the class names: those of a built-in dataset, else the source's, else the numbers up to the greatest training label."""
    known, own = CLASS_NAMES.get(name), loaded.classes
    labels, source = loaded.train.labels, loaded.train.source
    if own is None:
        greatest = int(labels.max()) if labels.size else 0
        if known is None and greatest >= MAX_CLASSES:
            raise InputError(
                f"{source}: label {greatest} is out of range, at most {MAX_CLASSES} classes are read; number the classes from 0"
            )
        own = known or tuple(str(number) for number in range(greatest + 1))
    if known is not None:
        numbered = all(text.isascii() and text.isdecimal() for text in own)
        if len(own) != len(known) or (not numbered and own != known):
            what = f'has {len(own)} classes ("{own[0]}", …), and {name} has {len(known)} ("{known[0]}", …)'
            raise InputError(f"{source} {what}; give your data another data.name")
        return known
    if len(own) < 2 and loaded.train.targets is None:
        raise InputError(f"{source} has {len(own)} class; a classifier needs at least 2")
    if len(set(own)) != len(own):
        raise InputError(f"{source} has two classes of one name; rename one")
    for text in own:
        if not text or not text.isprintable():  # also refuses names that are not UTF-8, which are read as lone surrogates
            raise InputError(f"{source} has a class whose name is empty or not printable ({text!r:.60}); rename it")
    return own


def _take(data: Dataset, index: NDArray[np.int64]) -> Dataset:
    groups = None if data.groups is None else data.groups[index]
    targets = None if data.targets is None else data.targets[index]
    return Dataset(data.pixels[index], data.scale, data.labels[index], data.classes, groups, targets)


def _hold_out(data: Dataset, fraction: float, seed: int, purpose: int, source: str) -> tuple[Dataset, Dataset]:
    stay, held = hold_out(data.labels, data.groups, fraction, seed, purpose, source)
    return _take(data, stay), _take(data, held)


def _require_every_class(train: Dataset, source: str) -> None:
    missing = np.flatnonzero(np.bincount(train.labels, minlength=len(train.classes)) == 0)
    if missing.size:
        what = train.classes[int(missing[0])]
        raise InputError(f'{source}: class "{what}" has no training samples; add some, or number the classes without gaps')


def _check_pair(train: Raw, test: Raw) -> None:
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        wanted, got = list(train.pixels.shape[1:]), list(test.pixels.shape[1:])
        raise InputError(f"{test.source} has images of shape {got}, and {train.source} has {wanted}; make them one")
    if train.scale != test.scale:
        raise InputError(f"{test.source} and {train.source} differ in type (8-bit and float); save both in one")


def _digest(name: str, splits: tuple[Dataset, ...]) -> str:
    digest = hashlib.sha256()
    for data in splits:
        header = [name, list(data.classes), data.scale, list(data.pixels.shape), data.pixels.dtype.str, data.groups is not None]
        digest.update(canonical_json(header))
        for array in (data.pixels, data.labels, data.groups, data.targets):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def load(spec: Data, root: Path | None, seed: int) -> Splits:
    """Returns the train, validation and test splits of a dataset; each keeps the order of the source.

    `root` is the folder given with --data; None means the environment variable VSPARSE_DATA. Where the source has a test split it is the
    test split as it is; else `spec.test` of the samples is held out. So with the validation split: that of the source, or
    `spec.validation` of the training samples. Both are drawn by `seed`, by class, and by whole groups where there are groups. Raises
    InputError, one sentence, for everything that is not right with the data.
    """
    with reading(f'the data for "{spec.name}"', SYSTEM):
        loaded = read_source(spec, root)
    source = loaded.train.source
    classes = _class_names(loaded, spec.name)
    train = check(loaded.train, classes)
    shape = tuple(train.pixels.shape[1:])
    if shape != SHAPES.get(spec.name, shape):
        known = list(SHAPES[spec.name])
        raise InputError(f"{source} has images of shape {list(shape)}, and {spec.name} has {known}; give your data another data.name")
    origins = {}
    if loaded.test is None:
        origins["test"] = _drawn(spec.test, train, source, seed)
        train, test = _hold_out(train, spec.test, seed, TEST, source)
    else:
        test = check(loaded.test, classes)
        _check_pair(loaded.train, loaded.test)
        origins["test"] = Path(loaded.test.source).name
    if loaded.validation is None:
        origins["validation"] = _drawn(spec.validation, train, source, seed)
        train, validation = _hold_out(train, spec.validation, seed, VALIDATION, source)
    else:
        validation = check(loaded.validation, classes)
        _check_pair(loaded.train, loaded.validation)
        origins["validation"] = Path(loaded.validation.source).name
    origins["train"] = Path(source).name
    _require_every_class(train, source)
    features: tuple[Feature, ...] = ()
    notes = loaded.notes
    if loaded.columns:
        (train, validation, test), features, told = scaled_splits(loaded.columns, train, validation, test)
        notes += told
    channels = train.pixels.shape[1]
    if len(spec.mean) not in (0, channels):
        raise InputError(
            f"data.mean and data.std have {len(spec.mean)} values, and {source} has {channels} channels; give one of each per channel"
        )
    return Splits(train, validation, test, spec.name, _digest(spec.name, (train, validation, test)), origins, notes, features)


def _drawn(fraction: float, data: Dataset, source: str, seed: int) -> str:
    each = " of each class" if data.targets is None else ""
    return f"{DRAWN} {Path(source).name}, {100 * fraction:g} %{each} of its {len(data)} samples, by seed {seed}"
