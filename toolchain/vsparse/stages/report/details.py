"""Models as flat lists of names and values, for tables of details and for report.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vsparse.artifact.checks import AuditRecord, CrossCheckRecord
from vsparse.artifact.document import Scalar
from vsparse.artifact.latency import LatencyFile
from vsparse.artifact.layers import Equality

Details = list[tuple[str, Scalar]]
# Results and bookkeeping of a latency file; all else says how and where it was measured.
NO_CONDITIONS = ("schema_version", "model", "content_sha256", "block_samples")


def plain(value: object) -> str:
    """Returns a value as text for people: yes and no, at most six significant digits, at most 300 characters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 300 else text[:300] + "…"


def details(record: AuditRecord | CrossCheckRecord | Equality) -> Details:
    """Returns what a check states beside its verdict."""
    return _flat(record.model_dump(mode="json").items(), ("schema_version", "passed", "reason"))


def conditions(measured: LatencyFile) -> Details:
    """Returns how and where latencies were measured: what both networks share, and the settings of the packed one."""
    shared = [("method", measured.method), ("block_runs", measured.block_runs)]
    machine = [(f"machine.{name}", value) for name, value in measured.packed.machine.items()]
    return _flat([*shared, *measured.packed.settings.items(), *machine], NO_CONDITIONS)


def _flat(items: Iterable[tuple[str, Any]], skip: tuple[str, ...]) -> Details:
    """Returns the values that say something, short lists joined, long ones by their length."""
    found: Details = []
    for name, value in items:
        if name in skip or value is None or value in ("", (), []):
            continue
        if isinstance(value, list | tuple):
            found.append((name, ", ".join(map(plain, value)) if len(value) <= 8 else f"{len(value)} entries"))
        else:
            found.append((name, value))
    return found
