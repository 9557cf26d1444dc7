"""Numeric contracts: the arithmetic under which a certificate holds.

See docs/numerics.md, section 2; shared vocabulary of targets and claims.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from vsparse.errors import InputError, nearest

Format = Literal["real", "fp32", "tf32", "fp16", "bf16", "int8"]

# Significand bits p: the unit roundoff is 2^-p under round-to-nearest. An operand in int8 is an integer times a float32 scale.
SIGNIFICAND_BITS: dict[str, int] = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "int8": 24}
# Exponent of the smallest subnormal and of the smallest normal number, and the largest finite number.
SMALLEST_SUBNORMAL: dict[str, float] = {"fp32": 2.0**-149, "tf32": 2.0**-136, "fp16": 2.0**-24, "bf16": 2.0**-133, "int8": 2.0**-149}
SMALLEST_NORMAL: dict[str, float] = {"fp32": 2.0**-126, "tf32": 2.0**-126, "fp16": 2.0**-14, "bf16": 2.0**-126, "int8": 2.0**-126}
LARGEST: dict[str, float] = {
    "fp32": (2 - 2.0**-23) * 2.0**127,
    "tf32": (2 - 2.0**-10) * 2.0**127,
    "fp16": 65504.0,
    "bf16": (2 - 2.0**-7) * 2.0**127,
    "int8": (2 - 2.0**-23) * 2.0**127,
}

# What a device's sigmoid and tanh are assumed to err by at most, absolutely and stored, for each storage format: IEEE 754 does not fix
# them (docs/numerics.md, section 3.2). 32 units roundoff of fp32; 4 of the lower formats, in which hardware approximates them.
FUNCTION_ERROR: dict[str, float] = {"real": 0.0, "fp32": 2.0**-19, "fp16": 2.0**-9, "bf16": 2.0**-6}


@dataclass(frozen=True)
class Contract:
    """What is promised about the arithmetic that executes a network.

    `storage` is the format of weights and activations between operators, `operand` the format operands are rounded to
    before a multiply, `accumulate` the format of the running sum. `order` is `any` (the proof holds for every order of
    summation, with or without fused multiply-add), `sequential` (that of our own C) or `chain` (term after term along the reduction
    axis of a kernel: docs/numerics.md, section 8.2). `subnormals` is `gradual` or `flush`.
    """

    name: str
    storage: Format
    operand: Format
    accumulate: Format
    order: Literal["any", "sequential", "chain"] = "any"
    convolution: Literal["direct"] = "direct"
    subnormals: Literal["gradual", "flush"] = "gradual"

    @property
    def integers(self) -> bool:
        """Whether operands may be integers with scales: each sum is executed in fp32, or exactly in int32 and scaled."""
        return self.operand == "int8"

    @property
    def rounds_partial_sums(self) -> bool:
        """Whether partial sums are rounded to nearest in the very format that operands and results have: float16 throughout."""
        return self.accumulate == self.operand == self.storage == "fp16"

    @property
    def exact(self) -> bool:
        """Whether this is real arithmetic: a theorem about the network, not about a device."""
        return self.storage == "real"

    def as_dict(self) -> dict[str, str]:
        """Returns the fields as they are written into a certificate."""
        return asdict(self)


# `flush`: runtimes may flush subnormals (ONNX Runtime has a session option, GPUs do so for some kernels), and its bound covers gradual
# underflow too, at the price of 2^-126 per operation.
CONTRACTS: dict[str, Contract] = {
    "real": Contract("real", "real", "real", "real"),
    "fp32": Contract("fp32", "fp32", "fp32", "fp32", subnormals="flush"),
    # Of the C that export writes, and of nothing else: no runtime promises an order.
    "sequential": Contract("sequential", "fp32", "fp32", "fp32", order="sequential", subnormals="flush"),
    "tf32": Contract("tf32", "fp32", "tf32", "fp32", subnormals="flush"),
    "fp16": Contract("fp16", "fp16", "fp16", "fp32", subnormals="flush"),
    # Of float16 files that type their sums of products as float32 themselves, as TensorRT obeys it (docs/numerics.md, section 8.3).
    "fp16-tensorrt": Contract("fp16-tensorrt", "fp16", "fp16", "fp32", subnormals="flush"),
    "fp16-accumulate": Contract("fp16-accumulate", "fp16", "fp16", "fp16", subnormals="flush"),
    # Of ONNX Runtime on aarch64 alone, whose kernels on float16 add term after term (docs/numerics.md, section 8.2).
    "fp16-chain": Contract("fp16-chain", "fp16", "fp16", "fp16", order="chain"),
    "bf16": Contract("bf16", "bf16", "bf16", "fp32", subnormals="flush"),
    # Of quantised (QDQ) models, executed in fp32 operator by operator or in fused integer kernels; about no other models.
    "int8": Contract("int8", "fp32", "int8", "fp32", subnormals="flush"),
    # Of the same files with weights of 8 bits, on processors that add products of 8 bits exactly (docs/numerics.md, section 7.7).
    "int8-exact": Contract("int8-exact", "fp32", "int8", "fp32", subnormals="flush"),
    # Of quantised models in the form that TensorRT reads: its kernels add products of 8 bits exactly, and keep biases in fp32.
    "int8-tensorrt": Contract("int8-tensorrt", "fp32", "int8", "fp32", subnormals="flush"),
}


def contract(name: str) -> Contract:
    """Returns the contract of that name; raises InputError with the nearest known name."""
    if name not in CONTRACTS:
        raise InputError(f'there is no numeric contract "{name}"{nearest(name, list(CONTRACTS))}; known: {", ".join(CONTRACTS)}')
    return CONTRACTS[name]
