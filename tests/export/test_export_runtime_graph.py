"""The runtime-graph check: silent on clean exports, loud on everything a runtime folds."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engine_nets import CLASSES, case, node_types
from vsparse.errors import GateError, InputError
from vsparse.graph import BatchNorm, Node, from_onnx, run, to_onnx
from vsparse.graph.ir import Add, AddConstant, AveragePool, Conv, Gemm, Graph, MaxPool, MulConstant, Relu, Reshape
from vsparse.reading.runtime import Runtime
from vsparse.stages.export import check_runtime_graph, content_sha256, runtime_graph, write_onnx
from vsparse.stages.export.runtime_hashes import Algebra, QuantisationGrid

RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def conv_graph(channels: int = 8) -> Graph:
    """Normalisation, two padded convolutions, pooling, a linear layer: what an export looks like."""
    nodes = (
        AddConstant(name="shift", inputs=("input",), shape=(1, 8, 8), constant="mean"),
        MulConstant(name="scale", inputs=("shift",), shape=(1, 8, 8), constant="std"),
        Conv(name="c1", inputs=("scale",), shape=(channels, 8, 8), weight="w1", bias="b1", pads=(1, 1, 1, 1)),
        Relu(name="r1", inputs=("c1",), shape=(channels, 8, 8)),
        Conv(name="c2", inputs=("r1",), shape=(13, 8, 8), weight="w2", bias="b2", pads=(1, 1, 1, 1)),
        Relu(name="r2", inputs=("c2",), shape=(13, 8, 8)),
        MaxPool(name="p", inputs=("r2",), shape=(13, 4, 4), kernel=(2, 2), stride=(2, 2)),
        Reshape(name="flat", inputs=("p",), shape=(208,)),
        Gemm(name="fc", inputs=("flat",), shape=(10,), weight="w3", bias="b3"),
    )
    params = {"mean": array(1, 1, 1), "std": array(1, 1, 1), "w1": array(channels, 1, 3, 3), "b1": array(channels)}
    params |= {"w2": array(13, channels, 3, 3), "b2": array(13), "w3": array(10, 208), "b3": array(10)}
    return Graph("input", (1, 8, 8), nodes, "fc", params)


@pytest.mark.parametrize("channels", [8, 5, 16])
def test_an_export_passes_at_every_level(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "m.onnx"
    digest = write_onnx(conv_graph(channels), path, 17, {"recipe": "test"})
    assert digest == content_sha256(path)
    report = check_runtime_graph(path)
    assert [level.level for level in report.levels] == ["basic", "extended", "all"]
    assert report.content_sha256 == digest
    assert report.levels[0].reordered == report.levels[1].reordered == 0
    assert report.levels[0].identical >= 8


def test_the_same_graph_gives_the_same_bytes_and_reads_back(tmp_path: Path) -> None:
    graph = conv_graph()
    write_onnx(graph, tmp_path / "a.onnx", 17, {"b": "2", "a": "1"})
    write_onnx(graph, tmp_path / "b" / "a.onnx", 17, {"a": "1", "b": "2"})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b" / "a.onnx").read_bytes()
    back = from_onnx(tmp_path / "a.onnx")
    assert sorted(p.tobytes() for p in back.params.values()) == sorted(p.tobytes() for p in graph.params.values())


def save(path: Path, nodes: list[onnx.NodeProto], shape: list[int], tensors: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "folds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def test_a_batch_norm_that_the_runtime_folds_is_a_gate(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["c"]),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    tensors = {"w": array(4, 1, 3, 3), "s": array(4), "b": array(4), "m": array(4), "v": np.abs(array(4)) + 1}
    with pytest.raises(GateError, match=r"folds the batch normalisation.*`vsparse export MODEL`"):
        check_runtime_graph(save(tmp_path / "bn.onnx", nodes, [1, 8, 8], tensors))


def test_a_multiplication_after_a_convolution_is_a_gate(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3]),
        helper.make_node("Mul", ["a", "s"], ["b"]),
        helper.make_node("Flatten", ["b"], ["y"]),
    ]
    for scale in (array(4, 1, 1), np.full((4, 1, 1), 1e38, np.float32)):  # the second one makes weights infinite
        path = save(tmp_path / "mul.onnx", nodes, [1, 8, 8], {"w": 8 * array(4, 1, 3, 3), "s": scale})
        with pytest.raises(GateError, match=r"optimisation level basic.*Conv.*nowhere in the network"):
            check_runtime_graph(path)


def test_a_weight_that_nothing_uses_changes_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "p"], ["y"])]
    assert check_runtime_graph(save(tmp_path / "unused.onnx", nodes, [3], {"p": array(3), "q": array(3)})).compared == 3


@pytest.mark.parametrize("behind", [False, True])
def test_a_factor_that_moves_across_a_product_is_a_gate(tmp_path: Path, behind: bool) -> None:
    """Every tensor of the file is in the runtime's graph, and yet the product may over- or underflow before the factor comes."""
    first = [helper.make_node("Mul", ["x", "c"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["b"])]
    second = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Div", ["a", "c"], ["b"])]
    nodes = [*(second if behind else first), helper.make_node("Relu", ["b"], ["r"]), helper.make_node("Mul", ["r", "c"], ["y"])]
    path = save(tmp_path / "scale.onnx", nodes, [4], {"c": np.float32(1e30), "w": 1e-25 * array(4, 4)})
    with pytest.raises(GateError, match=r"optimisation level extended.*MatMul.*by a factor.*`vsparse export MODEL` writes"):
        check_runtime_graph(path)


PAD_1D = [
    helper.make_node("Pad", ["x", "p"], ["a"]),
    helper.make_node("Reshape", ["a", "s"], ["b"]),
    helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3]),
    helper.make_node("Flatten", ["c"], ["y"]),
]
PAD_MOVED = [
    helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
    helper.make_node("Pad", ["t", "p"], ["a"]),
    helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
    helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3]),
    helper.make_node("Flatten", ["c"], ["y"]),
]


