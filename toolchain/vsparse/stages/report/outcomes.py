"""What a certificate's claims add up to: counts, shares, classes and methods, always counted again from the claims themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsparse.files import canonical_json, sha256_bytes
from vsparse.majority import AgainstMajority, against_majority
from vsparse.schema import parse_fraction
from vsparse.stages.report.reading import Part, damaged

VERDICTS = ("certified", "falsified", "unknown")
CASCADE = ("clean", "interval", "crown-ibp", "crown", "attack", "photometric-split", "alpha-crown", "branch-and-bound", "none")
SEARCHED = ("alpha-crown", "branch-and-bound")
# A certificate's own hash is over everything but these (vsparse.artifact.certificate.NOT_HASHED).
NOT_HASHED = ("time_ms", "certificate_sha256")


@dataclass(frozen=True)
class ClassOutcome:
    """One class: how many test samples, and how many of them are classified correctly, withstood the attack, are certified."""

    name: str
    samples: int
    correct: int
    withstood: int
    certified: int


@dataclass(frozen=True)
class MethodOutcome:
    """One method: how many samples it settled each way, and the time spent on them in milliseconds (None: not recorded)."""

    name: str
    certified: int
    falsified: int
    unknown: int
    time_ms_total: float | None


@dataclass(frozen=True)
class Contract:
    """The numeric contract of a certificate; fields are empty where the certificate gives only its name."""

    name: str
    storage: str = ""
    operand: str = ""
    accumulate: str = ""
    order: str = ""
    convolution: str = ""
    subnormals: str = ""

    @property
    def real(self) -> bool:
        """Whether this is real arithmetic, which no device executes."""
        return "real" in (self.name, self.storage)


@dataclass(frozen=True)
class Outcome:
    """The claims about one network, added up.

    `correct` counts samples whose predicted label is the label, `certified` those that are correct and certified,
    `withstood` those that are correct and not falsified (attacked accuracy: the truth lies between the two), `falsified`
    and `unknown` the correct ones with that verdict, so that correct = certified + falsified + unknown. Shares are of
    all samples.
    """

    samples: int
    correct: int
    withstood: int
    certified: int
    falsified: int
    unknown: int
    clean_share: float
    attacked_share: float
    certified_share: float
    epsilon: str
    epsilon_value: float
    norm: str
    brightness: str
    contrast: str
    clip: tuple[float, float]
    contract: Contract
    model_file: str
    model_sha256: str
    void_reason: str
    time_ms_total: float | None
    margin_lower_median: float | None
    classes: tuple[ClassOutcome, ...]
    methods: tuple[MethodOutcome, ...]
    proof_bytes_each: float | None
    against_majority: AgainstMajority

    @property
    def majority_share(self) -> float:
        """What a constant answer, the largest class of the samples, would have right."""
        return self.against_majority.majority_share


@dataclass(frozen=True)
class Claim:
    """One claim, as far as the report needs it."""

    id: int
    label: int
    predicted: int
    verdict: str
    method: str
    margin_lower: float | None
    time_ms: float | None


def read_claim(part: Part) -> Claim:
    """Reads one claim; InputError for a missing field, an unknown verdict, or a verdict that its own margin contradicts."""
    label, predicted = part.count("label"), part.integer("predicted")
    identity = part.count("id")
    verdict = part.text("verdict")
    if label is None or predicted is None or identity is None:
        raise damaged(part.path, f"{part.place} lacks its id, label or predicted label")
    if verdict not in VERDICTS:
        raise part.wrong("verdict", "certified, falsified or unknown")
    margin = part.number("margin_lower")
    if verdict == "certified" and (predicted != label or margin is None or margin <= 0):
        raise damaged(
            part.path,
            f"{part.place} is certified with a margin of {margin}, label {label} and prediction {predicted}, which proves nothing",
        )
    return Claim(identity, label, predicted, verdict, part.text("method", default="not recorded"), margin, part.number("time_ms"))


def read_contract(part: Part) -> Contract:
    """Reads the contract of a certificate, given as an object of fields or as a name."""
    value = part.find(("contract",))[1]
    if isinstance(value, str):
        return Contract(value)
    inner = part.part("contract") or Part({}, part.path, "contract")
    names = ("storage", "operand", "accumulate", "order", "convolution", "subnormals")
    return Contract(inner.text("name", default="unnamed"), **{name: inner.text(name) for name in names})


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2 if ordered else None


def _total(claims: Sequence[Claim]) -> float | None:
    times = [claim.time_ms for claim in claims if claim.time_ms is not None]
    return sum(times) if times else None


def by_class(claims: Sequence[Claim], names: Sequence[str]) -> tuple[ClassOutcome, ...]:
    """Returns one row for each class that is named or occurs, in order; a class without samples keeps its row."""
    rows: dict[int, list[Claim]] = defaultdict(list)
    for claim in claims:
        rows[claim.label].append(claim)
    labels = sorted(set(range(len(names))) | set(rows))
    result = []
    for label in labels:
        correct = [claim for claim in rows[label] if claim.predicted == label]
        result.append(
            ClassOutcome(
                name=names[label] if label < len(names) else str(label),
                samples=len(rows[label]),
                correct=len(correct),
                withstood=sum(claim.verdict != "falsified" for claim in correct),
                certified=sum(claim.verdict == "certified" for claim in correct),
            )
        )
    return tuple(result)


def by_method(claims: Sequence[Claim]) -> tuple[MethodOutcome, ...]:
    """Returns one row for each method, in the order in which the cascade tries them."""
    groups: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        groups[claim.method].append(claim)
    rows = []
    for name, members in sorted(groups.items(), key=lambda item: (CASCADE.index(item[0]) if item[0] in CASCADE else len(CASCADE), item[0])):
        counts = Counter(claim.verdict for claim in members)
        rows.append(MethodOutcome(name, counts["certified"], counts["falsified"], counts["unknown"], _total(members)))
    return tuple(rows)


def misclassified(part: Part) -> frozenset[int]:
    """Returns the ids of the samples that are classified wrongly even undisturbed."""
    return frozenset(claim.id for claim in map(read_claim, part.parts("claims")) if claim.predicted != claim.label)


def class_names(part: Part | None) -> tuple[str, ...]:
    """Returns the names of the classes where a document lists them, itself or in its `data`."""
    if part is None:
        return ()
    values = part.items("classes") or (part.part("data") or part).items("classes")
    return tuple(str(value) for value in values if isinstance(value, str | int))


def _void_reason(part: Part) -> str:
    """Returns why a certificate is void: its own word for it, or that it no longer has the hash it was written with."""
    reason = part.text("void")
    recorded = part.text("certificate_sha256")
    if not reason and recorded and sha256_bytes(canonical_json(_without(part.content))) != recorded:
        return f"{part.path.name} was changed after it was written, its certificate_sha256 no longer fits"
    return reason


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(item) for key, item in value.items() if key not in NOT_HASHED}
    return [_without(item) for item in value] if isinstance(value, list) else value


def read_outcome(part: Part, names: Sequence[str]) -> Outcome:
    """Adds up a certificate; InputError where it is damaged, has no claims, or has two for one sample.

    The certificate's own summary is not used: what is shown follows from the claims.
    """
    claims = [read_claim(item) for item in part.parts("claims")]
    if not claims:
        raise damaged(part.path, "it has no claims")
    if len({claim.id for claim in claims}) != len(claims):
        raise damaged(part.path, "two claims are about one sample")
    wanted, model = part.part("property"), part.part("model")
    if wanted is None or model is None or part.find(("contract",))[1] is None:
        raise damaged(part.path, "it lacks its property, model or contract")
    correct = [claim for claim in claims if claim.predicted == claim.label]
    counts = Counter(claim.verdict for claim in correct)
    radius = wanted.text("epsilon")
    total = len(claims)
    clip = wanted.numbers("clip") or [0.0, 1.0]
    if len(clip) != 2 or not clip[0] <= clip[1]:
        raise wanted.wrong("clip", "two numbers, the lower one first")
    return Outcome(
        samples=total,
        correct=len(correct),
        withstood=len(correct) - counts["falsified"],
        certified=counts["certified"],
        falsified=counts["falsified"],
        unknown=counts["unknown"],
        clean_share=len(correct) / total,
        attacked_share=(len(correct) - counts["falsified"]) / total,
        certified_share=counts["certified"] / total,
        epsilon=radius,
        epsilon_value=_epsilon_value(radius, part.path),
        norm=wanted.text("norm", default="linf"),
        brightness=wanted.text("brightness", default="0"),
        contrast=wanted.text("contrast", default="0"),
        clip=(clip[0], clip[1]),
        contract=read_contract(part),
        model_file=model.text("file"),
        model_sha256=model.text("sha256"),
        void_reason=_void_reason(part),
        time_ms_total=_total(claims),
        margin_lower_median=_median([c.margin_lower for c in correct if c.verdict == "certified" and c.margin_lower is not None]),
        classes=by_class(claims, names),
        methods=by_method(claims),
        against_majority=against_majority([claim.label for claim in claims], [claim.predicted for claim in claims]),
        proof_bytes_each=_bytes_each(part, sum(claim.verdict == "certified" and claim.method in SEARCHED for claim in claims)),
    )


def _bytes_each(part: Part, searched: int) -> float | None:
    """Returns how many bytes of proofs.npz a searched claim takes, None where there is none."""
    size = part.number("proofs_bytes")
    return size / searched if searched and size is not None else None


def _epsilon_value(text: str, path: Path) -> float:
    try:
        return float(parse_fraction(text))
    except ValueError as error:
        raise damaged(path, f"property.epsilon: {error}") from error
