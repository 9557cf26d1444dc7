"""Splits in one file, for workers that have no data of their own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.data.dataset import Dataset, Splits
from vsparse.data.load import load
from vsparse.errors import InputError
from vsparse.recipe import Recipe

NAMES = ("train", "validation", "test")
VERSION = 1


def pack_splits(splits: Splits) -> bytes:
    """Returns a file of all three splits: the same bytes for the same splits."""
    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {"version": VERSION, "name": splits.name, "sha256": splits.sha256, "origins": splits.origins}
    about["notes"] = list(splits.notes)
    for name in NAMES:
        data: Dataset = getattr(splits, name)
        about[name] = {"scale": data.scale, "classes": list(data.classes)}
        arrays |= {f"{name}_pixels": data.pixels, f"{name}_labels": data.labels}
        arrays |= {} if data.groups is None else {f"{name}_groups": data.groups}
        arrays |= {} if data.targets is None else {f"{name}_targets": data.targets}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **{"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays})
    return file.getvalue()


def unpack_splits(path: Path) -> Splits:
    """Returns the splits that a file of `pack_splits` holds; InputError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about["version"] != VERSION:
                raise ValueError("another version of its format")
            train, validation, test = (
                Dataset(
                    file[f"{name}_pixels"],
                    float(about[name]["scale"]),
                    file[f"{name}_labels"],
                    tuple(about[name]["classes"]),
                    file[f"{name}_groups"] if f"{name}_groups" in file.files else None,
                    file[f"{name}_targets"] if f"{name}_targets" in file.files else None,
                )
                for name in NAMES
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the data {path} cannot be read ({error}); run the same command again") from error
    return Splits(train, validation, test, about["name"], about["sha256"], dict(about["origins"]), tuple(about["notes"]))


def splits_of(payload: Mapping[str, Any], recipe: Recipe) -> Splits:
    """Returns the splits of a task: those of the file `splits` where its payload names one, else loaded from `data` as the recipe says."""
    if payload.get("splits"):
        return unpack_splits(Path(payload["splits"]))
    return load(recipe.data, None if payload["data"] is None else Path(payload["data"]), recipe.train.seed)
