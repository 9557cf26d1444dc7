"""The independent checker of an artifact: numpy and onnx only, nothing of the toolchain's.

docs/checker.md is a guided reading of it, function by function, in the order of the proof.
"""

from vsparse_check.artifact import CheckResult, Toolchain, check
from vsparse_check.samples import SampleData

__all__ = ["CheckResult", "SampleData", "Toolchain", "check"]
