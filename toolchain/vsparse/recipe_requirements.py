"""The recipe's section on requirements: ids of a specification, each mapped to the gate that decides it (docs/reference-recipe.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from vsparse.artifact.forms import FORMS, FURTHER
from vsparse.errors import nearest
from vsparse.recipe_gates import Gates
from vsparse.schema import Section

# The names in gates.json of gates that have a key in the recipe's section `gates`; those on certified accuracy are named by their form.
TITLES = {
    "live_certified_accuracy": "live certified accuracy",
    "certified_loss": "certified accuracy lost to sparsity",
    "weights_removed": "weights removed physically",
    "latency_ratio": "packed latency as a fraction of dense",
    "flash_kib": "flash",
    "ram_kib": "RAM",
    **{form.gate: "certified accuracy" if form.is_main else f"certified accuracy of {form.title}" for form in FORMS if form.gate},
}
# Gates without a key: those of every build, and those that follow from what the recipe and the target ask for.
ALWAYS = ("collapse", "certificates", "contract audit", "the runtime folds nothing", "a form to deploy")
CROSS_CHECK, ON_DEVICE = "cross-check with auto_LiRPA", "gates on the device"
AUDITS = {f"contract audit of {form.name}": form.name for form in FURTHER if form.audited}
# Limits of a microcontroller, which its target sets where the recipe does not.
OF_MEMORY = ("flash_kib", "ram_kib")


class Requirement(Section):
    """One requirement of a specification, and the gate that decides it: a key of `gates`, or the name of a gate in gates.json."""

    id: str = Field(min_length=1, max_length=64, pattern=r"^[^\s\x00-\x1f\x7f]+$", description="as your specification names it")
    text: str = Field(min_length=1, max_length=2000, description="what is required, in words")
    gate: str = Field(min_length=1, max_length=100, description="key of [gates] that is on, or the name of a gate in gates.json")

    @property
    def title(self) -> str:
        """The name in gates.json of the gate that decides it."""
        return TITLES.get(self.gate, self.gate.replace("_", " ") if self.gate in Gates.model_fields else self.gate)

    @property
    def key(self) -> str:
        """The key of the recipe's gates that turns its gate on; empty for a gate without one."""
        return next((name for name in Gates.model_fields if self.gate in (name, TITLES.get(name))), "")


def as_list(value: Any) -> Any:
    """Returns the section as a list: of `[[requirements]]` as it is, of `[requirements.ID]` with the ids put in, of one alone in a list."""
    if not isinstance(value, dict):
        return value
    if any(not isinstance(one, dict) for one in value.values()):
        return (value,)
    return tuple({"id": name, **one} for name, one in value.items())


def wrong_requirement(requirements: Sequence[Requirement], gates: Gates, cross_check: bool, precisions: Sequence[str] | None) -> str:
    """Returns the first thing that is wrong with the requirements of a recipe: an id twice, an unknown gate, one that is off; else "".

    `precisions` are the further forms; None where they are not known until there is a target. What only the target decides is left to
    `missing_gate`.
    """
    seen: set[str] = set()
    for one in requirements:
        if one.id in seen:
            return f'requirements: "{one.id}" is there twice; give each requirement an id of its own'
        seen.add(one.id)
        named = (*ALWAYS, CROSS_CHECK, ON_DEVICE, *AUDITS)
        if not one.key and one.gate not in named:
            hint = nearest(one.gate, [*Gates.model_fields, *named])
            return f'requirement "{one.id}": there is no gate "{one.gate}"{hint}; name a key of [gates], or a gate of gates.json'
        if one.key and not getattr(gates, one.key) and one.key not in OF_MEMORY:
            return f'requirement "{one.id}": its gate is off; set gates.{one.key}, or name another gate'
        if one.gate == CROSS_CHECK and not cross_check:
            return f'requirement "{one.id}": its gate "{CROSS_CHECK}" is off; set verify.cross_check and a region that it knows (linf)'
        form = AUDITS.get(one.gate, "")
        if precisions is not None and form in {member.name for member in FURTHER if member.asked == "precisions"} - set(precisions):
            return f'requirement "{one.id}": its gate "{one.gate}" is off; add "{form}" to export.precisions'
    return ""


def missing_gate(requirements: Sequence[Requirement], *, memory: bool, agent: bool, c_source: bool, c_int8: bool, target: str) -> str:
    """Returns what is wrong with the first requirement whose gate a target does not have: of memory, an agent, or C source; else ""."""
    for one in requirements:
        needed = {ON_DEVICE: agent, "contract audit of sequential": c_source, "contract audit of int8-c": c_int8}.get(one.gate, True)
        if one.key in OF_MEMORY:
            needed = memory
        if not needed:
            return (
                f'requirement "{one.id}": its gate "{one.gate}" is off for target {target}, which has nothing that it could judge; '
                "give the target that it is about, or name another gate"
            )
    return ""
