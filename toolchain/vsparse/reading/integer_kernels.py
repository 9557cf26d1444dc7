"""Whether this machine's ONNX Runtime adds products of 8 bits exactly: asked of its kernels (docs/numerics.md, section 7.7)."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.processor import this_processor
from vsparse.reading.runtime import Runtime

KINDS = ("Gemm", "MatMul", "Conv")
# Terms of a sum, by which kernels choose their path: short ones, blocks of 4, 16 and 64, and what is left over.
TERMS = (2, 3, 4, 16, 67, 256)
OUTPUTS = 5


@cache
def adds_bytes_exactly() -> bool:
    """Returns whether sums of products at both ends of 8 bits, by every kind of kernel, are those of integers without limits.

    255 · 127 twice is 64,770, which 16 bits do not hold: x86 without VNNI makes 32,767 of it. VNNI and Arm's kernels add in 32 bits.
    """
    return all(_probe(kind, signed, terms, sign) for kind in KINDS for signed in (False, True) for terms in TERMS for sign in (127, -127))


def require_exact_sums(contract: Contract, where: str) -> None:
    """Raises InputError where the contract is `int8-exact` and this machine's kernels saturate: what runs would be another function."""
    if contract.name == "int8-exact" and not adds_bytes_exactly():
        raise InputError(
            f"{where}: ONNX Runtime on this processor ({this_processor()}) adds two products of 8 bits in 16, with saturation, so that "
            "what runs is outside of the contract int8-exact; quantise with reduce_range=True and choose --contract int8, or certify on a "
            "processor with VNNI, or an Arm one"
        )


def _probe(kind: str, signed: bool, terms: int, weight: int) -> bool:
    x = np.full((3, terms, 2, 2) if kind == "Conv" else (3, terms), 127 if signed else 255, np.float32)
    # Raw, both are 255: kernels shift int8 by 128. The scale of the result makes of the whole sum a step in the middle of its grid.
    total = float(x.flat[0]) * weight * terms
    step = np.float32(abs(total) / 100)
    runtime = Runtime(_model(kind, signed, x.shape, weight, step), "all")
    made = np.concatenate([runtime.run_once(x)[0], runtime.run_once(x[:1])[0]])
    wanted = float(step) * np.clip(np.round(total / float(step)), -128, 127)
    return bool((np.abs(made - wanted) <= 0.5 * step).all())


def _model(kind: str, signed: bool, shape: tuple[int, ...], weight: int, step: np.float32) -> bytes:
    """Returns a QDQ file of one operator whose products are all alike, with steps of 1 but for those of its result."""
    terms, integers = shape[1], np.int8 if signed else np.uint8
    size = (OUTPUTS, terms, 1, 1) if kind == "Conv" else (terms, OUTPUTS)
    made = ("rows", OUTPUTS, *shape[2:])
    tensors = {
        "one": np.float32(1),
        "zero": integers(0),
        "weight": np.full(size, weight, np.int8),
        "none": np.int8(0),
        "step": step,
        "middle": integers(0 if signed else 128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "none"], ["w"]),
        helper.make_node(kind, ["d", "w"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "step", "middle"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "step", "middle"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
