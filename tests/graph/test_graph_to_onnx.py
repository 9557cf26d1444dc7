"""ONNX out: clean for the checker and for runtimes, with nothing left to fold."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_nets import graph_logits, onnx_logits, resnet
from onnx import numpy_helper

from vsparse.errors import InputError
from vsparse.graph import Gemm, Graph, Relu, fold_batch_norm, from_onnx, from_torch, to_onnx

RNG = np.random.default_rng(2)


@pytest.fixture(scope="module")
def folded() -> Graph:
    return fold_batch_norm(from_torch(resnet(), (3, 8, 8)))


@pytest.mark.parametrize("opset", range(13, 24))
def test_every_opset_is_checked_and_runs(folded: Graph, opset: int) -> None:
    model = to_onnx(folded, opset, {"vsparse.contract": "fp32", "b": "ü"}, "digits")
    x = RNG.random((3, 3, 8, 8), dtype=np.float32)
    assert np.allclose(onnx_logits(model, x), graph_logits(folded, x), atol=1e-5)
    assert model.opset_import[0].version == opset
    assert {entry.key: entry.value for entry in model.metadata_props} == {"vsparse.contract": "fp32", "b": "ü"}
    assert model.graph.name == "digits"


def test_old_runtimes_accept_the_version_of_opset_17(folded: Graph) -> None:
    assert to_onnx(folded, 17).ir_version == 8


def test_signature(folded: Graph) -> None:
    model = to_onnx(folded)
    values = [*model.graph.input, *model.graph.output]
    found = [(value.name, [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]) for value in values]
    assert found == [("input", ["batch", 3, 8, 8]), ("logits", ["batch", 5])]


def test_the_same_graph_gives_the_same_bytes(folded: Graph) -> None:
    first, second = (to_onnx(folded).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_runtime_finds_nothing_to_fold(folded: Graph, tmp_path: Path) -> None:
    model = to_onnx(folded)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    ours, theirs = ({t.name: numpy_helper.to_array(t).tobytes() for t in m.graph.initializer} for m in (model, optimised))
    assert theirs == ours


def test_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r'"blocks\.0\.bn1".*fold'):
        to_onnx(from_torch(resnet(), (3, 8, 8)))


@pytest.mark.parametrize("opset", [12, 27])
def test_unknown_opset(folded: Graph, opset: int) -> None:
    with pytest.raises(InputError, match=f"opset {opset}"):
        to_onnx(folded, opset)


def test_names_that_collide_with_input_and_output() -> None:
    weight = np.eye(2, dtype=np.float32)
    nodes = (
        Gemm(name="logits", inputs=("x",), shape=(2,), weight="input", bias=None),
        Relu(name="input", inputs=("logits",), shape=(2,)),
        Gemm(name="end", inputs=("input",), shape=(2,), weight="logits_2", bias=None),
    )
    graph = Graph("x", (2,), nodes, "end", {"input": weight, "logits_2": 2 * weight})
    model = to_onnx(graph)
    x = np.array([[1, -3]], np.float32)
    assert onnx_logits(model, x).tolist() == [[2, 0]]
    assert graph_logits(from_onnx(model.SerializeToString()), x).tolist() == [[2, 0]]


def test_input_may_be_the_output() -> None:
    model = to_onnx(Graph("x", (2,), (), "x", {}))
    assert onnx_logits(model, np.array([[1, 2]], np.float32)).tolist() == [[1, 2]]
    assert from_onnx(model.SerializeToString()).nodes == ()
