"""Which float16 files a contract is about: a Gemm of another library, and additions that aarch64's kernels compute wrongly, are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import to_onnx
from vsparse.graph.ir import Add, Conv, Gemm, Graph, Relu, Reshape
from vsparse.reading.kernels import require_kernels
from vsparse.stages.export.half import half
from vsparse_check.contracts import CONTRACTS as CHECKED
from vsparse_check.form import check_kernels
from vsparse_check.refusal import Unchecked

KEPT = ("fp32", "fp16", "int8", "real")


def refused(data: bytes, name: str) -> str:
    """Returns why both the toolchain and the checker refuse a file; empty where both take it."""
    said, unchecked = "", False
    try:
        require_kernels(CONTRACTS[name], data, "model")
    except InputError as error:
        said = str(error)
    try:
        check_kernels(onnx.ModelProto.FromString(data), CHECKED[name])
    except Unchecked:
        unchecked = True
    assert bool(said) == unchecked
    return said


def gemm(bias_shape: tuple[int, ...] | None, transposed: int) -> bytes:
    weight = np.ones((3, 5) if transposed else (5, 3), np.float16)
    tensors = [numpy_helper.from_array(weight, "w")]
    if bias_shape is not None:
        tensors.append(numpy_helper.from_array(np.ones(bias_shape, np.float16), "b"))
    names = ["h", "w", *(["b"] if bias_shape is not None else [])]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", names, ["g"], transB=transposed),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 5), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def residual(channels: int, groups: int, between: bool) -> bytes:
    shape = (channels, 3, 3)
    relu = [Relu(name="r", inputs=("c",), shape=shape)] if between else []
    nodes = (
        Conv(name="c", inputs=("x",), shape=shape, weight="w", bias=None, pads=(1, 1, 1, 1), groups=groups),
        *relu,
        Add(name="a", inputs=("r" if between else "c", "x"), shape=shape),
        Reshape(name="f", inputs=("a",), shape=(9 * channels,)),
        Gemm(name="g", inputs=("f",), shape=(2,), weight="v", bias="b"),
    )
    params = {"w": np.ones((channels, channels // groups, 3, 3), np.float32), "v": np.ones((2, 9 * channels), np.float32)}
    params["b"] = np.ones(2, np.float32)
    return to_onnx(half(Graph("x", shape, nodes, "g", params))).SerializeToString()


@pytest.mark.parametrize(
    ("bias", "transposed", "word"), [(None, 1, "transB"), ((3,), 1, "transB"), ((1,), 0, "one number"), ((), 0, "one number")]
)
def test_a_gemm_of_another_kernel_is_refused_under_its_order_alone(bias, transposed, word):
    data = gemm(bias, transposed)
    assert word in refused(data, "fp16-chain")
    assert not any(refused(data, name) for name in (*KEPT, "fp16-accumulate"))


@pytest.mark.parametrize("bias", [None, (3,), (1, 3)])
def test_a_gemm_of_its_kernel_is_taken(bias):
    assert not refused(gemm(bias, 0), "fp16-chain")


@pytest.mark.parametrize(
    ("channels", "groups", "between", "wrong"), [(1, 1, False, True), (4, 4, False, True), (1, 1, True, False), (4, 1, False, False)]
)
def test_a_sum_with_a_depthwise_convolution_is_refused_where_sums_are_kept_in_float16(channels, groups, between, wrong):
    data = residual(channels, groups, between)
    for name in ("fp16-accumulate", "fp16-chain"):
        assert bool(refused(data, name)) == wrong
    assert not any(refused(data, name) for name in KEPT)


def test_what_is_exported_transposes_nothing():
    model = onnx.ModelProto.FromString(residual(2, 1, False))
    (one,) = (node for node in model.graph.node if node.op_type == "Gemm")
    assert not one.attribute
    assert [list(tensor.dims) for tensor in model.graph.initializer if tensor.name == "v"] == [[18, 2]]


@pytest.mark.parametrize("kind", ["Transpose", "Constant"])
def test_a_gemm_whose_weight_something_makes_is_refused_under_its_order(kind):
    """ONNX Runtime turns Gemm(x, Transpose(w)) into transB = 1 before it folds constants."""
    model = onnx.ModelProto.FromString(gemm(None, 0))
    product = model.graph.node[1]
    product.input[1] = "made"
    weight = model.graph.initializer.pop()
    if kind == "Transpose":
        model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 5), np.float16), "w"))
        maker = helper.make_node("Transpose", ["w"], ["made"], perm=[1, 0])
    else:
        maker = helper.make_node("Constant", [], ["made"], value=weight)
    model.graph.node.insert(1, maker)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    assert "initializer" in refused(data, "fp16-chain")
    assert not any(refused(data, name) for name in (*KEPT, "fp16-accumulate"))


@pytest.mark.parametrize(("kind", "number"), [("Div", 1), ("Sub", 0), ("Mul", 1), ("Add", 0), ("Slice", 0), ("Identity", 0)])
def test_what_a_runtime_removes_does_not_hide_a_depthwise_convolution(kind, number):
    """Without it the addition is fused all the same: with a bias 12 of 12 such networks were wrong by 4 to 54 on aarch64."""
    model = onnx.ModelProto.FromString(residual(1, 1, False))
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    place = list(model.graph.node).index(conv)
    made = conv.output[0]
    conv.output[0] = "hidden"
    constants = {"Slice": {"from": [0], "to": [2**63 - 1], "axis": [2]}, "Identity": {}}.get(kind)
    if constants is None:
        model.graph.initializer.append(numpy_helper.from_array(np.float16(number), "number"))
        names = ["number"]
    else:
        names = list(constants)
        model.graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items())
    model.graph.node.insert(place + 1, helper.make_node(kind, ["hidden", *names], [made]))
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    for name in ("fp16-accumulate", "fp16-chain"):
        assert "depthwise" in refused(data, name)
    assert not any(refused(data, name) for name in KEPT)
