"""Which kernels a contract is about: those of ONNX Runtime on aarch64 that add float16 numbers term after term.

See docs/numerics.md, section 8.2.
"""

from __future__ import annotations

import onnx

from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.graph.onnx_file import open_model
from vsparse.graph.shapes import show


def require_chain(contract: Contract, data: bytes, where: str) -> None:
    """Raises InputError where a product is executed by another kernel than the one whose order the contract `fp16-chain` states.

    ONNX Runtime gives a Gemm to that kernel if it transposes nothing and adds one number for each output, and else to another library,
    whose order of summation depends on sizes and caches. `data` is an ONNX file that has been read.
    """
    if contract.order != "chain":
        return
    model, _ = open_model(data)
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Gemm":
            continue
        reason = ""
        if any(a.name == "transB" and a.i for a in node.attribute):
            reason = "transposes its weight (transB = 1)"
        elif len(node.input) > 2 and node.input[2] and not _one_for_each(sizes.get(node.input[2]), sizes.get(node.input[1])):
            reason = "adds a bias that is not one number for each output"
        if reason:
            raise InputError(
                f'{where}: Gemm "{show(node.name or node.output[0])}" {reason}, so that another kernel than the one of contract '
                f"{contract.name} executes it; `vsparse export MODEL --precision fp16` writes it for that kernel, or choose --contract "
                "fp16-accumulate, which holds for sums in any order"
            )


def _one_for_each(bias: list[int] | None, weight: list[int] | None) -> bool:
    return bias is not None and weight is not None and bias in ([weight[-1]], [1, weight[-1]])
