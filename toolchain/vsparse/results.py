"""What functions of the package return beside results of stages: mappings and sequences that a notebook shows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vsparse.environment import Finding
from vsparse.notebook import pairs, table
from vsparse.target import Target


class CompressResult(dict[str, Any]):
    """The account of a network of one's own that was packed: the keys of compress/layers.json, `file`, and evidence on both files."""

    @property
    def file(self) -> str:
        """The path of the packed ONNX file."""
        return str(self["file"])

    @property
    def removed_share(self) -> float:
        """The fraction of the weights that are gone."""
        return float(self["removed_share"])

    @property
    def exactness(self) -> str:
        """Whether the packed network computes the same: `exact`, or up to what."""
        return str(self["exactness"])

    @property
    def layers(self) -> tuple[dict[str, Any], ...]:
        """Each layer before and after, with shapes, weights, multiply-accumulates and bytes."""
        return tuple(self["rows"])

    def _repr_html_(self) -> str:
        head = ("layer", "type", "before", "after", "weights before", "weights after")
        rows = [
            (
                one.get("name"),
                one.get("type"),
                one.get("shape_before"),
                one.get("shape_after"),
                one.get("weights_before"),
                one.get("weights_after"),
            )
            for one in self.get("rows", ())
        ]
        return table(
            self.get("file", "compressed"), head, rows, f"{100 * self.removed_share:.1f} % of the weights removed, {self.exactness}"
        )


class ExportResult(dict[str, Any]):
    """The files that were written for a target of a network of one's own, and what was compared before that."""

    @property
    def directory(self) -> str:
        """The directory that holds them."""
        return str(self["directory"])

    @property
    def target(self) -> str:
        """The name of the target."""
        return str(self["target"])

    def _repr_html_(self) -> str:
        return pairs("exported", (("directory", self.get("directory")), ("target", self.get("target"))))


class Findings(list[Finding]):
    """The parts of a machine that a build needs, each with whether it works."""

    @property
    def missing(self) -> tuple[Finding, ...]:
        """Those that every build needs and that do not work."""
        return tuple(one for one in self if one.required and one.status != "ok")

    def _repr_html_(self) -> str:
        head = ("part", "status", "version", "tried", "way out")
        return table("this machine", head, [(one.name, one.status, one.version, one.detail, one.way_out) for one in self])


class Targets(tuple[Target, ...]):
    """Targets, each with its device, runtime and precisions."""

    def _repr_html_(self) -> str:
        return targets_table(self)


def targets_table(found: Sequence[Target]) -> str:
    """Returns targets as a table."""
    rows = [(one.name, one.description, one.device.kind, one.runtime.name, ", ".join(one.precisions)) for one in found]
    return table("targets", ("name", "description", "device", "runtime", "precisions"), rows)
