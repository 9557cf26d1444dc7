"""A file that is read as another network than ONNX Runtime executes is refused, and the node is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from reading_nets import Model, every_operator, moved_factor

from vsparse.errors import GateError, InputError
from vsparse.graph import Graph, Node, Reading, Tensor, read_onnx
from vsparse.reading import Asked, check_reading, compare
from vsparse.reading.runtime import LEVELS, Runtime
from vsparse.reading.shapes import inferred


def misread(reading: Reading, name: str, **changes: Any) -> Reading:
    """Returns the reading with one node read wrongly; `params` among the changes are parameters."""
    graph = reading.graph
    params = {**graph.params, **changes.pop("params", {})}
    nodes = tuple(replace(node, **changes) if node.name == name else node for node in graph.nodes)
    return replace(reading, graph=replace(graph, nodes=nodes, params=params))


def weight_of(graph: Graph, name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    parameter = graph.node(name).params[0]
    return {"params": {parameter: np.ascontiguousarray(change(graph.params[parameter]))}}


# What a reader could get wrong without a shape to show it.
FAULTS: dict[str, tuple[str, Callable[[Graph], dict[str, Any]]]] = {
    "ends of the padding swapped": ("conv", lambda g: {"pads": (1, 0, 1, 2)}),
    "padding clamped": ("conv", lambda g: {"pads": (2, 2, 0, 0)}),
    "weights read column by column": ("conv", lambda g: weight_of(g, "conv", lambda w: w.transpose(0, 1, 3, 2))),
    "padding of another operator": ("depthwise", lambda g: {"pads": (2, 0, 0, 2)}),
    "ReLU of the other sign": ("relu", lambda g: weight_of(g, "conv", lambda w: -w)),
    "operand of the addition": ("residual", lambda g: {"inputs": ("relu", "relu")}),
    "default slope": ("leaky", lambda g: {"slope": 0.01}),
    "axes not swapped": ("transpose", lambda g: {"order": (0, 1, 2)}),
    "constant along another axis": ("scale", lambda g: weight_of(g, "scale", lambda c: c[::-1])),
    "constant subtracted": ("shift", lambda g: weight_of(g, "shift", lambda c: -c)),
    "window shifted": ("max", lambda g: {"pads": (2, 1, 0, 1)}),
    "padded value dropped": ("pad", lambda g: {"value": 0.0}),
    "padded on the other side": ("pad", lambda g: {"before": (0, 0, 0), "after": (0, 1, 1)}),
    "slice one off": ("lower", lambda g: {"starts": (1, 0, 0), "stops": (3, 6, 6)}),
    "parts in another order": ("concat", lambda g: {"inputs": ("lower", "upper")}),
    "operands of the difference swapped": ("difference", lambda g: {"inputs": ("average", "concat")}),
    "multiplied in place of divided": ("quotient", lambda g: weight_of(g, "quotient", lambda c: 1 / c)),
    "clip without an end": ("clip", lambda g: {"highest": float("inf")}),
    "ends of the clip": ("clip", lambda g: {"lowest": -2.0}),
    "bias left out": ("gemm", lambda g: {"bias": None}),
    "square matrix transposed": ("matmul", lambda g: weight_of(g, "matmul", lambda w: w.T)),
    "epsilon of the normalisation": ("norm", lambda g: {"epsilon": 1e-2}),
}


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_reader_is_caught_at_its_node(fault: str, batch: int | str) -> None:
    name, change = FAULTS[fault]
    data = every_operator(batch)
    reading = read_onnx(data)
    wrong = misread(reading, name, **change(reading.graph))
    caught_at = {"ReLU of the other sign": "conv"}.get(fault, name)
    with pytest.raises(InputError, match=rf'^the model reads differently from ONNX Runtime .* at node "{caught_at}" \(\w+\)'):
        check_reading(data, wrong)


def test_what_is_read_right_leaves_evidence() -> None:
    data = every_operator()
    first, second = check_reading(data), check_reading(data)
    assert first == second
    assert (first.runtime, first.contract, first.levels, first.threads, first.batches) == (
        "onnxruntime",
        "fp32",
        tuple(LEVELS),
        (1, 2),
        (1, 3),
    )
    assert first.executions == first.points * len(LEVELS) * 2
    assert first.shapes_compared == 24
    assert first.values_compared > 10_000
    assert 0 < first.largest_share <= 1
    assert first.largest_share_at.startswith('node "')
    assert first.as_dict()["schema_version"] == 1
    assert check_reading(every_operator(1)).batches == (1,)


def test_two_operators_read_as_each_other() -> None:
    data = every_operator()
    reading = read_onnx(data)
    kinds = {node.name: type(node) for node in reading.graph.nodes}

    def swapped(node: Node) -> Node:
        other = {"tanh": "sigmoid", "sigmoid": "tanh"}.get(node.name)
        return kinds[other](name=node.name, inputs=node.inputs, shape=node.shape) if other else node

    graph = replace(reading.graph, nodes=tuple(map(swapped, reading.graph.nodes)))
    with pytest.raises(InputError, match=r'at node "tanh" \(Tanh\)'):
        check_reading(data, replace(reading, graph=graph))


@pytest.mark.parametrize("change", [{"zero_point": 127}, {"scale": 0.0501}, {"highest": 254}])
def test_a_step_of_a_quantisation_that_is_one_off(change: dict[str, Any]) -> None:
    reading = read_onnx(quantised_pair())
    assert check_reading(quantised_pair(), reading).contract == "int8"
    node = next(node for node in reading.graph.nodes if type(node).__name__ == "FakeQuant")
    wrong = misread(reading, node.name, **change)
    with pytest.raises(InputError, match=r'at node "dq" \(DequantizeLinear\)'):
        check_reading(quantised_pair(), wrong)


def quantised_pair() -> bytes:
    m = Model(6)
    scale, zero = m.store(np.array(0.05, np.float32)), m.store(np.array(128, np.uint8))
    m.add("QuantizeLinear", scale, zero, name="q")
    m.add("DequantizeLinear", scale, zero, name="dq")
    return m.data(6)


def test_a_quantised_file_that_no_contract_is_about_is_compared_operator_by_operator() -> None:
    m = Model(6)
    scale, zero = m.store(np.array(0.05, np.float32)), m.store(np.array(128, np.uint8))
    m.add("QuantizeLinear", scale, zero, name="q")
    m.add("DequantizeLinear", scale, zero, name="dq")
    m.add("Gemm", m.weights(6, 3), name="gemm")  # float weights on quantised values: integer kernels have none
    data = m.data(3)
    evidence = check_reading(data)
    assert evidence.levels == ("disable",)
    assert "float32 weight" in evidence.unchecked
    assert evidence.values_compared > 0
    reading = read_onnx(data)
    with pytest.raises(InputError, match=r'at node "gemm" \(Gemm\)'):
        check_reading(data, misread(reading, "gemm", **weight_of(reading.graph, "gemm", np.negative)))


# Shapes -----------------------------------------------------------------------------------------------------------------


def wrong_shape(reading: Reading, name: str, *shape: int | None) -> Reading:
    tensors = {**reading.tensors, name: Tensor(reading.tensors[name].activation, shape)}
    return replace(reading, tensors=tensors)


@pytest.mark.parametrize("shape", [(1, 4, 36), (4, 6, 6), (1, 4, 6, 5), (1, 4, 1, 36)])
def test_a_shape_that_inference_contradicts_names_the_node(shape: tuple[int, ...]) -> None:
    data = every_operator(1)
    with pytest.raises(InputError, match=r'shape inference at node "transpose" \(Transpose\).*\[1, 4, 6, 6\]'):
        check_reading(data, wrong_shape(read_onnx(data), "transpose", *shape))


@pytest.mark.parametrize("batch", ["N", 1])
def test_where_inference_says_nothing_execution_decides(batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "inferred", lambda *_: {})
    data = every_operator(batch)
    right = check_reading(data)
    assert right.shapes_compared == 0
    first = None if batch == "N" else 1
    with pytest.raises(InputError, match=r'ONNX Runtime \S+ at node "transpose" \(Transpose\): its output has the shape'):
        check_reading(data, wrong_shape(read_onnx(data), "transpose", first, 4, 36))


def test_a_squeeze_that_drops_the_batch_too_is_no_other_axis() -> None:
    """Squeeze without axes on [1, 1, 5, 5] gives [5, 5]; a reader that keeps the batch has [1, 5, 5]."""
    m = Model(1, 5, 5, batch=1)
    m.add("Squeeze", name="squeeze")
    m.add("Flatten", name="flat", axis=0)
    data = m.data(25)
    reading = read_onnx(data)
    with pytest.raises(InputError, match=r'shape inference at node "squeeze" \(Squeeze\).* \[5, 5\] there, and \[1, 5, 5\]'):
        check_reading(data, wrong_shape(reading, "squeeze", 1, 5, 5))
    assert check_reading(data, wrong_shape(reading, "squeeze", 5, 5)).shapes_compared == 2


def test_inference_that_fails_names_the_node() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [0.0] * 6)
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, [1, 2])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(InputError, match=r'model m cannot be compared .* at node "product" \(MatMul\): '):
        inferred(model, "model m")


def test_annotations_of_the_file_are_not_believed() -> None:
    model = onnx.load_from_string(every_operator())
    model.graph.value_info.append(helper.make_tensor_value_info("transpose", TensorProto.FLOAT, ["N", 1, 2, 3]))
    assert check_reading(model.SerializeToString()).shapes_compared == 24


def in_another_form(form: str) -> bytes:
    """The same network in a form that runtimes accept and inference by itself does not."""
    model = onnx.load_from_string(every_operator())
    nodes = list(model.graph.node)
    if form == "unsorted":
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
        del model.graph.node[:]
        model.graph.node.extend(kept)
    if form == "named domain":
        for node in nodes:
            node.domain = "ai.onnx"
    if form == "initializers as inputs":
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    if form == "constants of an old format":
        model.ir_version = 3
        constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
        kept = [*constants, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes)]
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(kept)
    return model.SerializeToString()


@pytest.mark.parametrize("form", ["unsorted", "named domain", "initializers as inputs", "constants of an old format"])
def test_every_form_of_a_file_that_runtimes_accept_is_compared(form: str) -> None:
    evidence = check_reading(in_another_form(form))
    assert evidence.shapes_compared >= 24
    assert evidence.values_compared == check_reading(every_operator()).values_compared


def test_a_constant_of_integers_in_an_old_opset_is_no_fault_of_the_file() -> None:
    m = Model(4)
    m.add("Constant", inputs=[], name="shape", value=helper.make_tensor("v", TensorProto.INT64, [2], [0, -1]))
    m.nodes[-1].ClearField("input")
    m.add("Reshape", inputs=["x", "shape"], name="reshape")
    m.add("Gemm", m.weights(4, 2), m.weights(2), name="gemm")
    assert check_reading(m.data(2, opset=7)).shapes_compared == 2


def test_a_network_that_computes_nothing_is_compared() -> None:
    m = Model(4)
    m.add("Transpose", name="same", perm=[0, 1])
    assert check_reading(m.data(4)).values_compared > 0


# Optimised graphs ---------------------------------------------------------------------------------------------------------


def test_a_factor_that_the_runtime_moves_is_noticed_and_located() -> None:
    """Nothing is read wrongly: the optimised graph is another network, which only executions of it show."""
    x = np.full((1, 4), 1e-20, np.float32)
    with pytest.raises(GateError, match=r"another network by ONNX Runtime \S+ at optimisation level extended.*node \"\w+\" \(\w+\)"):
        check_reading(moved_factor(), asked=Asked(x * np.float32(0.7), x))


class Broken(Runtime):
    """Computes NaN at one level with two threads."""

    def __init__(self, model: bytes, level: Any = "all", threads: int = 1, batch: int = 1) -> None:
        super().__init__(model, level, threads, batch)
        self.broken = (level, threads) == ("extended", 2)

    def run_once(self, inputs: np.ndarray, outputs: Any = None) -> list[np.ndarray]:
        found = super().run_once(inputs, outputs)
        return [value * np.float32(np.nan) for value in found] if self.broken else found


def test_a_number_that_is_none_is_outside_of_what_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Runtime", Broken)
    with pytest.raises(GateError, match=r"level extended with 2 thread\(s\).* comes out as nan where"):
        check_reading(every_operator())


def test_where_an_overflow_is_possible_nothing_is_compared() -> None:
    m = Model(4)
    m.add("Mul", np.array(1e30, np.float32), name="large")
    m.add("Mul", np.array(1e30, np.float32), name="infinite")
    m.add("Gemm", np.eye(4, dtype=np.float32), name="gemm")
    evidence = check_reading(m.data(4))
    assert evidence.values_compared < evidence.executions * 4


def test_a_network_of_wide_layers_is_executed_on_fewer_points(monkeypatch: pytest.MonkeyPatch) -> None:
    few = check_reading(every_operator()).points
    monkeypatch.setattr(compare, "WORK", 1e4)
    assert check_reading(every_operator()).points == compare.FEWEST < few


def test_what_the_runtime_cannot_load_or_run_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(Runtime):
        def run_once(self, inputs: np.ndarray, outputs: Any = None) -> list[np.ndarray]:
            raise InputError("onnxruntime cannot execute the model on inputs of shape [4] (RuntimeError)")

    path = tmp_path / "net.onnx"
    path.write_bytes(every_operator())
    monkeypatch.setattr(compare, "Runtime", Refuses)
    with pytest.raises(InputError, match=r"model \S+net.onnx: onnxruntime cannot execute"):
        check_reading(path)
    model = onnx.load_from_string(every_operator())
    model.ir_version = 99
    monkeypatch.undo()
    with pytest.raises(InputError, match="onnxruntime cannot load"):
        check_reading(model.SerializeToString())


# The reader, wrong from within ----------------------------------------------------------------------------------------------


@pytest.fixture
def wrong_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is read with its Leaky ReLUs as ReLUs."""
    module = sys.modules["vsparse.graph.from_onnx"]
    read = module._read

    def wrongly(*arguments: Any) -> Reading:
        reading = read(*arguments)
        nodes = tuple(replace(node, slope=0.0) if type(node).__name__ == "LeakyRelu" else node for node in reading.graph.nodes)
        return replace(reading, graph=replace(reading.graph, nodes=nodes))

    monkeypatch.setattr(module, "_read", wrongly)


