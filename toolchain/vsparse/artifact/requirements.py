"""The requirements of a recipe, judged by the gates of an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from vsparse.artifact.checks import Gate
from vsparse.artifact.document import Part
from vsparse.errors import InputError
from vsparse.recipe_requirements import Requirement, as_list
from vsparse.schema import validate

RequirementStatus = Literal["met", "not met", "not run", "void"]


class JudgedRequirement(Part):
    """A requirement with what its gate found. Without a gate that was decided it is `not run`, and never met."""

    id: str
    text: str
    gate: str
    wanted: str
    got: str
    status: RequirementStatus


def requirements_of(recipe: dict[str, Any]) -> tuple[Requirement, ...]:
    """Returns the requirements of a parsed recipe.toml; InputError, which names the key, for what is none."""
    listed = as_list(recipe.get("requirements", ()))
    if not isinstance(listed, list | tuple) or not all(isinstance(one, dict) for one in listed):
        raise InputError("recipe.toml: requirements should be a list of tables with id, text and gate; build the artifact again")
    return tuple(validate(Requirement, one, "recipe.toml", f"requirements.{place}") for place, one in enumerate(listed))


def judge_requirements(requirements: Sequence[Requirement], gates: Sequence[Gate], void: str = "") -> tuple[JudgedRequirement, ...]:
    """Returns each requirement with what its gate found; `void` is why nothing that the artifact claims may be relied on."""
    by_name = {gate.name: gate for gate in gates}
    return tuple(_judged(one, by_name.get(one.title), void) for one in requirements)


def _judged(one: Requirement, gate: Gate | None, void: str) -> JudgedRequirement:
    wanted, got, status = "", "its gate was not judged in this artifact", "not run"
    if gate is not None:
        wanted, got = gate.wanted, gate.got
        status = "not run" if gate.passed is None else "met" if gate.passed else "not met"
    if status == "met" and void:
        got, status = f"{got}, but {void}", "void"
    return JudgedRequirement.model_validate(
        {"id": one.id, "text": one.text, "gate": one.title, "wanted": wanted, "got": got, "status": status}
    )
