"""ONNX files in: every operator against ONNX Runtime, and files that real exporters write."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_nets import graph_logits, onnx_logits
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.graph import AddConstant, AveragePool, DivConstant, Gemm, MulConstant, Relu, Reshape, from_onnx

RNG = np.random.default_rng(1)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto], shape: tuple[Any, ...], weights: dict[str, np.ndarray] | None = None, opset: int = 17, batch: Any = "batch"
) -> bytes:
    """Returns a model from "x" to "y" whose result is flattened to [batch, classes]."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Flatten", ["y"], ["flat"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [batch, None])],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString())


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["y"], **attributes)


IMAGE = (2, 6, 7)
INT = {"i": np.array([2, 3], np.int64)}
CASES: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, np.ndarray]]] = {
    "conv": ([node("Conv", "x", "w", "b", pads=[1, 0, 2, 1], strides=[2, 1])], IMAGE, {"w": array(3, 2, 3, 3), "b": array(3)}),
    "conv, groups and dilations": ([node("Conv", "x", "w", group=2, dilations=[2, 1])], IMAGE, {"w": array(4, 1, 2, 3)}),
    "conv, same upper": ([node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, {"w": array(3, 2, 4, 3)}),
    "conv, same lower": ([node("Conv", "x", "w", auto_pad="SAME_LOWER")], IMAGE, {"w": array(3, 2, 2, 4)}),
    "conv, valid": ([node("Conv", "x", "w", auto_pad="VALID")], IMAGE, {"w": array(3, 2, 3, 3)}),
    "gemm": ([node("Gemm", "x", "w", "b")], (4,), {"w": array(4, 3), "b": array(3)}),
    "gemm, transposed, row bias": ([node("Gemm", "x", "w", "b", transB=1)], (4,), {"w": array(3, 4), "b": array(1, 3)}),
    "gemm, scalar bias": ([node("Gemm", "x", "w", "b", transB=1)], (4,), {"w": array(3, 4), "b": array(1)}),
    "matmul": ([node("MatMul", "x", "w")], (4,), {"w": array(4, 3)}),
    "batch norm": (
        [node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=0.01)],
        IMAGE,
        {"s": array(2), "b": array(2), "m": array(2), "v": np.abs(array(2)) + 0.5},
    ),
    "relu": ([node("Relu", "x")], IMAGE, {}),
    "add": ([node("Add", "c", "x")], IMAGE, {"c": array(1, 2, 1, 1)}),
    "add, last axis": ([node("Add", "x", "c")], IMAGE, {"c": array(7)}),
    "add to itself": ([node("Add", "x", "x")], IMAGE, {}),
    "sub": ([node("Sub", "x", "c")], IMAGE, {"c": array(2, 6, 7)}),
    "sub from": ([node("Sub", "c", "x")], IMAGE, {"c": array()}),
    "mul": ([node("Mul", "x", "c")], IMAGE, {"c": array(2, 1, 1)}),
    "div": ([node("Div", "x", "c")], IMAGE, {"c": np.array([4], np.float32)}),
    "max pool": ([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1])], IMAGE, {}),
    "max pool, same": ([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")], IMAGE, {}),
    "average pool": ([node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 2])], IMAGE, {}),
    "global average": ([node("GlobalAveragePool", "x")], IMAGE, {}),
    "mean": ([node("ReduceMean", "x", axes=[-1, 2], keepdims=0)], IMAGE, {}),
    "reshape": ([node("Reshape", "x", "s")], IMAGE, {"s": np.array([0, 3, -1, 2], np.int64)}),
    "reshape, batch computed": ([node("Reshape", "x", "s")], IMAGE, {"s": np.array([-1, 84], np.int64)}),
    "unsqueeze": ([node("Unsqueeze", "x", "a")], IMAGE, {"a": np.array([2, -1], np.int64)}),
    "transpose of ones": ([helper.make_node("GlobalAveragePool", ["x"], ["p"]), node("Transpose", "p", perm=[0, 2, 3, 1])], IMAGE, {}),
    "squeeze": ([helper.make_node("GlobalAveragePool", ["x"], ["p"]), node("Squeeze", "p", "a")], IMAGE, {"a": np.array([2, 3], np.int64)}),
    "identity": ([node("Identity", "x")], IMAGE, {}),
    "dropout": ([node("Dropout", "x")], IMAGE, {}),
    "constant": (
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(array(7))), node("Mul", "x", "c")],
        IMAGE,
        {},
    ),
    "constant float": ([helper.make_node("Constant", [], ["c"], value_float=0.1), node("Mul", "x", "c")], IMAGE, {}),
    "transposed weight": ([helper.make_node("Transpose", ["w"], ["t"]), node("MatMul", "x", "t")], (4,), {"w": array(3, 4)}),
    "view(x.size(0), -1)": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["g"], axis=0),
            helper.make_node("Unsqueeze", ["g", "axis"], ["u"]),
            helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
            node("Reshape", "x", "t"),
        ],
        IMAGE,
        {"zero": np.array(0, np.int64), "axis": np.array([0], np.int64), "rest": np.array([-1], np.int64)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnx_runtime(name: str) -> None:
    nodes, shape, weights = CASES[name]
    data = model(nodes, shape, weights)
    x = array(1 if name == "identity" else 3, *shape)
    found, expected = graph_logits(from_onnx(data), x), onnx_logits(data, x)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_matmul_and_add_keep_their_own_roundings() -> None:
    data = model(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("Add", ["h", "b"], ["y"])],
        (4,),
        {"w": array(4, 3), "b": array(3)},
    )
    graph = from_onnx(data)
    assert [type(n) for n in graph.nodes] == [Gemm, AddConstant]
    assert [n.name for n in graph.nodes] == ["h", "y"]
    assert graph.nodes[0].params == ("w",)
    assert graph.params["w"].shape == (3, 4)


