"""The curve: clean, robust and certified accuracy against the radius, by the cascade at each radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsparse.artifact.certificate import SEARCHED
from vsparse.artifact.curve import CurvePoint
from vsparse.contract import Contract
from vsparse.data import Dataset
from vsparse.perturbation import PerturbationSet
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
class DrawnCurve:
    """Points in ascending order of the radius, over the first `samples` samples."""

    samples: int
    contract: str
    points: tuple[CurvePoint, ...]
    derived: str = DERIVED


def default_radii(epsilon: str) -> tuple[str, ...]:
    """Returns ten steps to twice the radius, as exact texts."""
    radius = parse_fraction(epsilon)
    return tuple(str(radius * step / (STEPS // 2)) for step in range(1, STEPS + 1))


def curve(
    onnx_path: Path,
    dataset: Dataset,
    perturbation: PerturbationSet,
    radii: Sequence[str],
    contract: Contract,
    settings: Verify,
    samples: int,
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    state_directory: Path | None = None,
    seed: int = 0,
    searched_to: str | None = None,
    cluster: str | None = None,
) -> DrawnCurve:
    """Returns the accuracies of a classifier on disk at each radius, on the first samples of a dataset.

    All but the radius is that of `perturbation`: a set with a larger radius contains one with a smaller one.
    Beyond the radius `searched_to` no search is made: there most samples are open, and each would cost a whole branch and bound.
    `progress(done, total)` counts samples over all radii. With `state_directory` a run that was killed resumes where it stopped.
    Raises InputError as `certify` does.
    """
    ordered = sorted(set(radii), key=parse_fraction)
    correct: set[int] = set()
    certified: list[set[int]] = []
    falsified: list[set[int]] = []
    count = 0
    derived_only = settings.model_copy(update={"methods": tuple(method for method in settings.methods if method not in SEARCHED)})
    for index, epsilon in enumerate(ordered):
        certificate = certify(
            onnx_path,
            dataset,
            perturbation.with_epsilon(epsilon),
            contract,
            settings if searched_to is None or parse_fraction(epsilon) <= parse_fraction(searched_to) else derived_only,
            samples=samples,
            jobs=jobs,
            progress=_shifted(progress, index, len(ordered)),
            state_directory=None if state_directory is None else state_directory / f"radius-{index}",
            seed=seed,
            compared=index > 0,
            cluster=cluster,
        )
        count = len(certificate.claims)
        correct = {claim.id for claim in certificate.claims if claim.predicted == claim.label}
        certified.append({claim.id for claim in certificate.claims if claim.verdict == "certified"})
        falsified.append({claim.id for claim in certificate.claims if claim.verdict == "falsified"})
    points = []
    for index, epsilon in enumerate(ordered):
        proved = set().union(*certified[index:])
        broken = set().union(*falsified[: index + 1])
        points.append(
            CurvePoint(
                epsilon=epsilon,
                epsilon_value=float(parse_fraction(epsilon)),
                clean_accuracy=len(correct) / count,
                robust_accuracy=len(correct - broken) / count,
                certified_accuracy=len(proved & correct) / count,
            )
        )
    beyond = f"; beyond {searched_to} certified counts bounds that need no search" if searched_to is not None else ""
    return DrawnCurve(count, contract.name, tuple(points), DERIVED + beyond)


def _shifted(progress: Callable[[int, int], None] | None, index: int, radii: int) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, radii * total)