def fused_pool(model: onnx.ModelProto, pads: list[int]) -> onnx.ModelProto:
    """What PadFusion makes of it: the pool pads, and nothing else."""
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    size = next(a for a in pool.attribute if a.name == "kernel_shape").ints
    nodes = [helper.make_node("MaxPool", ["x"], ["c"], kernel_shape=size, pads=pads), model.graph.node[-1]]
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    del fused.graph.node[:]
    fused.graph.node.extend(nodes)
    return fused


@pytest.mark.parametrize("kind", ["behind a reshape", "between transposes"])
def test_padding_that_becomes_the_pools_own_is_another_network(tmp_path: Path, kind: str) -> None:
    if kind == "behind a reshape":
        tensors = {"p": np.array([0, 0, 1, 0, 0, 1]), "s": np.array([0, 3, 10])}
        path, pads = save(tmp_path / "m.onnx", PAD_1D, [3, 8], tensors), [1, 1]
    else:
        path, pads = save(tmp_path / "m.onnx", PAD_MOVED, [3, 8, 8], {"p": np.array([0, 1, 1, 0, 0, 1, 1, 0])}), [1, 1, 1, 1]
    try:
        graph = from_onnx(path)
    except InputError:
        return  # refused by operator
    difference = runtime_graph.GraphComparison(graph, fixed_batch=False).difference(fused_pool(onnx.load(path), pads))
    assert difference is not None
    assert "MaxPool" in str(difference)
    x = -np.abs(np.random.default_rng(1).normal(size=(1, *graph.input_shape))).astype(np.float32)
    try:
        check_runtime_graph(path)
    except GateError:
        return  # this version of the runtime moves it
    (found,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.array_equal(found, run(graph, graph.tensors(), torch.from_numpy(x)).numpy())


def test_a_file_that_is_no_model_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError):
        check_runtime_graph(path)
    save(path, [helper.make_node("NoSuchOperator", ["x"], ["y"])], [3], {})
    with pytest.raises(InputError, match="NoSuchOperator"):
        check_runtime_graph(path)
    # Read here, but not by the runtime: a second input of the graph that nothing gives a type.
    save(path, [helper.make_node("Relu", ["x"], ["y"])], [3], {})
    model = onnx.load(path)
    model.opset_import.add(domain="no.such.domain", version=999)
    model.graph.node.add(op_type="Nothing", domain="no.such.domain", input=["x"], output=["z"])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError):
        check_runtime_graph(path)