PROPERTY = """(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)
(assert (>= X_0 0.25)) (assert (<= X_0 0.5)) (assert (>= X_1 0.25)) (assert (<= X_1 0.5)) (assert (>= Y_0 1000.0))
"""


def leaky_file(folder: Path, inputs: int) -> Path:
    m = Model(inputs)
    m.add("Gemm", m.weights(inputs, 5), name="first")
    m.add("LeakyRelu", name="leaky", alpha=0.5)
    m.add("Gemm", m.weights(5, 2) + np.float32(0.5), name="last")
    path = folder / "leaky.onnx"
    path.write_bytes(m.data(2))
    return path


@pytest.mark.usefixtures("wrong_reader")
@pytest.mark.parametrize("contract", ["fp32", "real"])
def test_whatever_reads_a_file_executes_it(tmp_path: Path, contract: str) -> None:
    from vsparse import compress, export, profile, verify
    from vsparse.contract import CONTRACTS
    from vsparse.stages.verify.query import answer_query
    from vsparse.standalone import smooth

    images, small = leaky_file(tmp_path, 4), tmp_path / "small"
    small.mkdir()
    data = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(data, x=rng.random((12, 1, 2, 2), dtype=np.float32), y=np.arange(12) % 2)
    query = tmp_path / "query.vnnlib"
    query.write_text(PROPERTY)
    calls: dict[str, Callable[[], object]] = {
        "verify": lambda: verify(images, data=str(data), epsilon="0.01", contract=contract, jobs=1),
        "smoothing": lambda: smooth(images, data=str(data), sigma=0.1, n=100),
        # In this process, where the reader is wrong; `verify_property` asks another one.
        "property": lambda: answer_query(leaky_file(small, 2), query, CONTRACTS[contract], jobs=1, timeout=60),
        "compress": lambda: compress(images, tmp_path / "packed.onnx"),
        "export": lambda: export(images, out=tmp_path / "exported"),
        "profile": lambda: profile(images, runs=1, seconds=0.0, warmup=0),
    }
    for call in calls.values():
        # The graph that ONNX Runtime saves, which is compared first under fp32, is another one than was read too.
        with pytest.raises((InputError, GateError), match=r'(reads differently|is read as another).* node "leaky" \(LeakyRelu\)'):
            call()
    assert not (tmp_path / "packed.onnx").exists()
    assert not (tmp_path / "exported").exists()
