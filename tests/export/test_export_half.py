"""Half-precision exports: rounded once, read exactly, executed inside the bounds, certified under contracts that store fp16 alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from precision_nets import random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import from_onnx, run, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import check_runtime_graph, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.runtime_formats import require_one_value
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime, read_model, session_variants


@pytest.mark.parametrize("seed", range(6))
def test_every_optimisation_level_is_inside_the_bounds(seed, tmp_path):
    rng = np.random.default_rng(seed)
    graph = random_net(rng)
    path = tmp_path / "model.fp16.onnx"
    write_onnx(half(graph), path, 17, {})
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert set(stored.values()) == {TensorProto.FLOAT16}
    check_runtime_graph(path)
    model = read_model(path)
    assert model.graph.storage == model.executes == "fp16"
    for name, value in model.graph.params.items():
        assert np.array_equal(value, graph.params[name].astype(np.float16).astype(np.float32))
    rounding = Rounding(model.graph, contract("fp16"))
    x = rng.random((16, 1, 6, 6), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(model.graph, rounding.params, (inputs, inputs), rounding)[model.graph.output]
    for level, threads, batch in session_variants():
        logits = Runtime(model.data, level, threads, batch).logits(x)
        assert (logits >= low.numpy()).all(), level
        assert (logits <= high.numpy()).all(), level


def test_other_contracts_are_refused_and_the_file_is_certified_under_its_own(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    path = tmp_path / "model.fp16.onnx"
    graph = half(random_net(rng))
    write_onnx(graph, path, 17, {})
    pixels = rng.random((8, 1, 6, 6), dtype=np.float32)
    labels = run(graph, graph.tensors(), torch.from_numpy(pixels)).argmax(dim=1).numpy().astype(np.int64)
    data = Dataset(pixels, 1.0, labels, ("a", "b", "c"), None)
    for name in ("fp32", "tf32", "bf16", "sequential"):
        with pytest.raises(InputError, match=r"stores fp16.*choose fp16|not representable"):
            certify(path, data, PerturbationSet(epsilon="0.001"), contract(name), Verify())
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.machine", lambda: "aarch64")
        with pytest.raises(InputError, match="choose --contract fp16-chain"):
            certify(path, data, PerturbationSet(epsilon="0.001"), contract("fp16"), Verify())
        assert read_model(path).executes == "fp16-accumulate"
    certificate = certify(path, data, PerturbationSet(epsilon="0.001"), contract("fp16"), Verify(attack_restarts=1))
    assert certificate.summary.certified > 0
    found = audit(path, data, certificate)
    assert found.passed, found.reason
    assert found.values_checked > 0
    Rounding(from_onnx(path), contract("real"))
    Rounding(from_onnx(path), contract("fp16-accumulate"))


def test_large_weights_are_refused_and_small_ones_become_zero():
    graph = random_net(np.random.default_rng(0))
    large = {**graph.params, "w1": graph.params["w1"] + np.float32(7e4)}
    with pytest.raises(InputError, match='"w1" is beyond 65504'):
        half(graph.with_params(large))
    small = {**graph.params, "b1": np.full(4, 1e-9, np.float32)}
    assert (half(graph.with_params(small)).params["b1"] == 0).all()
    with pytest.raises(InputError, match="no float16 number"):
        to_onnx(replace(graph, storage="fp16"))


def model_of(nodes, tensors, dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", dtype, ["n", 2])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


W = numpy_helper.from_array(np.array([[1, 0.1], [2, -3]], np.float16), "w")


def cast(source, output, to):
    return helper.make_node("Cast", [source], [output], to=to)


def test_bit_patterns_in_the_integer_field_are_read_exactly():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[2, 2])
    values = np.array([[0.1, -2.5], [65504, 6e-8]], np.float16)
    tensor.int32_data.extend(values.view(np.uint16).astype(int).reshape(-1).tolist())
    nodes = [cast("x", "h", 10), helper.make_node("Gemm", ["h", "w"], ["g"], transB=1), cast("g", "y", 1)]
    graph = from_onnx(model_of(nodes, [tensor]))
    assert np.array_equal(graph.params["w"], values.astype(np.float32))
    assert graph.storage == "fp16"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Gemm", ["x", "w"], ["g"], transB=1), cast("g", "y", 1)], "constant float32"),
        ([helper.make_node("Neg", ["x"], ["g"]), cast("g", "h", 10), cast("h", "y", 1)], "mixes float32 with float16"),
        ([cast("x", "h", 10), helper.make_node("Gemm", ["h", "f"], ["g"], transB=1), cast("g", "y", 1)], "constant float16"),
        ([cast("x", "h", 10), cast("h", "k", 1), helper.make_node("LeakyRelu", ["k"], ["y"])], "mixes float32 with float16"),
        ([cast("x", "h", 10), cast("h", "k", 1), helper.make_node("Gemm", ["k", "w"], ["y"])], "constant float32"),
        ([cast("x", "h", 10), cast("h", "i", 7), cast("i", "y", 1)], "float32 or float16"),
        ([cast("x", "h", 10), helper.make_node("Add", ["h", "x"], ["y"])], "mixes float32 with float16"),
    ],
)
def test_other_casts_are_refused(nodes, reason):
    floats = numpy_helper.from_array(np.ones((2, 2), np.float32), "f")
    with pytest.raises(InputError, match=reason):
        from_onnx(model_of(nodes, [W, floats]))


def test_an_activation_with_two_values_is_a_gate():
    nodes = [cast("x", "h", 10), cast("h", "k", 1), helper.make_node("Add", ["x", "k"], ["y"])]
    model = onnx.ModelProto()
    model.ParseFromString(model_of(nodes, []))
    with pytest.raises(GateError, match='reads "x" both'):
        require_one_value(model, "the runtime")
