"""Claims and certificates: what is stated about a model file, how it is written down, and how it is read back without trust."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vsparse.artifact.counterexamples import Counterexamples
from vsparse.artifact.document import SHA256, Part, load_json, parse, write_document
from vsparse.errors import GateError, InputError
from vsparse.files import canonical_json, sha256_bytes, write_bytes
from vsparse.notebook import pairs
from vsparse.perturbation import PerturbationSet
from vsparse.reading.evidence import FILE as READING
from vsparse.reading.evidence import ReadingEvidence
from vsparse.schema import Section

Verdict = Literal["certified", "falsified", "unknown"]
Method = Literal["clean", "interval", "crown-ibp", "crown", "attack", "none", "alpha-crown", "branch-and-bound", "photometric-split"]
PHOTOMETRIC: Method = "photometric-split"
MOST_PIECES = 65_536
SEARCHED: tuple[Method, ...] = ("alpha-crown", "branch-and-bound")
MAX_CLAIMS = 10_000_000
# Left out of a certificate's hash: times differ from run to run, and a hash cannot contain itself.
NOT_HASHED = ("time_ms", "certificate_sha256")
DERIVABLE = "derivable"
# What a note begins with where nothing could be executed.
NOT_AUDITED = "not audited: "
CHANGED = "certificate.json was changed after it was written, its certificate_sha256 no longer fits"
COUNTS = ("samples", "correct", "robust", "certified")
COUNTEREXAMPLES = "counterexamples.npz"
PROOFS = "proofs.npz"

# What a third party needs to compute each bound again: nothing that was not kept was searched for.
DERIVATIONS = {
    "interval": "the model, the input, the ball and the contract: interval bounds, widened by the contract's error at each operator; the "
    "margins are folded into the linear operators after the last ReLU or pool",
    "crown-ibp": "as interval, or one backward pass of the margins over these bounds, lower ReLU slope 1 where u > -l, else 0, if larger",
    "crown": "as crown-ibp, with the bounds of unstable pre-activations first refined by the same pass, in topological order",
    "alpha-crown": "as crown, and the slopes, lemmas and one leaf for each row in proofs.npz; of the two bounds of a row the larger",
    PHOTOMETRIC: "brightness and contrast cut into as many equal pieces as the claim says; in each the box of its inputs, and the margins "
    "as by interval or crown-ibp, the larger; the least of all pieces",
    "branch-and-bound": "as alpha-crown, with trees whose leaves are parts of the region; the bound of a tree is that of its least leaf",
}


class ModelReference(Section):
    """The model a claim is about: its file and the content hash (without metadata_props) of its bytes."""

    file: str = Field(min_length=1, max_length=4096)
    sha256: str = Field(pattern=SHA256)


class Claim(Section):
    """One statement about one sample.

    `certified`: every execution within the contract classifies every input of the ball as `label`; `margin_lower` is then a proved lower
    bound of the least z_label - z_j. `falsified`: there is an input in the ball, kept in `proof`, that the artifact itself
    misclassifies; the clean input is one when `method` is `clean`. `unknown`: neither. `predicted` is -1 where the output is not finite.
    Of regression (`property.delta` above 0) `certified` says that no execution of any input of the ball answers further than delta from
    any execution of the sample, and `margin_lower` is a lower bound of delta minus that change; label and predicted are 0.
    """

    id: int = Field(ge=0)
    input_sha256: str = Field(pattern=SHA256, description="of the float32 input in C order, little-endian")
    label: int = Field(ge=0)
    predicted: int = Field(ge=-1)
    property: PerturbationSet
    contract: str
    model: ModelReference
    verdict: Verdict
    margin_lower: float | None
    method: Method
    time_ms: float = Field(ge=0)
    proof: str | None
    pieces: tuple[int, int] | None = Field(None, description="of brightness and of contrast, for the method photometric-split")
    value: float | None = Field(None, allow_inf_nan=False, description="regression: what the file answers; none: not finite")
    target: float | None = Field(None, allow_inf_nan=False, description="regression: what the data says")

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out pieces, value and target where there are none: such a claim is written, and hashed, as it always was."""
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if value is not None or key not in ("pieces", "value", "target")}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.verdict == "certified":
            if self.margin_lower is None or not self.margin_lower > 0:
                raise ValueError(f"sample {self.id} is certified with a margin of {self.margin_lower}, which proves nothing")
            if self.predicted != self.label or self.method not in DERIVATIONS:
                raise ValueError(f"sample {self.id} is certified although it is predicted as {self.predicted} by method {self.method}")
        if self.verdict == "certified" and (self.proof == PROOFS) != (self.method in SEARCHED):
            raise ValueError(f"sample {self.id} is certified by method {self.method} with proof {self.proof}")
        if (self.verdict == "certified" and self.method == PHOTOMETRIC) != (self.pieces is not None):
            raise ValueError(f"sample {self.id} is settled by method {self.method} with pieces {self.pieces}")
        if self.pieces and not (min(self.pieces) >= 1 and self.pieces[0] * self.pieces[1] <= MOST_PIECES):
            raise ValueError(f"sample {self.id} is certified by {self.pieces} pieces, which are none or too many")
        if self.verdict == "falsified" and (self.method not in ("clean", "attack") or self.proof != COUNTEREXAMPLES):
            raise ValueError(f"sample {self.id} is falsified without a counterexample")
        if self.method == "clean" and self.predicted == self.label:
            raise ValueError(f"sample {self.id} is falsified by a clean prediction that is right")
        return self


