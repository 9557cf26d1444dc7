"""A recipe under way: keys with the reason for each, and what a person should know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vsparse.recipe import Recipe
from vsparse.schema import validate


@dataclass
class Draft:
    """Keys by their dotted names in the order of the file, a reason for each, and warnings."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, reason: str) -> None:
        """Sets a key, with its reason."""
        self.values[key], self.reasons[key] = value, reason

    def recipe(self) -> Recipe:
        """Returns the keys as a recipe."""
        content: dict[str, Any] = {}
        for key, value in self.values.items():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return validate(Recipe, content, "the suggested recipe")
