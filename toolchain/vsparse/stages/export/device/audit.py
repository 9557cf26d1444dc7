"""The audit on the device (docs/numerics.md, section 11.2): logits against their certified enclosures."""

from __future__ import annotations

import math
from typing import Any

from vsparse.stages.export.device.basics import gate


def audit(model: dict[str, Any], results: list[list[float]], slack: float) -> dict[str, Any]:
    """Compares the logits of every probe with their certified enclosure; one outside voids the certificate here."""
    for probe, logits in zip(model["probes"], results):  # noqa: B905 (strict= is newer than Python 3.8; lengths are compared below)
        if len(logits) != len(probe["lower"]):
            return gate("audit", False, "{}: {} logits, not {}".format(probe["file"], len(logits), len(probe["lower"])))
        for i, value in enumerate(logits):
            room = slack * abs(value)
            if not (math.isfinite(value) and probe["lower"][i] - room <= value <= probe["upper"][i] + room):
                detail = "{}: logit {} is {!r}, outside [{!r}, {!r}]".format(probe["file"], i, value, probe["lower"][i], probe["upper"][i])
                return gate("audit", False, detail + "; the certificate does not hold on this device")
    return gate("audit", True, f"the logits of {len(results)} probe(s) lie inside their certified enclosures")