class ClassSummary(Part):
    """The counts of one class."""

    name: str
    samples: int
    correct: int
    robust: int = Field(alias="attacked", description="correct and not falsified")
    certified: int


class Summary(Part):
    """Counts of verdicts and the three accuracies, each a fraction of all samples; `robust` is under the attack that was made."""

    samples: int
    correct: int
    certified: int
    falsified: int
    unknown: int
    clean_accuracy: float
    robust_accuracy: float = Field(alias="attacked_accuracy")
    certified_accuracy: float
    classes: tuple[ClassSummary, ...]


class DataReference(Section):
    """The samples a certificate is about: the first ones of a split."""

    name: str
    split: str
    samples: int = Field(ge=0)
    inputs_sha256: str = Field(pattern=SHA256, description="of all float32 inputs and int64 labels")
    classes: tuple[str, ...]


class Certificate(Section):
    """All claims about one model file under one property and one contract, as `certify` makes them."""

    schema_version: Literal[1] = 1
    model: ModelReference
    property: PerturbationSet
    contract: dict[str, str]
    data: DataReference
    settings: dict[str, Any]
    device: str | None = Field(None, max_length=200, description="what bounds were computed on; none: a processor")
    replay: dict[str, str]
    derivations: dict[str, str]
    summary: Summary
    void: str = Field("", description="why nothing here may be relied on; empty: no reason is known")
    note: str = ""
    counterexamples_sha256: str = Field(pattern=SHA256, description="of the arrays in counterexamples.npz")
    proofs_sha256: str | None = Field(None, pattern=SHA256, description="of proofs.npz; none: no claim was searched for")
    proofs_bytes: int = Field(0, ge=0, description="size of proofs.npz")
    claims: tuple[Claim, ...] = Field(min_length=1, max_length=MAX_CLAIMS)
    # Beside the certificate, in files of their own; None where they were not read.
    counterexamples: Counterexamples | None = Field(None, exclude=True, repr=False)
    proofs: bytes | None = Field(None, exclude=True, repr=False)
    reading: ReadingEvidence | None = Field(None, exclude=True, repr=False)

    def _repr_html_(self) -> str:
        found = self.summary
        counts = [(name, getattr(found, name)) for name in ("samples", "correct", "certified", "falsified", "unknown")]
        shares = [(name, getattr(found, f"{name}_accuracy")) for name in ("clean", "robust", "certified")]
        about = f"{self.model.file}, ε {self.property.epsilon} ({self.property.norm}), contract {self.contract.get('name', '')}"
        rows = [*counts, *((f"{name} accuracy", share) for name, share in shares)]
        return pairs(f"VOID: {about}" if self.void else about, rows, self.void or self.note)

    # Keys of the summary are older than the names of the accuracies, and a hash is over keys.
    model_config = ConfigDict(arbitrary_types_allowed=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = {claim.id for claim in self.claims}
        if len(ids) != len(self.claims):
            raise ValueError("two claims are about one sample")
        for claim in self.claims:
            if claim.model != self.model or claim.property != self.property or claim.contract != self.contract.get("name"):
                raise ValueError(f"the claim about sample {claim.id} has another model, property or contract than the certificate")
            if (claim.target is not None) != self.property.regression or (claim.value is not None and claim.target is None):
                raise ValueError(f"the claim about sample {claim.id} is of a class where the certificate is of a number, or the other way")
            if self.property.regression and (claim.value is None) != (claim.predicted == -1):
                raise ValueError(f"the claim about sample {claim.id} has no answer, or one that is not finite")
        if self.summary != summarise(self.claims, self.data.classes):
            raise ValueError("the summary is not what the claims add up to")
        if self.proofs_sha256 is None and any(claim.proof == PROOFS for claim in self.claims):
            raise ValueError("a claim has a proof and the certificate has none")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what is said of proofs where there are none, and of a device other than a processor.

        Such a certificate is written, and hashed, as it always was.
        """
        content: dict[str, Any] = handler(self)
        absent = [key for key in content if (key.startswith("proofs_") and not self.proofs_sha256) or (key == "device" and not self.device)]
        return {key: value for key, value in content.items() if key not in absent}

    def bytes_per_proof(self) -> float:
        """How much of proofs.npz a searched claim takes, 0 where there is none."""
        searched = sum(claim.proof == PROOFS for claim in self.claims)
        return self.proofs_bytes / searched if searched else 0.0

    def digest(self) -> str:
        """Returns the certificate's hash, of everything but the times: the same inputs give the same hash."""
        return _digest(self.model_dump(mode="json"))

    def noted(self, text: str) -> Certificate:
        """Returns the certificate with a further note."""
        return self.model_copy(update={"note": "; ".join(filter(None, (self.note, text)))})

    def voided(self, reason: str) -> Certificate:
        """Returns the certificate with the reason why it is void."""
        return self.model_copy(update={"void": reason})


def summarise(claims: Iterable[Claim], classes: Sequence[str]) -> Summary:
    """Adds up claims: certified accuracy counts samples that are classified correctly and certified, over all samples.

    See docs/numerics.md, section 1.3.
    """
    verdicts: Counter[str] = Counter()
    rows: dict[int, Counter[str]] = {label: Counter() for label in range(len(classes))}
    for claim in claims:
        correct = claim.predicted == claim.label
        verdicts[claim.verdict] += 1
        row = rows.setdefault(claim.label, Counter())
        row["samples"] += 1
        row["correct"] += correct
        row["robust"] += correct and claim.verdict != "falsified"
        row["certified"] += correct and claim.verdict == "certified"
    total = {key: sum(row[key] for row in rows.values()) for key in COUNTS}
    fraction = {key: total[key] / total["samples"] if total["samples"] else 0.0 for key in total}
    return Summary(
        samples=total["samples"],
        correct=total["correct"],
        certified=verdicts["certified"],
        falsified=verdicts["falsified"],
        unknown=verdicts["unknown"],
        clean_accuracy=fraction["correct"],
        robust_accuracy=fraction["robust"],
        certified_accuracy=fraction["certified"],
        classes=tuple(
            ClassSummary(
                name=classes[label] if label < len(classes) else str(label),
                **{key: row[key] for key in COUNTS},
            )
            for label, row in sorted(rows.items())
        ),
    )


def write_certificate(path: Path, certificate: Certificate) -> str:
    """Writes certificate.json, one claim a line, and counterexamples.npz, proofs.npz and reading.json beside it; returns its hash.

    What goes with a certificate comes first: at every moment a certificate that is there has it. The comparison of the file with its
    reading names the runtime's version and is no part of the hash.
    """
    if certificate.counterexamples is not None:
        certificate.counterexamples.write(path.with_name(COUNTEREXAMPLES))
    if certificate.proofs is not None:
        write_bytes(path.with_name(PROOFS), certificate.proofs)
    if certificate.reading is not None:
        write_document(path.with_name(READING), certificate.reading)
    content = certificate.model_dump(mode="json")
    digest = certificate.digest()
    claims = content.pop("claims")
    head = json.dumps({"certificate_sha256": digest, **content}, indent=2, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join("    " + json.dumps(claim, ensure_ascii=False, allow_nan=False) for claim in claims)
    write_bytes(path, f'{head[:-2]},\n  "claims": [\n{lines}\n  ]\n}}\n'.encode())
    return digest


def read_certificate(path: Path, changed: Literal["refuse", "void"] = "refuse") -> Certificate:
    """Reads certificate.json; the files beside it are not looked at.

    Raises InputError for a file that is absent, malformed or contradicts itself. One whose content no longer has the hash it was written
    with is a GateError, or, for whoever has to report on it all the same (`changed` = void), read as void.
    """
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"certificate {path} is not a JSON object; build the artifact again")
    digest = content.pop("certificate_sha256", None)
    if not isinstance(digest, str):
        raise InputError(f"certificate {path} has no certificate_sha256; build the artifact again")
    try:
        certificate = parse(Certificate, content, path)
        found = _digest(content)
    except (ValueError, RecursionError, UnicodeEncodeError) as error:  # a number that JSON has and a hash cannot hold
        raise InputError(f"certificate {path} cannot be read: {error}; build the artifact again") from error
    if found == digest:
        return certificate
    if changed == "void":
        return certificate if certificate.void else certificate.voided(CHANGED)
    raise GateError(f"certificate {path} was changed after it was written (its content no longer has its hash); build the artifact again")


def _digest(content: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json(_without(content, NOT_HASHED)))


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in value]
    return value
