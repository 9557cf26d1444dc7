"""The certificate of an ONNX file: bounded under a numeric contract, attacked, replayed, audited and cross-checked."""

from vsparse.artifact.certificate import Ball, Certificate, Claim, Summary, read_certificate, write_certificate
from vsparse.artifact.counterexamples import Counterexamples, read_counterexamples
from vsparse.stages.verify.certify import certify

__all__ = [
    "Ball",
    "Certificate",
    "Claim",
    "Counterexamples",
    "Summary",
    "certify",
    "read_certificate",
    "read_counterexamples",
    "write_certificate",
]
