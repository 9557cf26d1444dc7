"""The independent checker of an artifact: numpy and onnx only, nothing from the toolchain that wrote it."""

from vsparse_check.artifact import CheckResult, Toolchain, check
from vsparse_check.samples import Data

__all__ = ["CheckResult", "Data", "Toolchain", "check"]
