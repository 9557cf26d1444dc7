"""Which activations are quantised, and whether integer kernels may execute a graph as the contract `int8` says.

See docs/numerics.md, section 7.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.arithmetic import Add, AddConstant, Sub
from vsparse.graph.operators.moves import Concat, Transpose
from vsparse.graph.operators.piecewise import Clip, LeakyRelu, Relu
from vsparse.graph.operators.pooling import AveragePool, MaxPool
from vsparse.graph.operators.quantised import FakeQuant, moved_grid
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.shapes import show

# Two products of uint8 and int8 are added in 16 bits, with saturation, on x86 without VNNI: 2 · 64 · 255 < 2^15.
MAX_WEIGHT = 64
MAX_PAIR = 2 * MAX_WEIGHT
# Other kernels add such products in 32 bits at once, or 16 bits hold two products with 128; symmetric, so that −128 is no weight.
MAX_WEIGHT_TENSORRT = 127
# Biases that are kept in float32 are 0 or of these magnitudes: in units of any scale they neither underflow nor overflow.
FLOAT_BIASES = (2.0**-40, 2.0**40)
SCALES = (2.0**-40, 2.0**40)
# Contracts on integers, by preference: the first one holds on every processor.
INTEGER_CONTRACTS = ("int8", "int8-tensorrt", "int8-exact")
# Runtimes drop a Clip whose ends the clamp of integers reaches within float32's epsilon, which must be less than half a step.
SMALLEST_BEHIND_CLIP = 2.0**-20
# A fused operator takes fl(s_x · s_w) for the scale of its bias, whatever the file says.
BIAS_SCALE_TOLERANCE = 2.0**-22

# Kernels convert x / scale to int32 before they clamp it, and beyond 2^31 x86 makes the least number of every one.
LARGEST_RATIO = 2.0**30
# ONNX Runtime's global average on integers takes input scale / (output scale · elements) below 256.
LARGEST_AVERAGE = 255.0
# What a quantised value is away from zero at most, in steps, with what kernels add on the way.
REACH = 512.0


def rounds_nothing(node: Node) -> bool:
    """Returns whether an operator's results are values that it reads, or zeros, or ends of a Clip."""
    return node.on_quantised in ("moves", "exact")


def quantised_scales(graph: Graph) -> dict[str, float]:
    """Returns for each activation the sum of the scales of the quantised activations it is made of by exact operators; 0: of none."""
    scales = {graph.input: 0.0}
    for node in graph.nodes:
        if isinstance(node, FakeQuant):
            scales[node.name] = node.scale
        else:
            scales[node.name] = sum(scales[name] for name in node.inputs) if rounds_nothing(node) else 0.0
    return scales


def is_quantised(graph: Graph) -> bool:
    """Returns whether a graph holds quantised activations."""
    return any(isinstance(node, FakeQuant) for node in graph.nodes)


@dataclass(frozen=True)
class Behind:
    """What exact operators carry on: whether a Clip is among them, and the least scale that kernels on integers can give the values.

    `joined`: whether a Concat put the values together, so that no runtime merges a quantisation behind it with those before.
    """

    clipped: bool = False
    least_scale: float = 0.0
    joined: bool = False


def carried(node: Node, before: Mapping[str, Behind], scales: Callable[[str], float]) -> Behind:
    """Returns what a `FakeQuant` that reads the node must know; `before` has that of its inputs, `scales` their scales or 0."""
    inputs = [before.get(name, Behind()) for name in node.inputs]
    if isinstance(node, Add | Sub | LeakyRelu | AveragePool):
        # x / scale must stay within int32; a global average is refused by its kernel from a factor of 256 on.
        summed = sum(scales(name) for name in node.inputs)
        whole = isinstance(node, AveragePool) and node.shape[1:] == (1, 1)
        least = summed / (LARGEST_AVERAGE * prod(node.kernel)) if whole and isinstance(node, AveragePool) else 0.0
        return Behind(least_scale=max(least, REACH * summed / (LARGEST_RATIO - REACH)))
    if not rounds_nothing(node):
        return Behind()
    clipped = isinstance(node, Clip) or any(one.clipped for one in inputs)
    least = max(one.least_scale for one in inputs)
    if isinstance(node, Concat) and len(node.inputs) > 1:
        return Behind(clipped, max(least, REACH * sum(scales(name) for name in node.inputs) / (LARGEST_RATIO - REACH)), joined=True)
    whole = isinstance(node, Relu | MaxPool | Reshape | Transpose)  # what selects may leave one part, as it was before
    return Behind(clipped, least, joined=whole and inputs[0].joined)