def test_division_is_a_multiplication_only_where_that_is_the_same_number() -> None:
    graph = from_onnx(model([node("Div", "x", "c")], (4,), {"c": np.array([0.25, 2, -8, 1], np.float32)}))
    assert isinstance(graph.nodes[0], MulConstant)
    assert graph.params["c"].tolist() == [4, 0.5, -0.125, 1]
    graph = from_onnx(model([node("Div", "x", "c")], (4,), {"c": np.array([0.25, 3, -8, 1], np.float32)}))
    assert isinstance(graph.nodes[0], DivConstant)
    assert graph.params["c"].tolist() == [0.25, 3, -8, 1]
    for bad, reason in ((0.0, "by zero"), (np.inf, "infinity"), (np.nan, "NaN")):
        with pytest.raises(InputError, match=reason):
            from_onnx(model([node("Div", "x", "c")], (4,), {"c": np.array([2, bad, 2, 2], np.float32)}))


def test_weight_read_twice_gets_a_second_name() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = from_onnx(model(nodes, (3,), {"w": array(3, 3)}))
    assert [n.params for n in graph.nodes] == [("w",), ("w_2",)]
    assert np.array_equal(graph.params["w"], graph.params["w_2"])


def test_fixed_batch_of_one() -> None:
    nodes = [node("Reshape", "x", "s")]
    graph = from_onnx(model(nodes, (2, 3), {"s": np.array([1, -1], np.int64)}, batch=1))
    assert [n.shape for n in graph.nodes] == [(6,)]
    with pytest.raises(InputError, match="batch first"):
        from_onnx(model(nodes, (2, 3), {"s": np.array([1, -1], np.int64)}))
    with pytest.raises(InputError, match="batch of 8"):
        from_onnx(model([node("Relu", "x")], (2, 3), batch=8))


def test_old_files_list_initializers_as_inputs() -> None:
    proto = onnx.load_from_string(model([node("MatMul", "x", "w")], (3,), {"w": array(3, 2)}))
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]))
    assert len(from_onnx(proto.SerializeToString()).nodes) == 1


def test_what_the_output_does_not_need_is_left_out() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["unused"]), node("Relu", "x")]
    assert [type(n) for n in from_onnx(model(nodes, (2, 2))).nodes] == [Relu, Reshape]


