"""Gates, audits and cross-checks as an artifact records them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsparse.stages.report import measurements
from vsparse.stages.report.measurements import Value
from vsparse.stages.report.reading import Part, damaged, load_json


@dataclass(frozen=True)
class Gate:
    """One thing the build had to reach; `passed` is None where it could not be measured here."""

    name: str
    wanted: str
    got: str
    passed: bool | None


@dataclass(frozen=True)
class Check:
    """A cross-check or audit: whether it found a violation (None: it does not say), and its numbers as text."""

    passed: bool | None
    reason: str
    details: tuple[tuple[str, Value], ...]


def read_gates(path: Path) -> tuple[Gate, ...]:
    """Reads gates.json: a list of gates, or an object that holds one; none where the file is absent."""
    if not path.exists():
        return ()
    content = load_json(path)
    holder = Part(content if isinstance(content, dict) else {"gates": content}, path, "")
    gates = []
    for item in holder.parts("gates"):
        passed = item.flag("passed")
        if passed is None and "passed" not in item.content:
            raise damaged(path, f"{item.place} does not say whether it passed")
        wanted, got = (
            measurements.plain(item.find((name,))[1]) if item.find((name,))[1] is not None else "–" for name in ("wanted", "got")
        )
        gates.append(Gate(item.text("name"), wanted, got, passed))
    return tuple(gates)


def violations(part: Part) -> int | None:
    """Returns how many violations a check recorded, as a number or as a list of them; None where it does not say."""
    name, value = part.find(("violations", "violated", "failures"))
    return len(value) if isinstance(value, list) else int(value) if isinstance(value, bool) else part.count(name)


def read_check(part: Part | None) -> Check | None:
    """Reads a cross-check or audit by its `passed`, its `violations` (a number or a list) or both; the stricter one counts."""
    if part is None:
        return None
    passed = part.flag("passed", "ok", "sound")
    found = violations(part)
    reason = part.text("reason", "message", "note")
    if found:
        passed = False
        reason = reason or f"{found} violation{'s' if found > 1 else ''}"
    elif passed is None and found == 0:
        passed = True
    if passed is False:
        reason = (reason or "it did not pass").rstrip(".")
    return Check(passed, reason, measurements.flat_facts(part, ("schema_version", "passed", "reason")))
