"""Damaged and impossible ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from damaged_cases import case
from onnx import TensorProto, helper, numpy_helper


def model(folder: Path, nodes: list[onnx.NodeProto] | None = None, weight: np.ndarray | None = None, **changes: object) -> Path:
    """A linear classifier of the digits, with its nodes or its weight replaced."""
    weight = np.zeros((10, 64), np.float32) if weight is None else weight
    standard = [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1)]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, changes.get("shape", ["n", 1, 8, 8]))]
    if changes.get("second_input"):
        inputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 1]))
    graph = helper.make_graph(
        nodes or standard,
        "g",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def verify(path: Path) -> list[str]:
    return ["verify", str(path), "--data", "digits", "--epsilon", "0.01", "--samples", "2"]


@case(2, "none.onnx")
def model_absent(folder: Path, artifact: Path) -> list[str]:
    return verify(folder / "none.onnx")


@case(2, "model.onnx")
def model_empty(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"")
    return verify(folder / "model.onnx")


@case(2, "model.onnx")
def model_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(4096))
    return verify(folder / "model.onnx")


@case(2, "model.onnx")
def model_truncated(folder: Path, artifact: Path) -> list[str]:
    path = model(folder)
    path.write_bytes(path.read_bytes()[:-500])
    return verify(path)


@case(2, "w")
def model_with_nan_weights(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, weight=np.full((10, 64), np.nan, np.float32)))


@case(2, "Sin")
def model_with_an_unknown_operator(folder: Path, artifact: Path) -> list[str]:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Sin", ["flat"], ["s"]),
        helper.make_node("Gemm", ["s", "w"], ["logits"], transB=1),
    ]
    return verify(model(folder, nodes))


@case(2, "input")
def model_with_two_inputs(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, second_input=True))


@case(2, "model")
def model_with_a_cycle(folder: Path, artifact: Path) -> list[str]:
    nodes = [
        helper.make_node("Add", ["input", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["logits"]),
    ]
    return verify(model(folder, nodes))


@case(2, "external")
def model_with_data_elsewhere(folder: Path, artifact: Path) -> list[str]:
    path = model(folder)
    proto = onnx.load(str(path))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    path.write_bytes(proto.SerializeToString())
    return verify(path)


@case(2, "8")
def model_for_other_inputs(folder: Path, artifact: Path) -> list[str]:
    return verify(model(folder, weight=np.zeros((10, 784), np.float32), shape=["n", 1, 28, 28]))


@case(2, "epsilon")
def radius_that_is_no_number(folder: Path, artifact: Path) -> list[str]:
    return ["verify", str(model(folder)), "--data", "digits", "--epsilon", "eight/255"]


@case(2, "model.onnx")
def model_to_compress_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"onnx" * 100)
    return ["compress", str(folder / "model.onnx")]


@case(2, "model.onnx")
def model_to_profile_of_random_bytes(folder: Path, artifact: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(b"onnx" * 100)
    return ["profile", str(folder / "model.onnx")]
