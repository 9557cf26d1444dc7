"""The independent checker of an artifact: numpy and onnx only, nothing from the toolchain that wrote it."""

from vsparse_check.artifact import CheckResult, check

__all__ = ["CheckResult", "check"]
