"""Two artifacts against each other: what differs, how much, and whether the samples can tell the difference from luck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsparse.artifact.certificate import Certificate, Claim
from vsparse.artifact.certified_forms import CertificateRow, read_certificates
from vsparse.artifact.facts import Facts, gather
from vsparse.artifact.forms import FORMS
from vsparse.errors import InputError
from vsparse.notebook import table
from vsparse.proportion import clopper_pearson, fisher, mcnemar
from vsparse.schema import parse_document
from vsparse.stages.profile.difference import MedianRatio, compare_profiles

LEVEL = 0.05
PAIRED = "McNemar's exact test, on the same samples"
APART = "Fisher's exact test, as the samples are not the same"
SHARES = (("clean", "Clean accuracy"), ("certified", "Certified accuracy"))


@dataclass(frozen=True)
class ValueDifference:
    """One thing whose value is not the same in both; "" stands for what one of them has not."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class ShareDifference:
    """One share of two artifacts: counts, 95 % intervals, and the chance of such a difference between networks that are equally good.

    `only_a` and `only_b` count the samples on which one alone succeeds; None where the samples are not the same. `same_question` is
    whether both are about one property (radius, norm, light) under one contract: else the shares answer two questions.
    """

    form: str
    share: str
    a: tuple[int, int]
    b: tuple[int, int]
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    samples_in_both: int
    only_a: int | None
    only_b: int | None
    p_value: float
    test: str
    same_question: bool

    @property
    def significant(self) -> bool:
        """Whether luck explains the difference with a chance below 5 % only."""
        return self.p_value < LEVEL

    @property
    def points(self) -> float:
        """How many percentage points more B has than A, on the samples of both where they are paired."""
        if self.only_a is not None and self.only_b is not None:
            return 100 * (self.only_b - self.only_a) / self.samples_in_both
        return 100 * (self.b[0] / self.b[1] - self.a[0] / self.a[1])

    @property
    def verdict(self) -> str:
        """What that comes to in words."""
        if self.only_a == self.only_b == 0:
            return "the same on every sample"
        if not self.significant:
            return f"no significant difference (p = {self.p_value:.2g})"
        return f"{'B' if self.points > 0 else 'A'} is significantly better (p = {self.p_value:.2g})"

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        sides = {
            name: {"count": count[0], "samples": count[1], "share": count[0] / count[1], "interval": list(interval)}
            for name, count, interval in (("a", self.a, self.a_interval), ("b", self.b, self.b_interval))
        }
        return {
            "form": self.form,
            "share": self.share,
            **sides,
            "points": self.points,
            "samples_in_both": self.samples_in_both,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "test": self.test,
            "p_value": self.p_value,
            "significant": self.significant,
            "same_question": self.same_question,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class ArtifactComparison:
    """What two artifacts are and where they differ, section by section; `notes` say what could not be compared, or only with care."""

    a: Path
    b: Path
    names: tuple[str, str]
    verdicts: tuple[str, str]
    recipe: tuple[ValueDifference, ...]
    target: tuple[ValueDifference, ...]
    shares: tuple[ShareDifference, ...]
    sizes: tuple[ValueDifference, ...]
    forms: tuple[ValueDifference, ...]
    latency: tuple[MedianRatio, ...]
    gates: tuple[ValueDifference, ...]
    hashes: tuple[ValueDifference, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing but times differs."""
        return not (self.recipe or self.target or self.sizes or self.forms or self.hashes)

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        found = {
            name: [{"name": one.name, "a": one.a, "b": one.b} for one in getattr(self, name)]
            for name in ("recipe", "target", "sizes", "forms", "gates", "hashes")
        }
        return {
            "schema_version": 1,
            "a": {"directory": str(self.a), "name": self.names[0], "verdict": self.verdicts[0]},
            "b": {"directory": str(self.b), "name": self.names[1], "verdict": self.verdicts[1]},
            "same": self.same,
            "shares": [one.as_dict() for one in self.shares],
            "latency": [one.as_dict() for one in self.latency],
            **found,
            "notes": list(self.notes),
        }

    def _repr_html_(self) -> str:
        rows = [(one.form, one.share, f"{one.a[0]} of {one.a[1]}", f"{one.b[0]} of {one.b[1]}", one.verdict) for one in self.shares]
        return table(f"A: {self.a}, B: {self.b}", ("form", "share", "A", "B", "difference"), rows)


def compare_artifacts(a: Path | str, b: Path | str) -> ArtifactComparison:
    """Compares two artifacts; raises InputError where one is none, or is damaged."""
    one, other = Path(a), Path(b)
    left, right = gather(one), gather(other)
    certificates = read_certificates(one), read_certificates(other)
    notes: list[str] = []
    for name, facts in (("A", left), ("B", right)):
        notes += [f"{name} is void: {reason}" for reason in facts.void_reasons]
    shares = tuple(_shares(*certificates))
    if any(not share.same_question for share in shares):
        notes.append("The certificates are about different properties or contracts: their certified shares answer different questions.")
    if any(share.test == PAIRED and share.a[1] != share.b[1] for share in shares):
        notes.append("One artifact is certified on more samples: differences in points are of those that both are certified on.")
    if shares and any(share.test == APART for share in shares):
        notes.append("The samples are not the same, so that differences are judged without pairing them, which finds fewer.")
    latency: tuple[MedianRatio, ...] = ()
    try:
        profiles = compare_profiles(one, other)
        latency, notes = profiles.rows, [*notes, *profiles.notes]
    except InputError as error:
        notes.append(f"Latency was not compared: {error}.")
    return ArtifactComparison(
        a=one,
        b=other,
        names=(left.name, right.name),
        verdicts=(left.verdict, right.verdict),
        recipe=tuple(_differing(_keys(left.recipe_toml), _keys(right.recipe_toml))),
        target=tuple(_differing(_keys(left.target_toml), _keys(right.target_toml))),
        shares=shares,
        sizes=tuple(_differing(_sizes(one, left), _sizes(other, right))),
        forms=tuple(_differing(_forms(left), _forms(right))),
        latency=latency,
        gates=tuple(_differing(_gates(left), _gates(right))),
        hashes=tuple(_differing(_hashes(left, certificates[0]), _hashes(right, certificates[1]))),
        notes=tuple(dict.fromkeys(notes)),
    )


def _shares(a: Mapping[str, Certificate], b: Mapping[str, Certificate]) -> Iterator[ShareDifference]:
    for form in FORMS:
        if form.name in a and form.name in b:
            yield from (_share(form.name, key, a[form.name], b[form.name]) for key, _ in SHARES)


def _share(form: str, key: str, a: Certificate, b: Certificate) -> ShareDifference:
    ours, theirs = {_sample(claim): _succeeds(claim, key) for claim in a.claims}, {_sample(c): _succeeds(c, key) for c in b.claims}
    both = ours.keys() & theirs.keys()
    counts = [(sum(found.values()), len(found)) for found in (ours, theirs)]
    # Paired where the certificates are about one set of samples, or one about a part of the other's.
    paired = bool(both) and len(both) == min(len(ours), len(theirs))
    only_a = sum(ours[sample] and not theirs[sample] for sample in both) if paired else None
    only_b = sum(theirs[sample] and not ours[sample] for sample in both) if paired else None
    p_value = mcnemar(only_a, only_b) if only_a is not None and only_b is not None else fisher(*counts[0], *counts[1])
    same = key == "clean" or (a.property == b.property and a.contract == b.contract)
    return ShareDifference(
        form, key, counts[0], counts[1], clopper_pearson(*counts[0]), clopper_pearson(*counts[1]),
        len(both), only_a, only_b, p_value, PAIRED if paired else APART, same,
    )  # fmt: skip


def _sample(claim: Claim) -> tuple[int, str, int]:
    """What makes two claims be about one sample: its place, the hash of its input, and its label."""
    return claim.id, claim.input_sha256, claim.label


def _succeeds(claim: Claim, key: str) -> bool:
    return claim.predicted == claim.label and (key == "clean" or claim.verdict == "certified")


def _keys(text: str) -> dict[str, str]:
    """Returns the keys of a TOML document with their values as text, sections before a dot."""
    return dict(_flat(parse_document(text)))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[ValueDifference]:
    for name in dict.fromkeys([*a, *b]):
        if a.get(name, "") != b.get(name, ""):
            yield ValueDifference(name, a.get(name, ""), b.get(name, ""))


def _sizes(directory: Path, facts: Facts) -> dict[str, str]:
    found = {}
    if facts.compression is not None:
        totals = facts.compression.totals
        pairs = (("weights", totals.weights_after), ("multiply-accumulates", totals.macs_after), ("bytes of weights", totals.bytes_after))
        found = {name: f"{value:,}" for name, value in pairs if value is not None}
    for form in FORMS:
        path = directory / form.file
        if path.is_file():
            found[f"bytes of {form.file}"] = f"{path.stat().st_size:,}"
    return found


def _forms(facts: Facts) -> dict[str, str]:
    found = {row.name: _form(row) for row in facts.certificates}
    return found | {"chosen to deploy": facts.choice.chosen or "none"} if facts.choice else found


def _form(row: CertificateRow) -> str:
    audit = "not audited" if row.audit_passed is None else "audit passed" if row.audit_passed else "audit FAILED"
    told = f"{row.contract}: certified {100 * row.certified_accuracy:.2f} %, clean {100 * row.clean_accuracy:.2f} %, {audit}"
    return f"VOID, {told}" if row.void_reason else told


def _gates(facts: Facts) -> dict[str, str]:
    words = {True: "passed", False: "FAILED", None: "open"}
    return {gate.name: f"{words[gate.passed]}: {gate.got} (wanted: {gate.wanted})" for gate in facts.gates}


def _hashes(facts: Facts, certificates: Mapping[str, Certificate]) -> dict[str, str]:
    found = {"samples and splits": facts.data.sha256 if facts.data else ""}
    for name, certificate in certificates.items():
        found[f"model of {name}"] = certificate.model.sha256
        found[f"certificate of {name}"] = certificate.digest()
        found[f"test inputs of {name}"] = certificate.data.inputs_sha256
    if facts.provenance is not None:
        found |= {"commit of vsparse": facts.provenance.commit, "version of vsparse": facts.provenance.vsparse_version}
        found |= {f"version of {name}": value for name, value in facts.provenance.tools.items()}
        found |= {f"key of {stage.stage}": stage.key for stage in facts.provenance.stages}
    return {name: value for name, value in found.items() if value}
