"""What the section on a microcontroller's memory shows: its flash and RAM, and what each C file takes of them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from vsparse.artifact.checks import Gate
from vsparse.artifact.choice import form_in_memory
from vsparse.artifact.elsewhere import HARNESS
from vsparse.artifact.facts import Facts
from vsparse.artifact.forms import INT8_C, SEQUENTIAL
from vsparse.artifact.models import CSourceRecord
from vsparse.target import Device, target_of

__all__ = ["GATES", "HARNESS", "MemoryGate", "MemoryRow", "device_of", "files", "gates"]
# The gates on memory, each with its fact of the target.
GATES = {"flash": "flash", "RAM": "ram"}


@dataclass(frozen=True)
class MemoryRow:
    """One C file: its name, its key in report.json, its record, and whether the gates on memory are about it."""

    file: str
    key: str
    record: CSourceRecord
    judged: bool


@dataclass(frozen=True)
class MemoryGate:
    """A memory of the device: its name, how much of it there is and who says so, and the gate on it; None where there is none."""

    name: str
    has: str
    source: str
    gate: Gate | None


def device_of(facts: Facts) -> Device | None:
    """Returns the device of the artifact's target where that is a microcontroller; None for any other. InputError where it is damaged."""
    device = tomllib.loads(facts.target_toml).get("device", {})
    bare = isinstance(device, dict) and device.get("kind") == "microcontroller"
    return target_of(facts.target_toml).device if bare else None


def files(facts: Facts) -> tuple[MemoryRow, ...]:
    """Returns the C files of an artifact for a microcontroller, with the one that its gates are about; () for another target."""
    if device_of(facts) is None:
        return ()
    about = form_in_memory("" if facts.choice is None else facts.choice.chosen, facts.c_int8 is not None)
    found = ((SEQUENTIAL, "c_source", facts.c_source), (INT8_C, "c_int8", facts.c_int8))
    return tuple(MemoryRow(form.file, key, record, form is about) for form, key, record in found if record is not None)


def gates(facts: Facts) -> tuple[MemoryGate, ...]:
    """Returns flash and RAM of the target, each with its gate."""
    device = device_of(facts)
    if device is None:
        return ()
    judged = {gate.name: gate for gate in facts.gates}
    rows = []
    for name, key in GATES.items():
        fact = device.facts[key]
        source = "; ".join(filter(None, (fact.source, fact.note)))
        rows.append(MemoryGate(name, f"{fact.value:,g} {fact.unit}", source, judged.get(name)))
    return tuple(rows)
