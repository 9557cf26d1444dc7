"""The question of each claim as a VNN-LIB property: what a certificate states, for any other verifier to try."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsparse.artifact.certificate import Certificate
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.perturbation import PerturbationSet
from vsparse.stages.verify.certify import take_samples
from vsparse.stages.verify.deployed import read_model
from vsparse.vnnlib import Case, Constraint, InputBox, Query, write_vnnlib


def write_properties(directory: Path, certificate: Certificate, model: Path, dataset: Dataset) -> None:
    """Writes one .vnnlib file for each claim, `unsat` of which says that every input of the claim's ball is classified as its label.

    Each has the claim's verdict and contract in a comment. InputError where the region is no box, which is all that VNN-LIB 1.0 can say.
    """
    deployed = read_model(model)
    require_box(certificate.property)
    inputs, _ = take_samples(dataset, deployed, len(certificate.claims))
    for claim in certificate.claims:
        query = robustness(inputs[claim.id], claim.label, deployed.classes, claim.property)
        each = ", times a factor of each input" if claim.property.scales else ""
        comments = [
            f"{claim.model.file} (content SHA-256 {claim.model.sha256})",
            f"sample {claim.id}, label {claim.label}: within {claim.property.epsilon} (l-infinity{each}), clipped to {claim.property.clip}",
            f"vsparse says: {claim.verdict}, under the numeric contract {claim.contract}",
        ]
        write_vnnlib(directory / f"sample-{claim.id:06d}.vnnlib", query, comments)


def require_box(perturbation: PerturbationSet) -> None:
    """Raises InputError unless the regions are boxes: VNN-LIB states no others."""
    if not perturbation.is_box:
        raise InputError("VNN-LIB 1.0 states boxes alone, and the property is none; leave out --vnnlib, or ask for norm linf and no more")


def robustness(x: NDArray[np.float32], label: int, classes: int, perturbation: PerturbationSet) -> Query:
    """Returns the query whether an input of a box around x has another output at least as large as the label's."""
    low, high = map(Fraction, perturbation.clip)
    values = [Fraction(value) for value in x.ravel().tolist()]
    around = list(zip(values, perturbation.radii() or [perturbation.epsilon] * len(values), strict=True))
    box = InputBox(tuple(max(low, value - one) for value, one in around), tuple(min(high, value + one) for value, one in around))

    def unsafe() -> Iterator[tuple[Constraint, ...]]:
        for other in range(classes):
            if other != label:
                yield (Constraint(tuple(sorted(((label, Fraction(1)), (other, Fraction(-1))))), Fraction(0)),)

    return Query(len(values), classes, (Case(box, tuple(unsafe())),))
