"""The content hash: it follows what is computed and nothing else."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.stages.export import content_sha256, read_metadata, stamp


def small_model(weight: float = 2.0) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.full((3,), weight, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_metadata_does_not_change_the_hash_and_weights_do(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small_model().SerializeToString())
    before = content_sha256(path)
    assert before == content_sha256(path.read_bytes()) == content_sha256(small_model())
    assert stamp(path, {"certificate": "c" * 64, "vsparse.recipe": "digits"}) == before
    assert content_sha256(path) == before
    assert read_metadata(path) == {"certificate": "c" * 64, "recipe": "digits"}
    assert {p.key for p in onnx.load(path).metadata_props} == {"vsparse.certificate", "vsparse.recipe"}
    assert content_sha256(small_model(np.nextafter(np.float32(2), np.float32(3)))) != before


def test_stamping_again_replaces_a_value_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = small_model()
    helper.set_model_props(model, {"author": "someone"})
    path.write_bytes(model.SerializeToString())
    stamp(path, {"certificate": "old"})
    stamp(path, {"certificate": "new"})
    assert {p.key: p.value for p in onnx.load(path).metadata_props} == {"author": "someone", "vsparse.certificate": "new"}


def test_a_renamed_node_is_another_content() -> None:
    model = small_model()
    model.graph.node[0].name = "other"
    assert content_sha256(model) != content_sha256(small_model())


@pytest.mark.parametrize("data", [b"", b"not a protobuf at all", b"\xff" * 64, b"\x0a\x05hello"])
def test_bytes_that_are_no_model_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(InputError, match="not an ONNX file"):
        content_sha256(data)


def test_an_absent_file_and_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        content_sha256(tmp_path / "none.onnx")
    model = small_model()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(InputError, match='keeps the tensor "w" in another file'):
        content_sha256(model.SerializeToString())
