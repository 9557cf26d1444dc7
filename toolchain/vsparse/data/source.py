"""Where a dataset lies, and in which format: the search behind `data.format = "auto"`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vsparse.data import bundled, cifar, cifar100, folder, idx, npz, svhn, table, tinyimagenet
from vsparse.data.dataset import Loaded
from vsparse.data.names import FOLDERS
from vsparse.errors import InputError
from vsparse.recipe import Data

VARIABLE = "VSPARSE_DATA"
LOOKED_FOR = {"idx": idx.LOOKED_FOR, "npz": npz.LOOKED_FOR, "cifar": cifar.LOOKED_FOR, "folder": folder.LOOKED_FOR}
LOOKED_FOR |= {"cifar100": cifar100.LOOKED_FOR, "svhn": svhn.LOOKED_FOR, "tinyimagenet": tinyimagenet.LOOKED_FOR}
LOOKED_FOR |= table.LOOKED_FOR


def formats_at(location: Path, name: str) -> list[str]:
    """Returns the formats whose usual names are at `location`, a folder or a file."""
    if location.is_file():
        by_suffix = {".npz": "npz", ".zip": "folder", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
        found = by_suffix.get(location.suffix.lower(), "cifar" if cifar.find(location) else "cifar100" if cifar100.find(location) else "")
        return [found] if found else []
    if not location.is_dir():
        return []
    found_here = {
        "idx": idx.find(location, "train", "images", 3) is not None,
        "npz": bool(npz.files_at(location)) or (location / f"{name}.npz").is_file(),
        "cifar": cifar.find(location) is not None,
        "cifar100": cifar100.find(location) is not None,
        "svhn": svhn.find(location),
        "tinyimagenet": tinyimagenet.find(location),
        **{suffix: bool(table.files_at(location, suffix)) or (location / f"{name}.{suffix}").is_file() for suffix in table.LOOKED_FOR},
        "folder": bool(folder.zips_at(location))
        or (location / f"{name}.zip").is_file()
        or bool(folder.parts_at(location))
        or folder.has_classes(location),
    }
    return [format_ for format_, there in found_here.items() if there]


def paths(spec: Data, root: Path) -> list[Path]:
    """Returns the folders or files to look at: data.path alone where it is given, else root/<name> (and its aliases), then root."""
    if spec.path:
        return [root / spec.path]
    return [*(root / name for name in FOLDERS.get(spec.name, (spec.name,))), root]


def _root(spec: Data, root: Path | None) -> Path:
    if root is not None:
        return root
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if spec.path and Path(spec.path).is_absolute():
        return Path()
    raise InputError(
        f'the dataset "{spec.name}" is read from files; give their folder with --data DIR, or in the environment variable {VARIABLE}'
    )


def _require_images(spec: Data, format_: str, what: str) -> None:
    if format_ != "folder" and (spec.resize or spec.track_separator):
        key = "resize" if spec.resize else "track_separator"
        raise InputError(f"data.{key} is about images in folders and zips, and {what} is read as {format_}; leave it out")


def _read(format_: str, location: Path, spec: Data) -> Loaded:
    name = spec.name
    _require_images(spec, format_, str(location))
    if spec.is_regression and format_ not in ("npz", *table.LOOKED_FOR):
        raise InputError(
            f'{location} is read as {format_}, which has classes, and data.kind = "regression" wants numbers: those of a column of a table '
            "(csv, parquet), or of the array y of an .npz archive"
        )
    if format_ in ("idx",) and not location.is_dir():
        raise InputError(f"{location} is a file, and the IDX format is a folder with {idx.LOOKED_FOR} in it; set data.path to that folder")
    if format_ == "idx":
        return idx.read(location)
    if format_ == "npz":
        return npz.read(location, name, spec.layout, spec.range, spec.is_regression)
    if format_ in table.LOOKED_FOR:
        return table.read(location, spec, format_)
    if format_ == "cifar":
        return cifar.read(location)
    if format_ in ("cifar100", "svhn", "tinyimagenet"):
        return {"cifar100": cifar100.read, "svhn": svhn.read, "tinyimagenet": tinyimagenet.read}[format_](location)
    return folder.read(location, name, folder.FolderReading(spec.resize, spec.track_separator))


def read_source(spec: Data, root: Path | None) -> Loaded:
    """Returns what the recipe's data section names; raises InputError saying what was looked for and where when it is not there."""
    if "\0" in spec.path or "\0" in spec.name:
        raise InputError("data.name and data.path must be plain text without NUL characters; correct the recipe")
    inside = spec.name if spec.format == "auto" and not spec.path else spec.format
    if inside in bundled.BUNDLED:
        what, read = bundled.BUNDLED[inside]
        _require_images(spec, inside, f'the data "{spec.name}"')
        note = f"{what} bundled, so nothing is read from {root}; give your own data another data.name"
        return replace(read(), notes=() if root is None else (note,))
    base = _root(spec, root)
    if not base.exists():
        raise InputError(f"the data folder {base} is not there; give another with --data DIR")
    for location in paths(spec, base):
        found = formats_at(location, spec.name)
        if spec.format in found or (spec.format != "auto" and location.is_file()):
            return _read(spec.format, location, spec)
        if spec.format == "auto" and len(found) == 1:
            return _read(found[0], location, spec)
        if spec.format == "auto" and found:
            raise InputError(f"{location} holds data in more than one format ({', '.join(found)}); choose one with data.format")
    wanted = "; ".join(LOOKED_FOR.values()) if spec.format == "auto" else LOOKED_FOR[spec.format]
    where = ", ".join(str(location) for location in paths(spec, base))
    raise InputError(f'no data for "{spec.name}": looked for {wanted}; in {where}; give the folder that holds it with --data DIR')
