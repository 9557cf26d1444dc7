"""What is found about one certificate, and where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vsparse_check.change import mean_absolute_error

CONFIRMED, REFUTED, UNCHECKED = "confirmed", "refuted", "cannot be checked"
ABSENT = "no certificate"  # of an artifact that claims nothing, and says so
# Certificates of networks in C, and the contract of each: model.c adds in order, and model.int8.c
# is one of the executions that `int8` covers.
C_CONTRACTS = {"certificate/sequential": "sequential", "certificate/int8/c": "int8"}
ProgressCallback = Callable[[int, int], None]  # claims done, claims in all


class CertificateFiles(NamedTuple):
    """Where a certificate lies and which model it must be about."""

    folder: Path
    model: Path
    name: str  # of the folder, in the artifact
    model_name: str  # of the model, in the artifact
    runtime: str = "onnxruntime"  # what target.toml says to execute it

    @property
    def about_dense_parent(self) -> bool:
        """Returns whether it is the certificate of the dense parent, whose inputs may be absent."""
        return self.name == "certificate/dense"

    @property
    def about_c_source(self) -> bool:
        """Returns whether it is the certificate of a network in C: model.c or model.int8.c."""
        return self.name in C_CONTRACTS


class CertificateRecord(NamedTuple):
    """What was found about one certificate.

    `certified` counts its claims, `confirmed` those that were derived again. Accuracies are
    fractions of `samples`, the claims; `clean` holds the least and the greatest clean accuracy that
    the checker's own execution leaves possible, `distinct` counts different inputs.
    """

    name: str
    verdict: str = UNCHECKED
    problem: str = ""
    model: str = ""
    contract: str = ""
    norm: str = ""
    epsilon: str = ""
    brightness: str = "0"
    contrast: str = "0"
    scales: tuple[str, ...] = ()  # factors of epsilon, where each input has a radius of its own
    clip: tuple[float, float] = (0.0, 1.0)
    data: str = ""
    samples: int = 0
    distinct: int = 0
    certified: int = 0
    confirmed: int = 0
    clean_stated: float = 0.0
    clean: tuple[float, float] = (0.0, 1.0)
    attacked_stated: float = 0.0
    delta: str = ""  # of regression
    mean_absolute_error: float | None = None  # of regression: of the stated answers
    same_data: bool = False  # whether the samples were compared with data that the caller gave

    @property
    def certified_accuracy(self) -> float:
        """Returns the fraction of the samples whose certified claims were derived again."""
        return self.confirmed / self.samples if self.samples else 0.0


def stated_record(files: CertificateFiles, content: dict[str, Any]) -> CertificateRecord:
    """Returns a record with what a certificate says about itself."""
    claims, about, summary = content["claims"], content["property"], content["summary"]
    contract, data = content["contract"], content["data"]
    named = f"{data.get('name', '')!s:.40} {data.get('split', '')!s:.20}"
    return CertificateRecord(
        files.name,
        model=files.model_name,
        contract=str(contract.get("name", "")) if isinstance(contract, dict) else "",
        norm=about["norm"],
        epsilon=about["epsilon"],
        brightness=about.get("brightness", "0"),
        contrast=about.get("contrast", "0"),
        scales=tuple(about.get("scales", ())),
        clip=(float(about["clip"][0]), float(about["clip"][1])),
        data=named.strip().replace('"', "'"),  # it is printed in quotes, and must not end them
        samples=len(claims),
        distinct=len({claim["input_sha256"] for claim in claims}),
        certified=sum(claim["verdict"] == "certified" for claim in claims),
        clean_stated=float(summary["clean_accuracy"]),
        attacked_stated=float(summary["attacked_accuracy"]),
        delta=about.get("delta", ""),
        mean_absolute_error=mean_absolute_error(claims) if "delta" in about else None,
    )