def integer_contract(graph: Graph) -> str:
    """Returns the contract that a quantised graph is in the form of: the first of `int8`, `int8-tensorrt` and `int8-exact` that it fits."""
    for name in INTEGER_CONTRACTS:
        try:
            check_integer_execution(graph, name)
        except InputError:
            continue
        return name
    return "int8"


def check_integer_execution(graph: Graph, contract: str = "int8") -> None:
    """Raises InputError, with the way out, unless integer and float kernels may both execute the graph within a contract on integers.

    `contract` is `int8` (docs/numerics.md, section 7.4), `int8-tensorrt` (docs/numerics.md, section 7.5) or `int8-exact`
    (docs/numerics.md, section 7.7).
    """
    if not is_quantised(graph):
        raise InputError(f"the contract {contract} is about quantised models, and this one has no QuantizeLinear; choose model.int8.onnx")
    tensorrt = contract == "int8-tensorrt"
    scales = quantised_scales(graph)
    before: dict[str, Behind] = {}
    grids: dict[str, FakeQuant | None] = {}
    for node in graph.nodes:
        grids[node.name] = moved_grid(node, grids)
        before[node.name] = carried(node, before, lambda name: scales[name])
        reads = any(scales[name] for name in node.inputs)
        what = f'node "{show(node.name)}" ({type(node).__name__})'
        if isinstance(node, FakeQuant):
            source = before.get(node.inputs[0], Behind())
            if reads and (tensorrt or not source.joined):
                raise InputError(
                    f"{what} quantises values that are quantised already, and runtimes merge the two; quantise once: leave the output in "
                    "float32 of what makes them (in onnxruntime.quantization the extra option OpTypesToExcludeOutputQuantization, with "
                    "Conv, Gemm, MatMul, Add and AveragePool)"
                )
            if node.scale < SMALLEST_BEHIND_CLIP and source.clipped:
                raise InputError(f"{what} has the scale {node.scale:g} behind a Clip, below 2^-20; rescale the network")
            if node.scale < source.least_scale:
                raise InputError(
                    f"{what} has the scale {node.scale:g}, too small for the sums that it reads: integer kernels overflow; calibrate it "
                    f"on other samples, or give it a scale of {source.least_scale:.3g} or more"
                )
            if tensorrt and (node.lowest, node.zero_point) != (-128, 0):
                raise InputError(
                    f"{what} has steps from {node.steps[0]} to {node.steps[1]}, and TensorRT reads int8 with the zero point 0 alone; "
                    "certify the file under int8, or build it for a target with TensorRT"
                )
            if not SCALES[0] <= node.scale <= SCALES[1]:
                raise InputError(f"{what} has the scale {node.scale:g}, outside of 2^-40 to 2^40; rescale the network")
        elif reads and (node.on_quantised is None or (tensorrt and isinstance(node, Sub | LeakyRelu))):
            raise InputError(
                f"{what} reads quantised values, and its integer kernels are in no contract; leave its input in float32 (in "
                "onnxruntime.quantization its name in nodes_to_exclude, and what makes its input in OpTypesToExcludeOutputQuantization)"
            )
        if isinstance(node, AddConstant) and node.constant in graph.integers:
            raise InputError(
                f"{what} adds a constant stored in integers; keep constants in float32 (nodes_to_exclude in onnxruntime.quantization)"
            )
        if isinstance(node, Affine) and not reads and node.weight in graph.integers:
            # ONNX Runtime's MatMulNBits then quantises the values on its own, in blocks.
            raise InputError(
                f"{what} reads float32 values with a weight stored in integers, and runtimes may quantise the values too; quantise its "
                "input, or store its weight in float32"
            )
        if isinstance(node, Affine) and reads:
            grid = grids.get(node.inputs[0])
            if grid is None:
                raise InputError(f"{what} reads values of several quantisations or a clipped one; quantise its input itself")
            _check_affine(graph, node, grid, what, contract)
    if scales[graph.output] and not isinstance(graph.node(graph.output), FakeQuant):
        raise InputError("the model's output moves quantised values; quantise the output itself, or leave the logits in float32")


