"""The curve: clean, attacked and certified accuracy against the radius, by the cascade at each radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsparse.artifact.certificate import SEARCHED
from vsparse.contract import Contract
from vsparse.data import Dataset
from vsparse.recipe import Verify
from vsparse.schema import parse_fraction
from vsparse.stages.verify.certify import certify

# Inclusion of regions, both ways; nothing is assumed of the bounds.
DERIVED = (
    "a sample certified at a larger radius counts as certified at a smaller one, "
    "a sample falsified at a smaller radius as falsified at a larger one"
)
STEPS = 10


@dataclass(frozen=True)
class Point:
    """The accuracies at one radius, as shares of the curve's samples."""

    epsilon: str
    clean_accuracy: float
    attacked_accuracy: float
    certified_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the point as JSON values."""
        return {
            "epsilon": self.epsilon,
            "epsilon_value": float(parse_fraction(self.epsilon)),
            "clean_accuracy": self.clean_accuracy,
            "attacked_accuracy": self.attacked_accuracy,
            "certified_accuracy": self.certified_accuracy,
        }


@dataclass(frozen=True)
class Curve:
    """Points in ascending order of the radius, over the first `samples` samples."""

    samples: int
    contract: str
    points: tuple[Point, ...]
    derived: str = DERIVED

    def as_list(self) -> list[dict[str, Any]]:
        """Returns the points as JSON values."""
        return [point.as_dict() for point in self.points]


@dataclass(frozen=True)
class _Radius:
    norm: str
    epsilon: str
    brightness: str
    contrast: str
    samples: int


def default_radii(epsilon: str) -> tuple[str, ...]:
    """Returns ten steps to twice the radius, as exact texts."""
    radius = parse_fraction(epsilon)
    return tuple(str(radius * step / (STEPS // 2)) for step in range(1, STEPS + 1))


def curve(
    onnx_path: Path,
    dataset: Dataset,
    radii: Sequence[str],
    contract: Contract,
    settings: Verify,
    samples: int,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    state_directory: Path | None = None,
    clip: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    norm: str = "linf",
    brightness: str = "0",
    contrast: str = "0",
    searched_to: str | None = None,
) -> Curve:
    """Returns the accuracies of a classifier on disk at each radius, on the first samples of a dataset.

    The norm and the ranges of brightness and contrast are the same at each: a region with a larger radius contains one with a smaller one.
    Beyond the radius `searched_to` nothing is searched for: there most samples are open, and each would cost a whole branch and bound.
    `progress(done, total)` counts samples over all radii. With `state_directory` a run that was killed takes up where it stopped.
    Raises InputError as `certify` does.
    """
    ordered = sorted(set(radii), key=parse_fraction)
    correct: set[int] = set()
    certified: list[set[int]] = []
    falsified: list[set[int]] = []
    count = 0
    derived_only = settings.model_copy(update={"methods": tuple(method for method in settings.methods if method not in SEARCHED)})
    for place, epsilon in enumerate(ordered):
        certificate = certify(
            onnx_path,
            dataset,
            _Radius(norm, epsilon, brightness, contrast, samples),
            contract,
            settings if searched_to is None or parse_fraction(epsilon) <= parse_fraction(searched_to) else derived_only,
            jobs=jobs,
            progress=_shifted(progress, place, len(ordered)),
            state_directory=None if state_directory is None else state_directory / f"radius-{place}",
            clip=clip,
            seed=seed,
            compared=place > 0,
        )
        count = len(certificate.claims)
        correct = {claim.id for claim in certificate.claims if claim.predicted == claim.label}
        certified.append({claim.id for claim in certificate.claims if claim.verdict == "certified"})
        falsified.append({claim.id for claim in certificate.claims if claim.verdict == "falsified"})
    points = []
    for place, epsilon in enumerate(ordered):
        proved = set().union(*certified[place:])
        broken = set().union(*falsified[: place + 1])
        points.append(Point(epsilon, len(correct) / count, len(correct - broken) / count, len(proved & correct) / count))
    beyond = f"; beyond {searched_to} certified counts bounds that need no search" if searched_to is not None else ""
    return Curve(count, contract.name, tuple(points), DERIVED + beyond)


def _shifted(progress: Callable[[int, int], None] | None, place: int, radii: int) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(place * total + done, radii * total)