def test_global_average_is_a_window_of_the_whole_map() -> None:
    graph = from_onnx(model([node("GlobalAveragePool", "x")], IMAGE))
    pool = graph.nodes[0]
    assert isinstance(pool, AveragePool)
    assert pool.kernel == (6, 7)


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]] = {
    "softmax": ([node("Softmax", "x")], {}, "Softmax.*logits"),
    "gelu": ([node("Gelu", "x")], {}, "Gelu.*use Relu"),
    "hard sigmoid": ([node("HardSigmoid", "x")], {}, "HardSigmoid.*use Clip"),
    "transposed convolution": ([node("ConvTranspose", "x", "w")], {"w": array(2, 3, 3, 3)}, "ConvTranspose.*use Conv"),
    "constant of shape": ([helper.make_node("ConstantOfShape", ["i"], ["c"]), node("Add", "x", "c")], INT, "ConstantOfShape.*initializer"),
    "unknown operator": ([node("Frobnicate", "x")], {}, "Frobnicate"),
    "foreign domain": ([node("Relu", "x", domain="com.example")], {}, "com.example"),
    "attribute": ([node("Relu", "x", alpha=0.1)], {}, '"alpha"'),
    "alpha": ([node("Gemm", "x", "w", alpha=2.0)], {"w": array(4, 3)}, "alpha = 1"),
    "flat gemm": ([node("Gemm", "x", "w")], {"w": array(4, 3)}, "flat"),
    "matmul from the left": ([node("MatMul", "w", "x")], {"w": array(4, 4)}, "left"),
    "weight computed": ([node("Conv", "x", "x")], {}, "constant float32"),
    "conv, 1-D weight": ([node("Conv", "x", "w")], {"w": array(3, 2, 3)}, "two-dimensional"),
    "conv, channels": ([node("Conv", "x", "w")], {"w": array(3, 5, 3, 3)}, "2 channels"),
    "conv, kernel": ([node("Conv", "x", "w", kernel_shape=[5, 5])], {"w": array(3, 2, 3, 3)}, "kernel_shape"),
    "conv, huge pads": ([node("Conv", "x", "w", pads=[10**5] * 4)], {"w": array(3, 2, 3, 3)}, "allowed"),
    "conv, absurd pads": ([node("Conv", "x", "w", pads=[2**62] * 4)], {"w": array(3, 2, 3, 3)}, "pads"),
    "conv, negative pads": ([node("Conv", "x", "w", pads=[-1] * 4)], {"w": array(3, 2, 3, 3)}, "pads"),
    "conv, no stride": ([node("Conv", "x", "w", strides=[0, 1])], {"w": array(3, 2, 3, 3)}, "strides"),
    "conv, groups": ([node("Conv", "x", "w", group=0)], {"w": array(3, 2, 3, 3)}, "group"),
    "average pool, padded": ([node("AveragePool", "x", kernel_shape=[2, 2], pads=[1, 1, 1, 1])], {}, "padding"),
    "max pool, ceil": ([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}, "ceil_mode"),
    "max pool, padding": ([node("MaxPool", "x", kernel_shape=[2, 2], pads=[2, 2, 2, 2])], {}, "padding"),
    "max pool, indices": ([helper.make_node("MaxPool", ["x"], ["y", "at"], kernel_shape=[2, 2])], {}, "one output"),
    "product": ([node("Mul", "x", "x")], {}, "two activations"),
    "broadcast": ([node("Add", "x", "c")], {"c": array(3, 2, 6, 7)}, "broadcast"),
    "wrong constant": ([node("Add", "x", "c")], {"c": array(5)}, "broadcast"),
    "batch flattened": ([node("Flatten", "x", axis=0)], {}, "batch first"),
    "transpose": ([node("Transpose", "x", perm=[1, 0, 2, 3])], {}, "moves the batch"),
    "reshape, batch": ([node("Reshape", "x", "s")], {"s": np.array([2, -1], np.int64)}, "batch"),
    "reshape, count": ([node("Reshape", "x", "s")], {"s": np.array([0, 5], np.int64)}, "cannot turn"),
    "reshape, two unknown": ([node("Reshape", "x", "s")], {"s": np.array([0, -1, -1], np.int64)}, "one -1"),
    "reshape, computed": ([node("Reshape", "x", "x")], {}, "integers"),
    "nan": ([node("Add", "x", "c")], {"c": np.array([np.nan], np.float32)}, '"c" holds NaN'),
    "infinity": ([node("Add", "x", "c")], {"c": np.array([np.inf], np.float32)}, '"c" holds NaN'),
    "half": ([node("Add", "x", "c")], {"c": np.array([1], np.float16)}, "float16"),
    "double": ([node("Add", "x", "c")], {"c": np.array([1.0])}, "DOUBLE"),
    "training": ([node("BatchNormalization", "x", "s", "s", "s", "s", training_mode=1)], {"s": array(2)}, "training"),
    "variance": ([node("BatchNormalization", "x", "s", "s", "s", "s")], {"s": -np.ones(2, np.float32)}, "variance"),
    "mean of the batch": ([node("ReduceMean", "x", axes=[0, 1])], {}, "along the batch"),
    "mean of everything": ([node("ReduceMean", "x")], {}, "name the axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_node_and_reason(name: str) -> None:
    nodes, weights, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        from_onnx(model(nodes, IMAGE, weights))
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_competition_networks(shared_data: Path) -> None:
    files = sorted((shared_data.parent / "vnncomp").glob("*/*.onnx"))
    if not files:
        pytest.skip("needs the VNN-COMP networks beside the folder that VSPARSE_DATA names")
    for path in files:
        graph = from_onnx(path)
        x = RNG.random((1, *graph.input_shape), dtype=np.float32)
        assert np.allclose(graph_logits(graph, x), onnx_logits(path.read_bytes(), x), atol=1e-4), path.name
