"""int8 in the form that TensorRT reads: what is written, that it is read back and executed, and what is refused with which advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from precision_nets import random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Add, AveragePool, Conv, FakeQuant, Gemm, Graph, MaxPool, Relu, Reshape, from_onnx, run, to_onnx
from vsparse.graph.ir import Affine, Concat, QuantisedParameter, Sigmoid
from vsparse.graph.quantised import check_integer_execution, integer_contract
from vsparse.perturbation import PerturbationSet
from vsparse.reading import check_reading
from vsparse.recipe import Verify
from vsparse.stages.export import check_runtime_graph, write_onnx
from vsparse.stages.export.quantise import quantise, require_quantisable
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime, read_model

NAME = "int8-tensorrt"


def quantised(seed: int) -> tuple[Graph, Graph, np.random.Generator]:
    rng = np.random.default_rng(seed)
    graph = random_net(rng)
    return graph, quantise(graph, rng.random((64, 1, 6, 6), dtype=np.float32), NAME), rng


@pytest.mark.parametrize("seed", range(6))
def test_the_file_is_what_tensorrt_reads(seed: int, tmp_path: Path) -> None:
    graph, made, _ = quantised(seed)
    path = tmp_path / "model.int8.onnx"
    write_onnx(made, path, 17, {})
    model = onnx.load(path)
    tensors = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = tensors[node.input[2]]
            assert zero.dtype == np.int8  # TensorRT dequantises nothing else
            assert not zero.any()
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert tensors[node.input[2]].dtype == np.float32
    for name in ("w1", "w2", "w3", "w4"):
        integers = made.integers[name]
        assert (np.abs(integers.values.reshape(len(integers.values), -1)).max(axis=1) == 127)[integers.scale > 2.0**-30].all()
        assert (made.params[name][graph.params[name] == 0] == 0).all()
    read = from_onnx(path)
    assert [type(node) for node in read.nodes] == [type(node) for node in made.nodes]
    assert integer_contract(read) == NAME
    assert all(np.array_equal(read.params[name], value) for name, value in made.params.items())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_read_executed_and_audited_as_it_stands(seed: int, tmp_path: Path) -> None:
    _, made, rng = quantised(seed)
    path = tmp_path / "model.int8.onnx"
    write_onnx(made, path, 17, {})
    evidence = check_reading(path)
    assert (evidence.contract, evidence.levels) == (NAME, ("disable",))
    assert evidence.values_compared > 0
    assert "TensorRT" in evidence.unchecked
    report = check_runtime_graph(path)
    assert report.levels == ()
    model = read_model(path)
    assert (model.executes, model.levels) == (NAME, ("disable",))
    pixels = rng.random((8, 1, 6, 6), dtype=np.float32)
    labels = run(made, made.tensors(), torch.from_numpy(pixels)).argmax(dim=1).numpy().astype(np.int64)
    data = Dataset(pixels, 1.0, labels, ("a", "b", "c"), None)
    certificate = certify(path, data, PerturbationSet(epsilon="0.001"), contract(NAME), Verify(attack_restarts=1))
    assert certificate.replay["graph_optimization_level"] == "disable"
    found = audit(path, data, certificate)
    assert found.passed, found.reason
    assert found.closest <= 1
    with pytest.raises(InputError, match=r"8-bit weights|float32 bias"):
        certify(path, data, PerturbationSet(epsilon="0.001"), contract("int8"), Verify())
    with pytest.raises(InputError, match="choose int8-tensorrt"):
        certify(path, data, PerturbationSet(epsilon="0.001"), contract("fp32"), Verify())


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.samples = iter([{"input": np.random.default_rng(i).random((1, 1, 6, 6), dtype=np.float32)} for i in range(16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.samples, None)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_file_that_another_tool_writes_for_tensorrt_is_read(seed: int, tmp_path: Path) -> None:
    """onnxruntime.quantization with the options of its page on TensorRT: symmetric s8s8, biases left in float32."""
    source, path = tmp_path / "f.onnx", tmp_path / "q.onnx"
    source.write_bytes(to_onnx(random_net(np.random.default_rng(seed))).SerializeToString())
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ, "per_channel": True}
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(str(source), str(path), Calibration(), extra_options=options, **kinds)
    model = read_model(path)
    assert model.executes == NAME
    assert check_reading(path).values_compared > 0
    rounding, x = Rounding(model.graph, contract(NAME)), np.random.default_rng(seed).random((16, 1, 6, 6), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(model.graph, rounding.params, (inputs, inputs), rounding)[model.graph.output]
    logits = Runtime(model.data, "disable").logits(x)
    assert (logits >= low.numpy()).all()
    assert (logits <= high.numpy()).all()


def joined() -> Graph:
    """A residual behind a product, two activations added, an average, and a concatenation."""
    rng = np.random.default_rng(0)
    shape = (4, 4, 4)

    def conv(name: str, source: str, inputs: int = 4) -> Conv:
        return Conv(name=name, inputs=(source,), shape=shape, weight=f"w{inputs}", bias=None)

    nodes = (
        conv("c1", "x", 1),
        Relu(name="r1", inputs=("c1",), shape=shape),
        conv("c2", "r1"),
        Add(name="s1", inputs=("r1", "c2"), shape=shape),
        Relu(name="r2", inputs=("s1",), shape=shape),
        Add(name="s2", inputs=("r1", "r2"), shape=shape),
        AveragePool(name="p", inputs=("s2",), shape=(4, 2, 2), kernel=(2, 2), stride=(2, 2)),
        MaxPool(name="m", inputs=("r2",), shape=(4, 2, 2), kernel=(2, 2), stride=(2, 2)),
        Concat(name="j", inputs=("p", "m"), shape=(8, 2, 2), axis=0),
        Reshape(name="f", inputs=("j",), shape=(32,)),
        Gemm(name="y", inputs=("f",), shape=(3,), weight="v", bias=None),
    )
    params = {"w1": rng.normal(size=(4, 1, 1, 1)), "w4": rng.normal(size=(4, 4, 1, 1)), "v": rng.normal(size=(3, 32))}
    return Graph("x", (1, 4, 4), nodes, "y", {name: value.astype(np.float32) for name, value in params.items()})


def test_what_is_fused_stays_in_float_and_what_is_joined_has_one_scale() -> None:
    made = quantise(joined(), np.random.default_rng(1).random((32, 1, 4, 4), dtype=np.float32), NAME)
    grids = {node.name: node for node in made.nodes if isinstance(node, FakeQuant)}
    first, second = made.node("s1"), made.node("s2")
    assert first.inputs[1] == "c2"  # a product's kernel adds the residual at its end
    assert first.inputs[0] in grids
    scales = {grids[name].scale for name in second.inputs if name in grids}
    behind = next(node for node in made.nodes if isinstance(node, FakeQuant) and node.inputs == ("s2",))
    assert len(second.inputs) == 2
    assert len(scales) == 1
    joint = next(node for node in made.nodes if isinstance(node, FakeQuant) and node.inputs == ("j",))
    assert behind.scale == joint.scale
    assert all((node.lowest, node.highest, node.zero_point) == (-128, 127, 0) for node in grids.values())


def changed(graph: Graph, **parts: np.ndarray) -> Graph:
    """Returns a graph with other integers of its first layer, or another bias."""
    node = next(one for one in graph.nodes if isinstance(one, Affine) and one.bias is not None)
    params, integers = dict(graph.params), dict(graph.integers)
    if "bias" in parts:
        params[node.bias] = parts["bias"]
    if "values" in parts:
        integers[node.weight] = QuantisedParameter(parts["values"], integers[node.weight].scale)
        params[node.weight] = integers[node.weight].floats()
    return replace(graph, params=params, integers=integers)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"bias": np.full(4, 2.0**-41, np.float32)}, "neither 0 nor from 2\\^-40"),
        ({"bias": np.full(4, 2.0**41, np.float32)}, "neither 0 nor from 2\\^-40"),
        ({"values": np.full((4, 1, 3, 3), -128, np.int8)}, "weight -128"),
    ],
)
def test_what_tensorrt_might_do_otherwise_is_refused(parts: dict[str, np.ndarray], words: str) -> None:
    _, made, _ = quantised(0)
    check_integer_execution(made, NAME)
    with pytest.raises(InputError, match=words):
        check_integer_execution(changed(made, **parts), NAME)


def test_files_of_the_other_runtime_are_refused_and_the_advice_holds() -> None:
    graph, made, rng = quantised(1)
    theirs = quantise(graph, rng.random((64, 1, 6, 6), dtype=np.float32))
    with pytest.raises(InputError, match="certify the file under int8"):
        check_integer_execution(theirs, NAME)
    check_integer_execution(theirs, "int8")
    with pytest.raises(InputError, match=r"quantise the bias to int32 too \(QuantizeBias\), or, for TensorRT, choose int8-tensorrt"):
        check_integer_execution(made, "int8")
    check_integer_execution(made, NAME)


def test_an_operator_that_integers_lack_reads_floats() -> None:
    """What a maximum hands to a sigmoid as well as to a convolution stays in float32, and is quantised for the convolution alone."""
    graph = joined()
    further = (
        Sigmoid(name="odd", inputs=("m",), shape=(4, 2, 2)),
        Conv(name="again", inputs=("m",), shape=(4, 2, 2), weight="w4", bias=None),
        Add(name="more", inputs=("again", "odd"), shape=(4, 2, 2)),
    )
    *first, joint, flat, last = graph.nodes
    odd = replace(graph, nodes=(*first, *further, replace(joint, inputs=("p", "more")), flat, last))
    for rules in ("int8", NAME):
        require_quantisable(graph, rules)
        require_quantisable(odd, rules)
