"""The recipe that an ONNX file of the user's own stands for where a recipe is wanted: the network as it is, in every form of the target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vsparse.file_kind import kind_of_file
from vsparse.recipe_data import BUILT_IN
from vsparse.recipe_train import OF_START


def is_network(name: str) -> bool:
    """Whether what is given for a recipe is an ONNX file, by its first bytes."""
    return kind_of_file(Path(name)) == "onnx"


def of_network(path: Path) -> dict[str, Any] | None:
    """Returns the content of the recipe that the ONNX file at `path` stands for; None where it is none.

    The architecture is the file's, nothing is trained (train.epochs = 0), and every form that the target offers is exported.
    """
    if not is_network(str(path)):
        return None
    return {
        "name": _named(path, "network"),
        "description": f"the network of {path.name} as it is"[:200],
        "data": {"name": "data"},
        "network": {"architecture": OF_START},
        "train": {"start": str(path.absolute()), "epochs": 0, "sparsity": 0.0},
        "export": {"precisions": ["auto"]},
    }


def about_data(data: Path | str | None) -> tuple[list[str], Path | None]:
    """Returns settings that name the data of --data, and its folder or file: a built-in dataset by its name, or what lies there."""
    if data is None:
        return [], None
    path = Path(data)
    if not path.exists() and str(data) in BUILT_IN:
        return [f"data.name={data}"], None
    name = _named(path.absolute(), "data")
    return [f"data.name={name if name not in BUILT_IN else 'data'}"], path


def source_of(recipe: str, data: Path | str | None, settings: list[str] | None) -> tuple[bool, Path | str | None, list[str]]:
    """Returns whether an ONNX file is given for a recipe, and then data and settings as its recipe takes them; else those given."""
    if not is_network(recipe):
        return False, data, list(settings or [])
    named, place = about_data(data)
    return True, place, [*named, *(settings or [])]


def _named(path: Path, otherwise: str) -> str:
    """Returns a name made of a file's, of the characters that recipes take."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:64].strip("-._") or otherwise
