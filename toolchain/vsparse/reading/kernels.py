"""Which kernels a contract is about: those of ONNX Runtime on aarch64 that keep sums in float16.

See docs/numerics.md, section 8.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from vsparse.contract import Contract
from vsparse.errors import InputError
from vsparse.graph.onnx_file import open_model
from vsparse.graph.shapes import show

# What a runtime may take away between a convolution and an addition: moves, slices of all there is, + 0, − 0, · 1, / 1.
REMOVABLE = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Slice", "Add", "Sub", "Mul", "Div")


def require_kernels(contract: Contract, data: bytes, where: str, runtime: str = "onnxruntime") -> None:
    """Raises InputError where another kernel than those of the contract executes an operator, or one that is known to be wrong.

    `fp16-chain` states the order of one kernel. ONNX Runtime gives a Gemm to it if that transposes nothing and adds one number for each
    output, and else to another library, whose order depends on sizes and caches. Under every contract with sums in float16: its kernel of
    depthwise convolutions on aarch64 computes something else where an addition is fused into it (seen in 1.32.0, of one channel).
    `data` is an ONNX file that has been read, `runtime` what executes it on the target: both are about kernels of ONNX Runtime alone.
    """
    if not contract.rounds_partial_sums or runtime != "onnxruntime":
        return
    model, _ = open_model(data)
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Gemm" and contract.order == "chain" and (reason := _transposed_or_biased(node, sizes)):
            raise InputError(
                f'{where}: Gemm "{show(node.name or node.output[0])}" {reason}, so that another kernel than the one of contract '
                f"{contract.name} executes it; store the transpose and leave transB out, as vsparse writes float16 files, or choose "
                "--contract fp16-accumulate, which holds for sums in any order"
            )
        if node.op_type == "Add" and any(_reads_depthwise(name, made, sizes) for name in node.input):
            raise InputError(
                f'{where}: Add "{show(node.name or node.output[0])}" adds to a depthwise convolution, and ONNX Runtime on aarch64 then '
                "computes something else in float16; leave fp16 out, or put a ReLU between the two"
            )


def _transposed_or_biased(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> str:
    if any(a.name == "transB" and a.i for a in node.attribute):
        return "transposes its weight (transB = 1)"
    if len(sizes.get(node.input[1], [])) != 2:  # ONNX Runtime makes transB = 1 of a Transpose that makes the weight
        return "has a weight that is no initializer, and may be transposed"
    outputs = sizes[node.input[1]][1]
    if len(node.input) > 2 and node.input[2] and list(sizes.get(node.input[2], [])) not in ([outputs], [1, outputs]):
        return "adds a bias that is not one number for each output"
    return ""


def _reads_depthwise(name: str, made: Mapping[str, onnx.NodeProto], sizes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a depthwise convolution makes a tensor, but for what a runtime may take away: whatever the constants of that are."""
    pending, seen = [name], set[str]()
    while pending:
        node = made.get(pending.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if _is_depthwise(node, sizes):
            return True
        if node.op_type in REMOVABLE:
            pending += node.input
    return False


def _is_depthwise(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a node is a convolution with one channel in and out of each group; or one whose weight is not to be seen."""
    if node.op_type != "Conv":
        return False
    weight = sizes.get(node.input[1])
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return weight is None or (weight[1] == 1 and weight[0] == groups)