def largest_pair(weights: NDArray[np.int64]) -> int:
    """Returns the largest magnitude of two weights of one output and one sign added up; weights are [out, ...]."""
    rows = weights.reshape(len(weights), -1).astype(np.int64)
    both = (np.sort(np.maximum(sign * rows, 0), axis=1)[:, -2:].sum(axis=1) for sign in (1, -1))
    return max(int(pairs.max(initial=0)) for pairs in both)


def _check_affine(graph: Graph, node: Affine, grid: FakeQuant, what: str, contract: str) -> None:
    tensorrt = contract == "int8-tensorrt"
    weight = graph.integers.get(node.weight)
    if weight is None or weight.values.dtype != np.int8:
        raise InputError(f"{what} reads quantised values with a float32 weight; quantise the weight to int8 too")
    integers = weight.values.astype(np.int64)
    if np.abs(integers).max(initial=0) > MAX_WEIGHT_TENSORRT:
        raise InputError(f"{what} has the weight -128, and symmetric weights end at -127; quantise it with another scale")
    if contract == "int8" and largest_pair(integers) > MAX_PAIR:
        check_integer_execution(graph, "int8-exact")  # what it lacks otherwise too is said first
        raise InputError(
            f"{what} has 8-bit weights, whose products saturate on processors without VNNI; export 7-bit weights, from -{MAX_WEIGHT} to "
            f"{MAX_WEIGHT} (reduce_range=True in onnxruntime.quantization), or choose --contract int8-exact, about processors with VNNI "
            "and Arm's alone, or, for TensorRT, leave biases in float32 and choose int8-tensorrt"
        )
    scale = np.broadcast_to(weight.scale.astype(np.float64), (len(integers),))
    total = np.abs(integers).reshape(len(integers), -1).sum(axis=1) * 255
    if not (scale.min() >= SCALES[0] and scale.max() <= SCALES[1]):
        raise InputError(f"{what} has a weight scale outside of 2^-40 to 2^40; rescale the network")
    if tensorrt and node.bias is not None:
        _check_float_bias(graph, node.bias, what)
    elif node.bias is not None:
        bias = graph.integers.get(node.bias)
        if bias is None or bias.values.dtype != np.int32:
            raise InputError(
                f"{what} reads quantised values with a float32 bias; quantise the bias to int32 too (QuantizeBias), or, for TensorRT, "
                "choose int8-tensorrt"
            )
        wanted = scale * grid.scale
        if not (np.abs(bias.scale.astype(np.float64) - wanted) <= BIAS_SCALE_TOLERANCE * wanted).all():
            raise InputError(f"{what} has a bias whose scale is not that of its input times that of its weight; export the model again")
        total = total + np.abs(bias.values.astype(np.int64))
    if total.max(initial=0) >= 2**31:
        raise InputError(f"{what} may overflow its int32 accumulator; make the layer narrower")


def _check_float_bias(graph: Graph, name: str, what: str) -> None:
    if name in graph.integers:
        raise InputError(f"{what} has a bias stored in integers, which TensorRT does not read; keep the bias in float32")
    size = np.abs(graph.params[name].astype(np.float64))
    if not ((size == 0) | ((size >= FLOAT_BIASES[0]) & (size <= FLOAT_BIASES[1]))).all():
        raise InputError(f"{what} has a bias that is neither 0 nor from 2^-40 to 2^40 in magnitude; rescale the network")
