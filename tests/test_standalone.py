"""Single steps on networks of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.api import verify
from vsparse.errors import GateError, InputError
from vsparse.graph import from_onnx
from vsparse.own_network import export_onnx
from vsparse.standalone import compress_onnx


def classifier(path: Path, scaled: bool) -> Path:
    """A convolution, with its channels scaled afterwards where `scaled`, and a linear layer: ONNX Runtime folds the scaling."""
    rng = np.random.default_rng(0)
    weights = {
        "c": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "b": np.array([-0.1, 0, 0, 0], np.float32),
        "s": rng.normal(size=(4, 1, 1)).astype(np.float32),
        "w": rng.normal(size=(10, 4 * 36)).astype(np.float32) * np.float32(0.01),
    }
    nodes = [helper.make_node("Conv", ["input", "c", "b"], ["conv"])]
    nodes += [helper.make_node("Mul", ["conv", "s"], ["scaled"])] if scaled else []
    nodes += [
        helper.make_node("Relu", ["scaled" if scaled else "conv"], ["relu"]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1),
    ]
    used = [name for name in weights if scaled or name != "s"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights[name], name) for name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_a_model_whose_weights_the_runtime_folds_is_not_certified(tmp_path: Path) -> None:
    certificate = verify(classifier(tmp_path / "plain.onnx", False), data="digits", epsilon="0.001", samples=3)
    assert len(certificate.claims) == 3
    with pytest.raises(GateError, match="ONNX Runtime"):
        verify(classifier(tmp_path / "scaled.onnx", True), data="digits", epsilon="0.001", samples=3)
    assert (
        verify(classifier(tmp_path / "s.onnx", True), data="digits", epsilon="0.001", samples=3, contract="real").contract["name"] == "real"
    )


def test_export_leaves_nothing_to_fold(tmp_path: Path) -> None:
    """What the refusal advises: a file that runs as it stands, with the function of the one that does not."""
    source = classifier(tmp_path / "scaled.onnx", True)
    with pytest.raises(GateError, match="vsparse export"):
        verify(source, data="digits", epsilon="0.001", samples=3)
    export_onnx(source, "local", tmp_path / "out")
    exported = tmp_path / "out" / "model" / "model.fp32.onnx"
    assert [type(node).__name__ for node in from_onnx(exported).nodes] == ["Conv", "Relu", "Reshape", "Gemm"]
    assert len(verify(exported, data="digits", epsilon="0.001", samples=3).claims) == 3
    x = np.random.default_rng(1).random((4, 1, 8, 8)).astype(np.float32)
    one, other = (onnxruntime.InferenceSession(str(path)).run(None, {"input": x})[0] for path in (source, exported))
    assert np.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_compressing_a_model_of_ones_own_assumes_nothing_about_its_inputs(tmp_path: Path) -> None:
    """A unit that is dead for inputs in [0, 1] alone stays, unless that range is promised."""
    graph = from_onnx(classifier(tmp_path / "m.onnx", False))
    model = onnx.load(str(tmp_path / "m.onnx"))
    weight = graph.params["c"].copy()
    weight[0] = -np.abs(weight[0])  # with a negative bias: negative for inputs above 0, but not for all below
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "c"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert compress_onnx(tmp_path / "m.onnx", tmp_path / "a.onnx")["removed_share"] == 0
    assert compress_onnx(tmp_path / "m.onnx", tmp_path / "b.onnx", unit_range=True)["removed_share"] > 0.2
    with pytest.raises(InputError, match="the model itself"):
        compress_onnx(tmp_path / "m.onnx", tmp_path / "m.onnx")


def test_export_writes_a_new_directory_only(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", False)
    export_onnx(path, "raspberry-pi-5", tmp_path / "out")
    assert (tmp_path / "out" / "device" / "run_on_device.py").exists()
    with pytest.raises(InputError, match="not an empty directory"):
        export_onnx(path, "raspberry-pi-5", tmp_path / "out")


@pytest.mark.parametrize(("dtype", "said"), [(np.float16, "float16 numbers"), (np.int8, "quantised integers")])
def test_what_float32_files_cannot_say_is_not_widened_in_silence(tmp_path: Path, dtype: type[np.generic], said: str) -> None:
    weights = {"w": np.array([[1, 2], [3, 4]], dtype), "s": np.array(0.5, np.float32)}
    half = helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT)
    floats = helper.make_node("DequantizeLinear", ["w", "s"], ["floats"])
    if dtype is np.float16:
        nodes = [half, helper.make_node("Gemm", ["half", "w"], ["y"]), back]
    else:
        nodes = [floats, helper.make_node("Gemm", ["input", "floats"], ["logits"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("input", "logits")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx"))
    for write in (lambda: compress_onnx(tmp_path / "m.onnx"), lambda: export_onnx(tmp_path / "m.onnx", "local", tmp_path / "out")):
        with pytest.raises(InputError, match=said):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
