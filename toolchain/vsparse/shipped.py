"""The recipes and targets that come with the package: inside the wheel, or beside `toolchain/` in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["models", "targets"]


def shipped_directory(kind: Kind) -> Path:
    """Returns the folder that holds the shipped TOML files of a kind."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent.parent / kind


def shipped_names(kind: Kind) -> list[str]:
    """Returns the sorted names of what is shipped."""
    return sorted(path.stem for path in shipped_directory(kind).glob("*.toml"))


def shipped_file(kind: Kind, name: str) -> Path | None:
    """Returns the file of a shipped name, or None; a name with a path in it is never a shipped one."""
    return shipped_directory(kind) / f"{name}.toml" if name in shipped_names(kind) else None
