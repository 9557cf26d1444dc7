"""smoothing.json: what randomised smoothing certifies, each claim with a probability; a file of its own, no certificate has such claims."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vsparse.artifact.document import SHA256, Count, Document, Fraction01, Part

FILE = "smoothing.json"


class SmoothedClaim(Part):
    """What is claimed of one sample: `predicted` is −1 where nothing is (abstained), and then the radius is 0.

    `votes` of `draws` fell on `candidate`; `p_lower` is the lower end of the one-sided Clopper–Pearson interval at 1 − α.
    """

    id: Count
    input_sha256: str = Field(pattern=SHA256)
    label: int
    candidate: int
    predicted: int
    votes: Count
    draws: Count
    p_lower: Fraction01
    radius: float = Field(ge=0)


class SmoothingSummary(Part):
    """Counts over the claims; `certified_accuracy_at_0` is the fraction predicted as their label, at any radius."""

    samples: Count
    abstained: Count
    certified_accuracy_at_0: Fraction01


class SmoothingResult(Document):
    """The document: the network, the noise that was drawn (`sigma`, `n0`, `n`, `alpha`, `seed`), what a claim means, and the claims.

    `reading` is the evidence that the runtime executes the file as it was read (`vsparse.reading.ReadingEvidence`).
    """

    kind: Literal["probabilistic"] = "probabilistic"
    norm: Literal["l2"] = "l2"
    meaning: str
    assumption: str
    theorem: str
    model: dict[str, str]
    data: str
    sigma: float
    n0: Count
    n: Count
    alpha: float
    seed: int
    noise: str
    replay: dict[str, str]
    reading: dict[str, Any] | None
    summary: SmoothingSummary
    claims: tuple[SmoothedClaim, ...]
