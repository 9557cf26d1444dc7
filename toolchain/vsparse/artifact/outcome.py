"""The results of a certificate: counts, accuracies, classes and methods, counted from its claims."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import fields
from math import fsum, sqrt

from pydantic import Field

from vsparse.artifact.certificate import SEARCHED, Certificate, Claim
from vsparse.artifact.document import Count, Fraction01, Part
from vsparse.contract import Contract
from vsparse.majority import AgainstMajority, against_majority, against_mean

# The order in which the cascade tries its methods.
CASCADE = ("clean", "interval", "crown-ibp", "crown", "attack", "photometric-split", "alpha-crown", "branch-and-bound", "none")


class ClassOutcome(Part):
    """One class: how many samples, and how many of them are classified correctly, robust under the attack, certified."""

    name: str
    samples: Count
    correct: Count
    robust: Count = Field(alias="withstood")
    certified: Count


class Confusion(Part):
    """How many undisturbed samples of one class are taken for another; the class of an answer that is no class is -1."""

    label: int
    predicted: int
    samples: Count


class MethodOutcome(Part):
    """One method: how many samples it settled each way, and the time spent on them in milliseconds."""

    name: str
    certified: Count
    falsified: Count
    unknown: Count
    time_ms_total: float


class RegressionOutcome(Part):
    """The answers of a network of regression beside the data: mean absolute and root mean square error, and those of the constant answer.

    `delta` is the most that a certified answer changes; `constant_mean_absolute_error` and `constant_rmse` are those of always answering
    the mean of these targets. Errors are over the samples whose answer is finite, None where none is.
    """

    delta: str
    delta_value: float
    mean_absolute_error: float | None
    rmse: float | None
    constant_mean_absolute_error: float
    constant_rmse: float


class NetworkOutcome(Part):
    """The claims about one network, added up.

    `correct` counts samples whose predicted label is the label, `certified` those that are correct and certified, `robust` those that
    are correct and not falsified (the truth lies between the two), `falsified` and `unknown` the correct ones with that verdict, so that
    correct = certified + falsified + unknown. Accuracies are fractions of all samples; `majority_accuracy` is that of a constant answer,
    the largest class. `confusions` are the pairs of classes that are mistaken, the most frequent first.
    """

    samples: Count
    correct: Count
    robust: Count = Field(alias="withstood")
    certified: Count
    falsified: Count
    unknown: Count
    clean_accuracy: Fraction01 = Field(alias="clean_share")
    robust_accuracy: Fraction01 = Field(alias="attacked_share")
    certified_accuracy: Fraction01 = Field(alias="certified_share")
    epsilon: str
    epsilon_value: float
    norm: str
    brightness: str
    contrast: str
    scales: tuple[str, ...] = Field((), exclude_if=().__eq__)
    clip: tuple[float, float]
    contract: dict[str, str]
    model_file: str
    model_sha256: str
    void_reason: str
    time_ms_total: float
    margin_lower_median: float | None
    classes: tuple[ClassOutcome, ...]
    confusions: tuple[Confusion, ...]
    methods: tuple[MethodOutcome, ...]
    proof_bytes_each: float | None
    against_majority: AgainstMajority
    majority_accuracy: Fraction01 = Field(alias="majority_share")
    regression: RegressionOutcome | None = Field(None, exclude_if=lambda value: value is None)

    @property
    def exact(self) -> bool:
        """Whether the contract is real arithmetic, which no device executes."""
        return "real" in (self.contract["name"], self.contract["storage"])


def outcome_of(certificate: Certificate) -> NetworkOutcome:
    """Adds up the claims of a certificate; its own summary is not used."""
    claims, region = certificate.claims, certificate.property
    correct = [claim for claim in claims if claim.predicted == claim.label]
    counts = Counter(claim.verdict for claim in correct)
    total, robust = len(claims), len(correct) - counts["falsified"]
    answers = _against_constant(certificate)
    searched = sum(claim.verdict == "certified" and claim.method in SEARCHED for claim in claims)
    return NetworkOutcome(
        samples=total,
        correct=len(correct),
        robust=robust,
        certified=counts["certified"],
        falsified=counts["falsified"],
        unknown=counts["unknown"],
        clean_accuracy=len(correct) / total,
        robust_accuracy=robust / total,
        certified_accuracy=counts["certified"] / total,
        epsilon=str(region.epsilon),
        epsilon_value=float(region.epsilon),
        norm=region.norm,
        brightness=str(region.brightness),
        contrast=str(region.contrast),
        scales=tuple(str(scale) for scale in region.scales),
        clip=region.clip,
        contract={**{field.name: "" for field in fields(Contract)}, **certificate.contract},
        model_file=certificate.model.file,
        model_sha256=certificate.model.sha256,
        void_reason=certificate.void,
        time_ms_total=sum(claim.time_ms for claim in claims),
        margin_lower_median=_median([c.margin_lower for c in correct if c.verdict == "certified" and c.margin_lower is not None]),
        classes=_by_class(claims, certificate.data.classes),
        confusions=_confusions(claims),
        methods=_by_method(claims),
        proof_bytes_each=certificate.proofs_bytes / searched if searched and certificate.proofs_sha256 else None,
        against_majority=answers,
        majority_accuracy=answers.majority_accuracy,
        regression=_regression(certificate),
    )


def _against_constant(certificate: Certificate) -> AgainstMajority:
    claims = certificate.claims
    if certificate.property.regression:
        return against_mean(_targets(claims), [claim.value for claim in claims])
    return against_majority([claim.label for claim in claims], [claim.predicted for claim in claims])


def _targets(claims: Sequence[Claim]) -> list[float]:
    return [claim.target for claim in claims if claim.target is not None]


def _regression(certificate: Certificate) -> RegressionOutcome | None:
    """Returns the errors of a regression's answers, None for a certificate of classes."""
    claims, delta = certificate.claims, certificate.property.delta
    if not delta:
        return None
    targets = _targets(claims)
    mean = fsum(targets) / len(targets)
    errors = [claim.value - claim.target for claim in claims if claim.value is not None and claim.target is not None]
    constant = [mean - target for target in targets]
    return RegressionOutcome(
        delta=str(delta),
        delta_value=float(delta),
        mean_absolute_error=_mean_absolute(errors) if errors else None,
        rmse=_root_mean_square(errors) if errors else None,
        constant_mean_absolute_error=_mean_absolute(constant),
        constant_rmse=_root_mean_square(constant),
    )


