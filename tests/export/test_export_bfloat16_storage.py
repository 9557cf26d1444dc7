"""Weights stored in bfloat16 and computed with in float32: what ONNX Runtime makes of such files is what was read, weight by weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from precision_nets import random_net

from vsparse.bounds import Rounding, interval
from vsparse.contract import contract
from vsparse.errors import GateError, InputError
from vsparse.graph import Graph, from_onnx, read_onnx
from vsparse.graph.bfloat16 import BFloat16, to_bfloat16
from vsparse.reading import check_reading, check_written
from vsparse.stages.export import check_runtime_graph, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.runtime_form import foldable
from vsparse.stages.verify.deployed import Runtime, read_model, session_variants
from vsparse_check.model import Model


def narrowed(graph: Graph) -> Graph:
    return graph.with_params({name: to_bfloat16(value).widened() for name, value in graph.params.items()})


@pytest.fixture
def written(tmp_path):
    """Returns a random network whose weights are bfloat16 numbers, and the file that stores them so."""
    graph, path = narrowed(random_net(np.random.default_rng(1))), tmp_path / "model.onnx"
    write_onnx(graph, path, 17, {}, bfloat16=True)
    return graph, path


@pytest.mark.parametrize("seed", range(6))
def test_every_optimisation_level_executes_what_is_read(seed, tmp_path):
    rng = np.random.default_rng(seed)
    graph, path = narrowed(random_net(rng)), tmp_path / "model.onnx"
    write_onnx(graph, path, int(rng.choice([13, 17, 21])), {}, bfloat16=True)
    check_written(path, graph, source=graph, exact=True)
    report = check_runtime_graph(path)
    assert report.foldable == ()
    assert report.unoptimised.operators["Cast"] == len(graph.params) == report.unoptimised.identical
    assert all("Cast" not in level.operators for level in report.levels)
    model = read_model(path)
    assert (model.graph.storage, model.executes) == ("fp32", "fp32")
    checked = Model(onnx.load(path))
    for name, value in graph.params.items():
        assert model.graph.params[name].tobytes() == value.tobytes()
        assert checked.parameters[name].tobytes() == value.tobytes()
    rounding = Rounding(model.graph, contract("fp32"))
    x = rng.random((16, 1, 6, 6), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(model.graph, rounding.params, (inputs, inputs), rounding)[model.graph.output]
    for level, threads, batch in session_variants():
        logits = Runtime(model.data, level, threads, batch).logits(x)
        assert (logits >= low.numpy()).all(), level
        assert (logits <= high.numpy()).all(), level


def test_the_file_is_half_as_large(tmp_path):
    graph = narrowed(random_net(np.random.default_rng(5)))
    weights = sum(value.size for value in graph.params.values())
    sizes = []
    for narrow in (True, False):
        write_onnx(graph, tmp_path / "model.onnx", 17, {}, bfloat16=narrow)
        model = onnx.load(tmp_path / "model.onnx")
        sizes.append(sum(len(one.raw_data) for one in model.graph.initializer if one.data_type != TensorProto.INT64))
    assert sizes == [2 * weights, 4 * weights]


MISREAD = {
    "a bit of the exponent": lambda bits: bits & np.uint16(0xFF7F),
    "the bias of the exponent": lambda bits: np.where(bits & np.uint16(0x7F80), bits + np.uint16(0x80), bits).astype(np.uint16),
    "a bit of the fraction": lambda bits: bits & np.uint16(0xFFFE),
    "the sign": lambda bits: bits ^ np.uint16(0x8000),
    "the order of bytes": lambda bits: np.where(bits.byteswap() & 0x7F80 != 0x7F80, bits.byteswap(), 0).astype(np.uint16),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_reader_that_misreads_the_bits_is_found_out(name, written, monkeypatch):
    graph, path = written
    true = BFloat16.widened
    monkeypatch.setattr(BFloat16, "widened", lambda self: true(BFloat16(MISREAD[name](self.bits))))
    with pytest.raises(GateError, match="is read as another network than ONNX Runtime executes"):
        check_runtime_graph(path)
    with pytest.raises(GateError, match="was written as another network than was meant"):
        check_written(path, graph)


def test_a_runtime_that_rounds_a_weight_again_is_found_out(written, monkeypatch):
    from vsparse.stages.export import runtime_graph

    true = runtime_graph._optimise

    def rounded(path, level, threads, out):
        model = true(path, level, threads, out)
        tensor = next(one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT and one.name == "w4")
        values = np.frombuffer(tensor.raw_data, "<f4").copy()
        values[np.flatnonzero(values)[0]] *= np.float32(1 + 2**-7)
        tensor.raw_data = values.tobytes()
        return model

    levels = {name: level for name, level in runtime_graph.LEVELS.items() if name != "disabled"}
    monkeypatch.setattr(runtime_graph, "LEVELS", levels)
    monkeypatch.setattr(runtime_graph, "_optimise", rounded)
    with pytest.raises(GateError, match="at optimisation level basic executes another network"):
        check_runtime_graph(written[1])


def test_files_of_float16_are_not_stored_in_bfloat16(tmp_path):
    with pytest.raises(InputError, match="computes in fp16"):
        write_onnx(half(random_net(np.random.default_rng(0))), tmp_path / "model.onnx", 17, {}, bfloat16=True)


def test_a_dropout_that_the_runtime_takes_for_its_ratio_is_refused(tmp_path):
    nodes = [
        helper.make_node("Cast", ["stored"], ["ratio"], to=TensorProto.FLOAT),
        helper.make_node("Dropout", ["x", "ratio"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [to_bfloat16(np.array(0.5, np.float32)).tensor("stored"), numpy_helper.from_array(np.array([1, -1]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert foldable(model) == ('rule 2: Dropout "d"',)
    with pytest.raises(GateError, match="executes another network"):
        check_runtime_graph(path)
    with pytest.raises(InputError, match="reads differently from ONNX Runtime"):
        check_reading(path.read_bytes(), read_onnx(path), where="the model")


def test_a_widened_constant_can_be_folded_as_any_other(tmp_path):
    rng = np.random.default_rng(0)
    stored = {"w": rng.normal(size=(2, 1, 3, 3)), "c": rng.normal(size=(2, 1, 1)), "v": rng.normal(size=(3, 32))}
    tensors = [to_bfloat16(value.astype(np.float32)).tensor(f"{name}.stored") for name, value in stored.items()]
    nodes = [helper.make_node("Cast", [f"{name}.stored"], [name], name=name, to=TensorProto.FLOAT) for name in stored]
    nodes += [
        helper.make_node("Conv", ["x", "w"], ["z"], name="conv"),
        helper.make_node("Mul", ["z", "c"], ["scaled"], name="scale"),
        helper.make_node("Flatten", ["scaled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "v"], ["y"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert foldable(model) == ('rule 3: Mul "scale"',)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert from_onnx(path).storage == "fp32"
    with pytest.raises(GateError, match=r"executes another network.*vsparse export MODEL"):
        check_runtime_graph(path)
