"""Whether kernels add products of 8 bits exactly: asked of this machine; weights that 16 bits hold in pairs are exact on every one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph.quantised import largest_pair
from vsparse.reading import integer_kernels
from vsparse.reading.integer_kernels import KINDS, TERMS, adds_bytes_exactly, require_exact_sums
from vsparse.stages.export.runtime_graph import LEVELS


def products(kind: str, x: np.ndarray, weight: np.ndarray, level: str) -> np.ndarray:
    """Returns what ONNX Runtime makes of one operator on integers x (uint8 or int8) and weights [in, out], with steps of 1, in float32."""
    conv = kind == "Conv"
    made = np.ascontiguousarray(weight.T[:, :, None, None]) if conv else weight
    tensors = {"one": np.float32(1), "zero": x.dtype.type(0), "weight": made, "none": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "none"], ["w"]),
        helper.make_node(kind, ["d", "w"], ["y"]),
    ]
    sizes = [1, 1] if conv else []
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(x), x.shape[1], *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), weight.shape[1], *sizes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = LEVELS[level], 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32).reshape(len(x), -1, *sizes)})[0].reshape(len(x), -1)


def test_weights_of_7_bits_pass_the_probe_on_every_machine():
    assert all(integer_kernels._probe(kind, signed, 67, sign * 64) for kind in KINDS for signed in (False, True) for sign in (1, -1))
    assert TERMS


def test_the_answer_is_that_of_the_kernels():
    """At both ends of 8 bits an exact sum is 255 · 127 · 16; what saturates makes less of it."""
    x, weight = np.full((1, 16), 255, np.uint8), np.full((16, 4), 127, np.int8)
    exact = all((products(kind, x, weight, "all") == 255 * 127 * 16).all() for kind in ("Gemm", "MatMul"))
    assert exact or not adds_bytes_exactly()
    if not adds_bytes_exactly():
        with pytest.raises(InputError, match=r"reduce_range=True and choose --contract int8"):
            require_exact_sums(CONTRACTS["int8-exact"], "model m.onnx")
    require_exact_sums(CONTRACTS["int8"], "model m.onnx")


def test_a_processor_that_saturates_is_named(monkeypatch):
    monkeypatch.setattr(integer_kernels, "adds_bytes_exactly", lambda: False)
    with pytest.raises(InputError, match=r"model m\.onnx: .*saturation"):
        require_exact_sums(CONTRACTS["int8-exact"], "model m.onnx")
    monkeypatch.setattr(integer_kernels, "adds_bytes_exactly", lambda: True)
    require_exact_sums(CONTRACTS["int8-exact"], "model m.onnx")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [False, True])
def test_pairs_of_weights_that_add_up_to_128_are_exact_in_every_kernel(kind, signed):
    """Any two weights of one sign and output together at most 128: no pair of products leaves 16 bits, wherever a kernel begins a pair."""
    rng = np.random.default_rng([signed, len(kind)])
    for terms in (2, 5, 16, 67):
        weight = rng.integers(-64, 65, (terms, 6)).astype(np.int8)
        weight[rng.integers(terms), 0] = 127  # beside ones of at most 1, so that the two together have no room left
        weight[:, 0] = np.where(weight[:, 0] == 127, 127, np.minimum(weight[:, 0], 1))
        weight[:, 1] = np.where(np.arange(terms) == rng.integers(terms), -100, np.maximum(weight[:, 1], -28))
        assert 64 <= largest_pair(weight.T) <= 128
        ends = (-128, 127) if signed else (0, 255)
        x = rng.choice(ends, (8, terms)).astype(np.int8 if signed else np.uint8)
        x[0], x[1] = ends
        wanted = x.astype(np.int64) @ weight.astype(np.int64)
        for level in LEVELS:
            assert (products(kind, x, weight, level) == wanted).all()


def test_largest_pair_counts_two_weights_of_one_sign():
    assert largest_pair(np.array([[3, -5, 4], [1, -2, -6]])) == 8
    assert largest_pair(np.array([[-127, 127], [1, 0]])) == 127
    assert largest_pair(np.full((2, 3, 2, 2), -64)) == 128
    assert largest_pair(np.array([[127]])) == 127
