"""audit.json and cross_check.json: the attempts to refute a certificate, and their results; gates.json: the requirements on a build."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from vsparse.artifact.document import Count, Document, Part, read_list

AUDIT = "audit.json"
# How the reason of a cross-check begins that was not made, as the second verifier is not installed or does not work here.
NOT_RUN = "not run: "
CROSS_CHECK = "cross_check.json"


class AuditRecord(Document):
    """What an audit executed and found. `largest_share` is the largest fraction of an allowed error E that an intermediate value used."""

    passed: bool
    reason: str
    contract: str
    samples: Count
    points: Count
    sessions: Count
    executions: Count
    logits_checked: Count
    values_checked: Count = Field(alias="intermediate_values_checked")
    largest_share: float = Field(ge=0, alias="largest_share_of_allowed_error")
    largest_share_at: str
    violations: Count
    shown: tuple[str, ...]

    @property
    def stands(self) -> bool:
        """Whether it passed and counts no violation; where the two fields contradict each other, the stricter one counts."""
        return self.passed and not self.violations

    @property
    def why(self) -> str:
        """Why it does not stand, without a full stop; empty where it does."""
        if self.stands or self.reason:
            return "" if self.stands else self.reason.rstrip(".")
        return f"{self.violations} violation{'s' if self.violations > 1 else ''}" if self.violations else FAILED


class CrossCheckRecord(Document):
    """How our bounds compare with a second verifier's, over all margins of all samples; `passed` is None where it has none to compare."""

    passed: bool | None
    reason: str
    second_verifier: str
    method: str
    epsilon: str
    samples: Count
    bounds_compared: Count
    largest_excess: float | None
    largest_shortfall: float | None
    largest_excess_with_rounding: float | None
    tolerance: float

    @property
    def stands(self) -> bool | None:
        """Whether no bound contradicts the second verifier's; None where there is no second opinion."""
        return self.passed

    @property
    def not_run(self) -> bool:
        """Whether it is still to be made: the second verifier was not at hand, which says nothing about the network."""
        return self.passed is None and self.reason.startswith(NOT_RUN)

    @property
    def why(self) -> str:
        """Why it failed, or why there is no second opinion; empty where it passed."""
        return self.reason.rstrip(".") or (FAILED if self.passed is False else "")


FAILED = "it did not pass"


class Gate(Part):
    """One thing the build had to reach, in words for people; `passed` is None where it could not be measured, or not be run, here."""

    name: str
    wanted: str
    got: str
    passed: bool | None

    @property
    def open_because(self) -> str:
        """What to call a gate that is neither passed nor failed: `not run` where a tool was absent, otherwise `not measured`."""
        return "not run" if self.got.startswith(NOT_RUN) else "not measured"


def read_gates(path: Path) -> tuple[Gate, ...]:
    """Reads gates.json; none where the file is absent, InputError where it is damaged."""
    return read_list(Gate, path) if path.exists() else ()
