"""What refusals of files advise, tried; and files that are spelt in unusual ways but say what runs."""

from __future__ import annotations

import inspect
import random
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from graph_nets import graph_logits, onnx_logits
from onnx import TensorProto, helper, numpy_helper
from reading_moves import random_file

from vsparse.errors import InputError
from vsparse.graph import from_onnx, read_onnx
from vsparse.graph.onnx_file import standardise
from vsparse.graph.quantised import check_integer_execution

RNG = np.random.default_rng(4)
N = helper.make_node


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], sets: list[tuple[str, int]] | None = None) -> onnx.ModelProto:
    """Returns a model from x [N, 4] to "y"."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in sets or [("", 17)]], ir_version=8)


def product() -> onnx.ModelProto:
    return model([N("MatMul", ["x", "w"], ["y"])], {"w": RNG.standard_normal((4, 3)).astype(np.float32)})


def test_external_data_is_refused_and_saved_as_one_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(product(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    with pytest.raises(InputError, match=r"another file.*external_data=False.*onnx\.save\(onnx\.load"):
        from_onnx(path)
    onnx.save(onnx.load(path), tmp_path / "one.onnx")
    assert len(from_onnx(tmp_path / "one.onnx").nodes) == 1
    assert "external_data" in inspect.signature(torch.onnx.export).parameters


def test_local_functions_are_refused_and_inlined() -> None:
    proto = model([N("F", ["x"], ["y"], domain="local")], {}, [("", 17), ("local", 1)])
    proto.functions.append(helper.make_function("local", "F", ["a"], ["b"], [N("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]))
    with pytest.raises(InputError, match="inline_local_functions"):
        from_onnx(proto.SerializeToString())
    assert len(from_onnx(onnx.inliner.inline_local_functions(proto).SerializeToString()).nodes) == 1


@pytest.mark.parametrize("domains", [("", "ai.onnx"), ("", ""), ("ai.onnx", "")])
def test_an_operator_set_that_is_listed_twice(domains: tuple[str, str]) -> None:
    nodes, weights = [N("ReduceSum", ["x", "a"], ["y"])], {"a": np.array([1], np.int64)}
    assert len(from_onnx(model(nodes, weights, [(domain, 13) for domain in domains]).SerializeToString()).nodes) > 0
    # ONNX Runtime takes the last one, so that this file's ReduceSum is another operator than its first entry says.
    twice = model(nodes, weights, [(domains[0], 11), (domains[1], 13)])
    with pytest.raises(InputError, match=r"more than once, with the versions 11, 13; keep one"):
        from_onnx(twice.SerializeToString())
    del twice.opset_import[0]
    assert len(from_onnx(twice.SerializeToString()).nodes) > 0
    del twice.opset_import[:]
    with pytest.raises(InputError, match="does not say its opset"):
        from_onnx(twice.SerializeToString())


@pytest.mark.parametrize("half", [False, True])
def test_unsorted_files_are_read_as_the_runtime_sorts_them(half: bool) -> None:
    kind = np.float16 if half else np.float32
    to = [N("Cast", ["x"], ["h"], to=TensorProto.FLOAT16 if half else TensorProto.FLOAT), N("Cast", ["e"], ["y"], to=TensorProto.FLOAT)]
    nodes = [
        to[0],
        N("MatMul", ["h", "w"], ["a"]),
        N("Relu", ["a"], ["b"]),
        N("MatMul", ["b", "v"], ["c"]),
        N("Add", ["c", "a"], ["d"]),
        N("Relu", ["d"], ["e"]),
        to[1],
    ]
    weights = {"w": RNG.standard_normal((4, 5)).astype(kind), "v": RNG.standard_normal((5, 5)).astype(kind)}
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    for seed in range(4):
        random.Random(seed).shuffle(nodes)
        data = model(nodes, weights).SerializeToString()
        graph = from_onnx(data)
        assert graph.storage == ("fp16" if half else "fp32")
        assert np.allclose(graph_logits(graph, x), onnx_logits(data, x), rtol=1e-2 if half else 1e-5, atol=1e-2 if half else 1e-5)


def test_standardised_files_pass_strict_shape_inference_and_are_read_alike() -> None:
    compared = 0
    for i in range(150):
        file = random_file([5, i])
        try:
            reading = read_onnx(file.data)
        except InputError:
            continue
        proto = onnx.ModelProto.FromString(file.data)
        standardise(proto)
        again = read_onnx(proto.SerializeToString())
        assert again.tensors == reading.tensors
        if file.opset < 13 and any(node.op_type == "Constant" for node in proto.graph.node):
            continue  # old Constants hold floats alone, says inference; runtimes do not mind
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        for value in inferred.graph.value_info:
            sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
            if value.name in reading.tensors and value.type.tensor_type.HasField("shape"):
                shape = reading.tensors[value.name].shape
                assert len(sizes) == len(shape)
                assert all(a in (None, b) for a, b in zip(sizes, shape, strict=True)), (i, value.name, sizes, shape)
                compared += 1
    assert compared > 300


def test_weights_in_integers_beside_float_values_are_no_matter_of_int8() -> None:
    quantised = [N("QuantizeLinear", ["x", "s", "z"], ["q"]), N("DequantizeLinear", ["q", "s", "z"], ["d"])]
    weights = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "i": RNG.integers(-60, 60, (4, 4)).astype(np.int8),
        "t": np.array(0.01, np.float32),
    }
    stored = N("DequantizeLinear", ["i", "t"], ["w"])
    first = [*quantised, stored, N("MatMul", ["d", "w"], ["y"])]
    check_integer_execution(from_onnx(model(first, weights).SerializeToString()))
    both = [*quantised, stored, N("MatMul", ["d", "w"], ["h"]), N("DequantizeLinear", ["i", "t"], ["v"]), N("MatMul", ["h", "v"], ["y"])]
    # ONNX Runtime makes the second one MatMulNBits, which quantises its input in blocks: no contract says so.
    with pytest.raises(InputError, match="may quantise the values too"):
        check_integer_execution(from_onnx(model(both, weights).SerializeToString()))
    plain = [*both[:4], N("MatMul", ["h", "f"], ["y"])]
    check_integer_execution(from_onnx(model(plain, weights | {"f": RNG.standard_normal((4, 4)).astype(np.float32)}).SerializeToString()))


def test_a_row_convolution_keeps_its_integers() -> None:
    nodes = [
        N("Reshape", ["x", "to"], ["r"]),
        N("DequantizeLinear", ["i", "t"], ["w"], axis=0),
        N("Conv", ["r", "w"], ["c"]),
        N("Flatten", ["c"], ["y"]),
    ]
    integers = RNG.integers(-60, 60, (3, 1, 2)).astype(np.int8)
    weights = {"to": np.array([-1, 1, 4], np.int64), "i": integers, "t": np.array([0.01, 0.02, 0.03], np.float32)}
    data = model(nodes, weights).SerializeToString()
    graph = from_onnx(data)
    assert np.array_equal(graph.integers["w"].values, integers[:, :, None])
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    assert np.allclose(graph_logits(graph, x), onnx_logits(data, x), rtol=1e-5, atol=1e-5)
