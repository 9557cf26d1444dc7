"""Functions of one number that a runtime fuses into affine operators, by what the table of operators says of them alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.graph.ir import Graph, Relu
from vsparse.graph.operators import OPERATORS
from vsparse.stages.export.runtime_context import RuntimeContext, Unknown
from vsparse.stages.export.runtime_functions import described
from vsparse.stages.export.runtime_hashes import Algebra, Fingerprint
from vsparse.stages.export.runtime_reference import Reference
from vsparse.stages.export.runtime_sums import activated

# Functions that no reader knows today, as ONNX Runtime fuses them: HardSigmoid into both, the others into Gemm alone.
CASES = [
    ("Conv", "HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("Gemm", "HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("Conv", "HardSigmoid", {"beta": 0.4}),
    ("Gemm", "HardSigmoid", {}),
    ("Gemm", "Elu", {"alpha": 0.5}),
    ("Gemm", "Selu", {}),
    ("Gemm", "Softsign", {}),
    ("Conv", "Tanh", {}),
    ("Gemm", "Sigmoid", {}),
]


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> tuple[RuntimeContext, Fingerprint]:
    """A context and an activation in it; the table reads every function of CASES by name alone."""
    for _, kind, attributes in CASES:
        known = frozenset(onnx.defs.get_schema(kind).attributes) | frozenset(attributes)
        monkeypatch.setitem(OPERATORS, kind, replace(OPERATORS["Tanh"], attributes=known))
    reference = Reference(Graph("x", (3,), (Relu(name="y", inputs=("x",), shape=(3,)),), "y", {}), Algebra(), 2)
    return RuntimeContext(reference, 8), reference.input


def fused(kind: str, function: str, attributes: dict[str, float], folder: Path) -> dict[str, Any]:
    """Returns the attributes of the operator that ONNX Runtime makes of an affine operator and the function behind it."""
    weight = np.ones((4, 4, 3, 3) if kind == "Conv" else (4, 4), np.float32)
    nodes = [helper.make_node(kind, ["x", "w"], ["a"]), helper.make_node(function, ["a"], ["y"], **attributes)]
    graph = helper.make_graph(
        nodes,
        "fused",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, *([5, 5] if kind == "Conv" else [])])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = [
        {one.name: helper.get_attribute_value(one) for one in node.attribute} for node in onnx.load(folder / "optimised.onnx").graph.node
    ]
    return next(a for a in made if "activation" in a)


@pytest.mark.parametrize(("kind", "function", "attributes"), CASES)
def test_a_fused_function_is_the_one_behind_it(
    context: tuple[RuntimeContext, Fingerprint], tmp_path: Path, kind: str, function: str, attributes: dict[str, float]
) -> None:
    r, x = context
    a = fused(kind, function, attributes, tmp_path)
    found = activated(r, x, a)
    assert np.array_equal(found.hashes, r.algebra.function(x, described(function, attributes)).hashes)
    # Another number anywhere makes it another function, and so does another name.
    for name in onnx.defs.get_schema(function).attributes:
        assert not np.array_equal(found.hashes, r.algebra.function(x, described(function, {**attributes, name: 0.7})).hashes)
    assert not np.array_equal(found.hashes, r.algebra.function(x, described("Softplus", {})).hashes)


@pytest.mark.parametrize(
    "attributes",
    [
        {"activation": b"HardSigmoid"},
        {"activation": b"HardSigmoid", "activation_params": [0.2]},
        {"activation": b"HardSigmoid", "activation_params": [0.2, 0.5, 0.0]},
        {"activation": b"HardSigmoid", "activation_alpha": 0.2},
        {"activation": b"HardSigmoid", "activation_params": [0.2, 0.5], "activation_alpha": 0.3},
        {"activation": b"HardSigmoid", "activation_alpha": 0.2, "activation_gamma": 0.5},
        {"activation": b"Tanh", "activation_params": [0.2]},
        {"activation": b"Softplus"},
        {"activation": b"Conv"},
    ],
    ids=str,
)
def test_a_fused_function_without_its_own_numbers_is_unknown(
    context: tuple[RuntimeContext, Fingerprint], attributes: dict[str, Any]
) -> None:
    with pytest.raises(Unknown, match="fused into it"):
        activated(*context, attributes)
