"""Which contract ONNX Runtime keeps with float16 files, by processor (docs/numerics.md, section 8)."""

from __future__ import annotations

import platform

from vsparse.contract import Contract
from vsparse.errors import InputError

# These have kernels on float16 that keep the running sum in float16; others execute a float16 file in float32.
ADDS_IN_HALF_PRECISION = ("aarch64", "arm64")


def this_processor() -> str:
    """Returns the architecture of this machine, such as x86_64 or aarch64."""
    return platform.machine().lower()


def half_precision_contract(processor: str) -> str:
    """Returns the contract within which ONNX Runtime executes a float16 file on the CPU."""
    return "fp16-accumulate" if processor in ADDS_IN_HALF_PRECISION else "fp16"


def kept_contracts(processor: str) -> tuple[str, ...]:
    """Returns the contracts of sums of float16 numbers that ONNX Runtime keeps on the CPU, the closest one last."""
    return ("fp16-accumulate", "fp16-chain") if processor in ADDS_IN_HALF_PRECISION else ("fp16-accumulate", "fp16")


def require_kept(contract: Contract, storage: str) -> None:
    """Raises InputError where this machine's ONNX Runtime executes a file outside of the contract; `storage` is the file's format."""
    processor = this_processor()
    if storage == "fp16" and contract.name == "fp16" != half_precision_contract(processor):
        raise InputError(
            f"on this processor ({processor}) ONNX Runtime adds float16 numbers in float16, so what runs is outside of the contract fp16, "
            "which adds in float32; choose --contract fp16-chain, or fp16-accumulate for sums in any order"
        )
