"""certificate/live.json: what the live certificate answers on test samples, and verdicts for the checker to replay (docs/live.md)."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vsparse.artifact.document import SHA256, Count, Document, Part
from vsparse.artifact.forms import INT8_C
from vsparse.schema import ExactNumber, parse_fraction

LIVE = "certificate/live.json"


class LivePoint(Part):
    """How many samples the device certifies at one radius, by itself, and of how many of these the class is the right one.

    `epsilon` is exact text; `device_epsilon` the float32 number that the device is called with, which is not below it. With a budget of
    backward passes `by_intervals` of them are certified without any.
    """

    epsilon: ExactNumber
    device_epsilon: float = Field(ge=0)
    samples: int = Field(ge=1)
    certified: Count
    right: Count
    by_intervals: Count | None = Field(None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.right <= self.certified <= self.samples:
            raise ValueError(f"{self.right} of {self.certified} of {self.samples} are no counts of one set")
        if self.device_epsilon < parse_fraction(self.epsilon):
            raise ValueError(f"device_epsilon {self.device_epsilon} is below epsilon {self.epsilon}")
        if self.by_intervals is not None and self.by_intervals > self.certified:
            raise ValueError(f"{self.by_intervals} of {self.certified} cannot be certified by intervals alone")
        return self

    @property
    def certified_share(self) -> float:
        """The fraction of the samples that are certified, whatever their class."""
        return self.certified / self.samples

    @property
    def accuracy(self) -> float:
        """The live certified accuracy: the fraction of the samples that are certified with the right class."""
        return self.right / self.samples


class LiveFrame(Part):
    """One verdict of `NAME_certify` on the test sample with this id, whose input the certificate holds, and its `NAME_radius`."""

    id: Count
    epsilon: float = Field(ge=0)
    label: int = Field(ge=-1)
    certified: bool
    margin: float
    radius: float = Field(ge=-1)


class LiveCost(Part):
    """What the live certificate takes beside inference: bytes of the C text without vectors, and medians on the building machine.

    `constant_bytes` are tables in flash, without code, and `static_bytes` is RAM without stack. The times are of one frame in turns, at the
    property's radius; None where there was no compiler.
    """

    constant_bytes: Count
    static_bytes: Count
    live_constant_bytes: Count
    live_static_bytes: Count
    inference_us: float | None = Field(None, gt=0)
    certify_us: float | None = Field(None, gt=0)

    @property
    def time_ratio(self) -> float | None:
        """The time of one verdict as a multiple of one inference."""
        return None if self.inference_us is None or self.certify_us is None else self.certify_us / self.inference_us


class LiveAnswers(Part):
    """The live certificate of the network with the hash `network_sha256`, executed, under a contract.

    `at_epsilon` counts every test sample at the property's radius, `curve` some of them at other radii; `frames` are single verdicts.
    `computed_by` is `compiled C` or `simulation`, whose bits are the same (docs/numerics.md, section 14). `budget` is how many backward
    passes a verdict may take (docs/numerics.md, section 16); with one, a sample counts at each radius of `curve` up to the largest that
    certifies it.
    """

    network_sha256: str = Field(pattern=SHA256)
    contract: str
    computed_by: str
    cost: LiveCost
    at_epsilon: LivePoint
    curve: tuple[LivePoint, ...]
    frames: tuple[LiveFrame, ...]
    budget: int = Field(0, ge=0, exclude_if=lambda value: value == 0)


class LiveRecord(LiveAnswers, Document):
    """What model.c answers, the float32 network, and in `int8` what model.int8.c does, where there is one; both clip to `clip`."""

    clip: tuple[float, float]
    int8: LiveAnswers | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `int8` out where there is none."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "int8" or value is not None}

    def answers_of(self, form: str) -> LiveAnswers:
        """Returns the answers of the form that is deployed, by its name: those in integers of `int8-c`, those in float32 of any other."""
        return self.int8 if form == INT8_C.name and self.int8 is not None else self