def _mean_absolute(errors: Sequence[float]) -> float:
    return fsum(abs(error) for error in errors) / len(errors)


def _root_mean_square(errors: Sequence[float]) -> float:
    return sqrt(fsum(error * error for error in errors) / len(errors))


def misclassified(certificate: Certificate) -> frozenset[int]:
    """Returns the ids of the samples that are classified wrongly even undisturbed."""
    return frozenset(claim.id for claim in certificate.claims if claim.predicted != claim.label)


def certified_ids(certificate: Certificate) -> tuple[int, ...]:
    """Returns the ids of the samples that are classified correctly and certified, in order: their places in the test split."""
    return tuple(sorted(claim.id for claim in certificate.claims if claim.verdict == "certified" and claim.predicted == claim.label))


def _confusions(claims: Sequence[Claim]) -> tuple[Confusion, ...]:
    pairs = Counter((claim.label, claim.predicted) for claim in claims if claim.predicted != claim.label)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Confusion(label=label, predicted=predicted, samples=count) for (label, predicted), count in ordered)


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2 if ordered else None


def _by_class(claims: Sequence[Claim], names: Sequence[str]) -> tuple[ClassOutcome, ...]:
    """Returns one row for each class that is named or occurs, in order; a class without samples keeps its row."""
    rows: dict[int, list[Claim]] = defaultdict(list)
    for claim in claims:
        rows[claim.label].append(claim)
    found = []
    for label in sorted(set(range(len(names))) | set(rows)):
        correct = [claim for claim in rows[label] if claim.predicted == label]
        found.append(
            ClassOutcome(
                name=names[label] if label < len(names) else str(label),
                samples=len(rows[label]),
                correct=len(correct),
                robust=sum(claim.verdict != "falsified" for claim in correct),
                certified=sum(claim.verdict == "certified" for claim in correct),
            )
        )
    return tuple(found)


def _by_method(claims: Sequence[Claim]) -> tuple[MethodOutcome, ...]:
    """Returns one row for each method, in the order in which the cascade tries them."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        groups[claim.method].append(claim)
    found = []
    for name in sorted(groups, key=CASCADE.index):
        counts = Counter(claim.verdict for claim in groups[name])
        found.append(
            MethodOutcome(
                name=name,
                certified=counts["certified"],
                falsified=counts["falsified"],
                unknown=counts["unknown"],
                time_ms_total=sum(claim.time_ms for claim in groups[name]),
            )
        )
    return tuple(found)
