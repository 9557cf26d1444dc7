"""Evidence of the comparison of a file with its reading, as it is kept beside certificates and in `--json` outputs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from vsparse.reading.runtime import VERSION
from vsparse.schema import Section

FILE = "reading.json"


class ReadingEvidence(Section):
    """Evidence that a file is executed as it was read; it exists only where nothing differed.

    `points` float32 inputs were executed at each of `levels` with each of `threads` and of `batches`, `executions` in all, and
    `values_compared` numbers compared with their enclosures under `contract`. `largest_share` is the largest fraction of an enclosure's
    half-width that one of them used, rounded to three digits, and `largest_share_at` words the node. `shapes_compared` tensors have the
    shape that ONNX's strict inference gives them. `unchecked` says why optimised graphs were not executed: no contract is about what
    they compute, as of quantised files whose integer operators may overflow; such a file is certified under `real` alone.
    """

    model_config = ConfigDict(strict=True)

    schema_version: Literal[1] = 1
    contract: str
    levels: tuple[str, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    points: int
    executions: int
    shapes_compared: int
    values_compared: int
    largest_share: float
    largest_share_at: str
    unchecked: str = ""
    runtime: str = "onnxruntime"
    runtime_version: str = VERSION

    def as_dict(self) -> dict[str, Any]:
        """Returns the evidence as JSON values."""
        return self.model_dump(mode="json")
