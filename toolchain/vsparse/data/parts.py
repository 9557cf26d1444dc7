"""The parts that a source is divided into, train, validation and test, by the names that people give their folders and files."""

from __future__ import annotations

from collections.abc import Iterable

from vsparse.errors import InputError

NAMES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def part_of(name: str) -> str | None:
    """Returns `train`, `validation` or `test` for one of the usual names in any casing, None for another name."""
    return next((part for part, names in NAMES.items() if name.lower() in names), None)


def parts_among(names: Iterable[str], source: str) -> dict[str, str]:
    """Returns the given names by the part that each stands for; InputError where two stand for one part, as only one would be read."""
    found: dict[str, str] = {}
    for name in names:
        part = part_of(name)
        if part is None:
            continue
        if part in found:
            raise InputError(f"{source} holds both {found[part]} and {name}, and each would be the {part} split; remove or rename one")
        found[part] = name
    return found