def pre_activation(channels: int, seed: int = 0) -> Graph:
    """A factor and a shift for each channel between a residual addition and a convolution, as a batch norm there leaves them."""
    rng = np.random.default_rng(seed)
    sizes = {"w1": (channels, 2, 3, 3), "w2": (channels, channels, 3, 3), "w3": (channels, channels, 3, 3), "w4": (10, channels)}
    sizes |= {"s": (channels, 1, 1), "t": (channels, 1, 1)}
    shape = (channels, 8, 8)
    nodes = (
        Conv(name="c1", inputs=("input",), shape=shape, weight="w1", bias=None, pads=(1, 1, 1, 1)),
        Relu(name="r1", inputs=("c1",), shape=shape),
        Conv(name="c2", inputs=("r1",), shape=shape, weight="w2", bias=None, pads=(1, 1, 1, 1)),
        Add(name="sum", inputs=("c2", "c1"), shape=shape),
        MulConstant(name="factor", inputs=("sum",), shape=shape, constant="s"),
        AddConstant(name="shifted", inputs=("factor",), shape=shape, constant="t"),
        Relu(name="r2", inputs=("shifted",), shape=shape),
        Conv(name="c3", inputs=("r2",), shape=shape, weight="w3", bias=None, pads=(1, 1, 1, 1)),
        AveragePool(name="mean", inputs=("c3",), shape=(channels, 1, 1), kernel=(8, 8), stride=(8, 8)),
        Reshape(name="flat", inputs=("mean",), shape=(channels,)),
        Gemm(name="y", inputs=("flat",), shape=(10,), weight="w4", bias=None),
    )
    return Graph("input", (2, 8, 8), nodes, "y", {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()})


@pytest.mark.parametrize("channels", [5, 16, 23, 64])
def test_a_factor_between_an_addition_and_a_convolution_passes_at_every_level(tmp_path: Path, channels: int) -> None:
    write_onnx(pre_activation(channels), tmp_path / "m.onnx", 17, {})
    assert len(check_runtime_graph(tmp_path / "m.onnx").levels) == 3


def test_a_malformed_tensor_is_a_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Mul", ["x", "p"], ["y"])], [3], {"p": array(3)})
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="cannot be read"):
        check_runtime_graph(path)


def test_long_rows_of_pools_and_moves_before_a_quantisation_are_followed() -> None:
    """Rounding to a grid goes before all of them, however many there are."""
    algebra, grid = Algebra(), QuantisationGrid(0.5, 0, 255)
    before = after = algebra.input((1, 1, 2, 2))
    after = algebra.quantised(after, grid)
    for _ in range(2000):
        before, after = (algebra.maximum(x, (2, 2), (1, 1), (1, 1, 0, 0)).moved(lambda array: array[..., ::-1]) for x in (before, after))
    assert np.array_equal(algebra.quantised(before, grid).hashes, after.hashes)


def test_names_that_control_terminals_do_not_come_through_the_runtimes_errors(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], name="\x1b[2Junsat")], [3], {})
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.INT64, [1, 3]))
    model.graph.node[0].output[0] = "h"
    model.graph.node.append(helper.make_node("Relu", ["h"], ["y"]))
    model.graph.value_info[0].name = "h"
    path.write_bytes(model.SerializeToString())
    for check in (check_runtime_graph, lambda path: Runtime(path.read_bytes())):
        with pytest.raises(InputError, match="unsat") as refusal:
            check(path)
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("between", ["Concat", "Pad"])
def test_what_moves_nothing_between_two_clips_hides_neither(tmp_path: Path, between: str) -> None:
    """The reader leaves out a Concat of one and a Pad of nothing, and the two ReLUs around them are one."""
    pads = {"pads": np.zeros(4, np.int64)} if between == "Pad" else {}
    middle = helper.make_node(between, ["a", *pads], ["b"], **({} if pads else {"axis": 1}))
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        middle,
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "p"], ["y"]),
    ]
    assert check_runtime_graph(save(tmp_path / "m.onnx", nodes, [3], {"p": array(3), **pads})).compared == 3


@pytest.mark.parametrize("kind", sorted(node_types() - {BatchNorm}, key=lambda kind: kind.__name__))
def test_every_node_type_has_a_fingerprint_that_the_runtime_s_graph_has_too(kind: type[Node], tmp_path: Path) -> None:
    graph = case(kind, tail=False).graph
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    assert check_runtime_graph(path).compared == CLASSES
