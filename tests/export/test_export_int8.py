"""Quantised exports: what is written is what is read, what is read is what is executed, in floats and in integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from precision_nets import random_net

from vsparse.bounds import Rounding, ball, crown, interval
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import GateError, InputError
from vsparse.graph import (
    Add,
    AveragePool,
    Conv,
    FakeQuant,
    Gemm,
    Graph,
    MaxPool,
    Reshape,
    from_onnx,
    run,
    to_onnx,
)
from vsparse.graph.ir import Clip, QuantisedParameter
from vsparse.graph.quantised import check_integer_execution
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import check_runtime_graph, runtime_graph, write_onnx
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.audit import audit
from vsparse.stages.verify.certify import certify
from vsparse.stages.verify.deployed import Runtime, read_model, session_variants


def quantised(seed):
    rng = np.random.default_rng(seed)
    graph = random_net(rng)
    return graph, quantise(graph, rng.random((64, 1, 6, 6), dtype=np.float32)), rng


@pytest.mark.parametrize("seed", range(6))
def test_what_is_written_is_read_back(seed, tmp_path):
    _, made, _ = quantised(seed)
    path = tmp_path / "model.int8.onnx"
    write_onnx(made, path, 17, {})
    read = from_onnx(path)
    assert [type(node) for node in read.nodes] == [type(node) for node in made.nodes]
    for ours, theirs in zip(made.nodes, read.nodes, strict=True):
        if isinstance(ours, FakeQuant):
            assert (ours.scale, ours.zero_point, ours.lowest) == (theirs.scale, theirs.zero_point, theirs.lowest)
    assert read.integers.keys() == made.integers.keys()
    for name, value in read.params.items():
        assert np.array_equal(value, made.params[name])
    assert to_onnx(read).SerializeToString(deterministic=True) == to_onnx(from_onnx(to_onnx(read).SerializeToString())).SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("seed", range(6))
def test_zeros_stay_zero_and_weights_have_seven_bits(seed):
    graph, made, _ = quantised(seed)
    for name in ("w1", "w2", "w3", "w4"):
        assert (made.params[name][graph.params[name] == 0] == 0).all()
        assert np.abs(made.integers[name].values).max() == 64
        step = made.integers[name].scale.reshape(-1, *[1] * (graph.params[name].ndim - 1))
        assert (np.abs(made.params[name] - graph.params[name]) <= 0.5001 * step).all()


@pytest.mark.parametrize("seed", range(8))
def test_every_optimisation_level_is_inside_the_bounds(seed, tmp_path):
    """The file itself, executed in floats (disable, basic) and in fused integer kernels (extended, all)."""
    _, made, rng = quantised(seed)
    path = tmp_path / "model.int8.onnx"
    write_onnx(made, path, 17, {})
    report = check_runtime_graph(path)
    executed = {level.level: set(level.operators) for level in report.levels}
    assert any("QGemm" in name for name in executed["all"])
    assert any("QLinearConv" in name for name in executed["all"])
    model = read_model(path)
    assert model.executes == "int8"
    rounding = Rounding(model.graph, contract("int8"))
    x = rng.random((24, 1, 6, 6), dtype=np.float32)
    x[:4] = np.rint(x[:4] * 255) / 255  # near ties and on steps
    x[4:8] = (np.rint(x[4:8] * 254) + 0.5) / 255
    inputs = torch.from_numpy(x).double()
    boxes = interval(model.graph, rounding.params, (inputs, inputs), rounding)
    rows = torch.eye(3, dtype=torch.float64)
    lower = torch.maximum(boxes[model.graph.output][0], crown(model.graph, rounding.params, (inputs, inputs), rows, boxes, rounding))
    upper = torch.minimum(boxes[model.graph.output][1], -crown(model.graph, rounding.params, (inputs, inputs), -rows, boxes, rounding))
    answers = []
    for level, threads, batch in session_variants():
        logits = Runtime(model.data, level, threads, batch).logits(x).astype(np.float64)
        answers.append(logits)
        assert (logits >= lower.numpy()).all(), level
        assert (logits <= upper.numpy()).all(), level
    plain = run(model.graph, model.graph.tensors(), torch.from_numpy(x)).numpy()
    assert np.abs(plain - answers[0]).max() < 0.2 * np.abs(plain).max()
    assert not all(np.array_equal(answers[0], other) for other in answers)  # the levels do differ, so that both paths were seen


def test_a_region_is_certified_and_audited(tmp_path):
    _, made, rng = quantised(3)
    path = tmp_path / "model.int8.onnx"
    write_onnx(made, path, 17, {})
    pixels = rng.random((12, 1, 6, 6), dtype=np.float32)
    labels = run(made, made.tensors(), torch.from_numpy(pixels)).argmax(dim=1).numpy().astype(np.int64)
    data = Dataset(pixels, 1.0, labels, ("a", "b", "c"), None)
    certificate = certify(path, data, PerturbationSet(epsilon="0.001"), contract("int8"), Verify(attack_restarts=1))
    assert certificate.summary.certified > 0
    assert certificate.contract["operand"] == "int8"
    found = audit(path, data, certificate)
    assert found.passed, found.reason
    assert found.values_checked > 0
    assert found.closest <= 1
    with pytest.raises(InputError, match=r"quantised.*choose int8"):
        certify(path, data, PerturbationSet(epsilon="0.001"), contract("fp32"), Verify())
    float_path = tmp_path / "model.fp32.onnx"
    write_onnx(random_net(np.random.default_rng(3)), float_path, 17, {})
    with pytest.raises(InputError, match="no QuantizeLinear"):
        certify(float_path, data, PerturbationSet(epsilon="0.001"), contract("int8"), Verify())


def test_bounds_of_a_region_hold_for_its_points(tmp_path):
    for seed in range(4):
        _, made, rng = quantised(seed)
        rounding = Rounding(made, contract("int8"))
        x = rng.random((1, 1, 6, 6), dtype=np.float32)
        box = ball(torch.from_numpy(x), PerturbationSet(epsilon="0.02").epsilon)
        low, high = interval(made, rounding.params, box, rounding)[made.output]
        points = np.clip(x + rng.uniform(-0.0199, 0.0199, (64, 1, 6, 6)), 0, 1).astype(np.float32)
        data = to_onnx(made).SerializeToString()
        for level in ("disable", "all"):
            logits = Runtime(data, level).logits(points)
            assert (logits >= low.numpy()).all()
            assert (logits <= high.numpy()).all()


@pytest.mark.parametrize("part", ["w3.integers", "w3.scale", "b3.integers"])
@pytest.mark.parametrize("level", ["basic", "all"])
def test_a_changed_integer_or_scale_is_another_network(part, level, tmp_path):
    _, made, _ = quantised(0)
    path = tmp_path / "model.onnx"
    write_onnx(made, path, 17, {})
    comparison = runtime_graph.GraphComparison(from_onnx(path), fixed_batch=False)
    model = runtime_graph._optimise(path, runtime_graph.LEVELS[level], 1, tmp_path / "optimised.onnx")
    assert comparison.difference(model) is None
    tensor = next(one for one in model.graph.initializer if one.name.startswith(part))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = values.flat[0] ^ 1 if values.dtype.kind == "i" else np.nextafter(values.flat[0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert comparison.difference(model) is not None


def two_steps(kind: str, first: float, second: float, *, clip: bool = False, pool: bool = False) -> Graph:
    """Quantised, an addition or an average, quantised again (behind a Clip and a max pool, where asked), a linear layer."""
    nodes: list = [FakeQuant(name="q", inputs=("x",), shape=(2, 4, 4), scale=float(np.float32(first)), zero_point=3, lowest=0, highest=255)]
    if kind == "add":
        nodes.append(Add(name="s", inputs=("q", "q"), shape=(2, 4, 4)))
    else:
        nodes.append(AveragePool(name="s", inputs=("q",), shape=(2, 2, 2), kernel=(2, 2), stride=(2, 2)))
    if clip:
        nodes.append(Clip(name="c", inputs=("s",), shape=nodes[-1].shape, lowest=2.0**-24, highest=float(np.float32(1e9))))
    if pool:
        shape = (2, *(n // 2 for n in nodes[-1].shape[1:]))
        nodes.append(MaxPool(name="m", inputs=(nodes[-1].name,), shape=shape, kernel=(2, 2), stride=(2, 2)))
    last, shape = nodes[-1].name, nodes[-1].shape
    nodes.append(FakeQuant(name="q2", inputs=(last,), shape=shape, scale=float(np.float32(second)), zero_point=3, lowest=0, highest=255))
    size = int(np.prod(shape))
    nodes += [Reshape(name="flat", inputs=("q2",), shape=(size,)), Gemm(name="y", inputs=("flat",), shape=(3,), weight="w", bias=None)]
    weight = QuantisedParameter(np.random.default_rng(0).integers(-64, 65, size=(3, size)).astype(np.int8), np.float32(0.01))
    return Graph("x", (2, 4, 4), tuple(nodes), "y", {"w": weight.floats()}, {"w": weight})


@pytest.mark.parametrize("kind", ["add", "average"])
@pytest.mark.parametrize("pool", [False, True])
def test_sums_that_leave_int32_are_refused_and_the_largest_that_do_not_are_right(kind, pool, tmp_path):
    """Kernels that convert before they clamp return the wrong end beyond 2^31 steps; the rule stays a factor of two below."""
    terms = 2 if kind == "add" else 1
    limit = 512 * terms / (2.0**30 - 512)
    with pytest.raises(InputError, match="too small for the sums"):
        check_integer_execution(two_steps(kind, 1.0, limit * (1 - 1e-6), pool=pool))
    made = two_steps(kind, 1.0, limit * (1 + 1e-6), pool=pool)
    check_integer_execution(made)
    path = tmp_path / "m.onnx"
    write_onnx(made, path, 17, {})
    check_runtime_graph(path)
    x = np.random.default_rng(1).uniform(-300, 300, (16, 2, 4, 4)).astype(np.float32)
    x[0], x[1] = 1e4, -1e4
    rounding = Rounding(made, contract("int8"))
    points = torch.from_numpy(x).double()
    low, high = (one.numpy() for one in interval(made, rounding.params, (points, points), rounding)["y"])
    assert np.isfinite(low).all()
    for variant in session_variants():
        logits = Runtime(path.read_bytes(), *variant).logits(x).astype(np.float64)
        assert ((logits >= low) & (logits <= high)).all(), variant


def test_a_value_whose_steps_leave_int32_is_bounded_by_nothing():
    made = two_steps("add", 2.0**-20, 2.0**-20)
    rounding = Rounding(made, contract("int8"))
    box = (torch.full((1, 2, 4, 4), -1.0, dtype=torch.float64), torch.full((1, 2, 4, 4), 2.0**10, dtype=torch.float64))
    low, high = interval(made, rounding.params, box, rounding)["y"]
    assert torch.isinf(low).all()
    assert torch.isinf(high).all()


@pytest.mark.parametrize("pool", [False, True])
def test_a_clip_behind_a_pool_is_seen_before_tiny_steps(pool, tmp_path):
    """The runtime moves the quantisation before the pool and drops the Clip, whose ends are many of the tiny steps away."""
    made = two_steps("add", 2.0**-30, 2.0**-30, clip=True, pool=pool)
    with pytest.raises(InputError, match=r"behind a Clip, below 2\^-20"):
        check_integer_execution(made)
    # Without that rule the graph that runs tells it.
    path = tmp_path / "m.onnx"
    write_onnx(made, path, 17, {})
    with pytest.raises(GateError, match="another network"):
        check_runtime_graph(path)


def test_calibration_never_gives_steps_that_leave_int32():
    rng = np.random.default_rng(0)
    eye = np.zeros((4, 4, 1, 1), np.float32)
    eye[range(4), range(4)] = 1
    nodes = (
        Conv(name="c", inputs=("x",), shape=(4, 6, 6), weight="w", bias=None),
        Conv(name="d", inputs=("x",), shape=(4, 6, 6), weight="v", bias="b"),
        Add(name="s", inputs=("c", "d"), shape=(4, 6, 6)),  # 1e6 − 1e6: almost nothing is left
        AveragePool(name="p", inputs=("s",), shape=(4, 1, 1), kernel=(6, 6), stride=(6, 6)),
        Reshape(name="flat", inputs=("p",), shape=(4,)),
        Gemm(name="y", inputs=("flat",), shape=(3,), weight="z", bias=None),
    )
    params = {
        "w": eye * np.float32(1e8),
        "v": eye * np.float32(-1e8),
        "b": np.zeros(4, np.float32),
        "z": rng.normal(size=(3, 4)).astype(np.float32),
    }
    graph = Graph("x", (4, 6, 6), nodes, "y", params)
    check_integer_execution(quantise(graph, rng.random((8, 4, 6, 6), dtype=np.float32)))


def test_calibration_and_refusals():
    graph, made, rng = quantised(1)
    with pytest.raises(InputError, match="already"):
        quantise(made, rng.random((4, 1, 6, 6), dtype=np.float32))
    with pytest.raises(InputError, match="calibration needs samples"):
        quantise(graph, np.zeros((0, 1, 6, 6), np.float32))
    first = next(node for node in made.nodes if isinstance(node, FakeQuant))
    assert 0 < first.scale < 1


class Calibration(CalibrationDataReader):
    def __init__(self):
        self.samples = iter([{"input": np.random.default_rng(i).random((1, 1, 6, 6), dtype=np.float32)} for i in range(16)])

    def get_next(self):
        return next(self.samples, None)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_a_file_of_another_tool_is_read_and_its_quantised_output_is_inside(seed, tmp_path):
    source, path = tmp_path / "f.onnx", tmp_path / "q.onnx"
    source.write_bytes(to_onnx(random_net(np.random.default_rng(seed))).SerializeToString())
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ, "per_channel": True}
    quantize_static(str(source), str(path), Calibration(), reduce_range=True, **kinds)
    model = read_model(path)
    assert isinstance(model.graph.node(model.graph.output), FakeQuant)
    rounding = Rounding(model.graph, contract("int8"))
    x = np.random.default_rng(seed).random((32, 1, 6, 6), dtype=np.float32)
    inputs = torch.from_numpy(x).double()
    low, high = interval(model.graph, rounding.params, (inputs, inputs), rounding)[model.graph.output]
    for level in ("disable", "extended", "all"):
        logits = Runtime(model.data, level).logits(x)
        assert (logits >= low.numpy()).all()
        assert (logits <= high.numpy()).all()
    quantize_static(str(source), str(path), Calibration(), reduce_range=False, **kinds)
    with pytest.raises(InputError, match="8-bit weights"):
        Rounding(read_model(path).graph, contract("int8"))


# Reading ------------------------------------------------------------------------------------------------------------------------------


def qdq_model(**changes):
    """One linear layer on a quantised input; `changes` replace initializers by name, or nodes with `nodes`."""
    s_w = np.array([0.01, 0.02, 0.03], np.float32)
    tensors = {
        "s": np.float32(0.1),
        "z": np.uint8(3),
        "w": np.array([[1, 2], [-3, 4], [0, 64]], np.int8),
        "ws": s_w,
        "wz": np.zeros(3, np.int8),
        "b": np.array([7, 8, 9], np.int32),
        "bs": np.float32(0.1) * s_w,
        "bz": np.zeros(3, np.int32),
    }
    nodes = changes.pop("nodes", None)
    tensors |= changes
    nodes = nodes or [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "bd"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def test_reading_by_hand():
    graph = from_onnx(qdq_model())
    (quant, gemm) = graph.nodes
    assert (quant.scale, quant.zero_point, quant.steps) == (float(np.float32(0.1)), 3, (-3, 252))
    assert graph.params[gemm.weight][1].tolist() == [float(np.float32(0.02) * np.float32(v)) for v in (-3, 4)]
    assert graph.integers[gemm.bias].values.tolist() == [7, 8, 9]
    Rounding(graph, contract("int8"))
    x = np.array([[1.0, 20.0], [-5.0, 0.26]], np.float32)
    session = onnxruntime.InferenceSession(qdq_model(), providers=["CPUExecutionProvider"])
    assert np.allclose(run(graph, graph.tensors(), torch.from_numpy(x)).numpy(), session.run(None, {"x": x})[0], atol=1e-6)


def test_a_matrix_stored_the_other_way_round_is_turned():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    weight = np.array([[1, -3, 0], [2, 4, 64]], np.int8)
    graph = from_onnx(qdq_model(nodes=nodes, w=weight))
    gemm = graph.nodes[1]
    assert graph.integers[gemm.weight].values.tolist() == weight.T.tolist()
    assert np.array_equal(graph.integers[gemm.weight].floats(), graph.params[gemm.weight])
    Rounding(graph, contract("int8"))
    along_inputs = from_onnx(qdq_model()).nodes[0]
    assert isinstance(along_inputs, FakeQuant)


def pairs(second_scale="s", extra=()):
    return [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("QuantizeLinear", ["xd", second_scale, "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", second_scale, "z"], ["ad"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Gemm", ["ad", "wd"], ["y"], transB=1),
        *extra,
    ]


def test_a_pair_on_its_own_grid_vanishes_and_another_is_refused():
    graph = from_onnx(qdq_model(nodes=pairs()))
    assert [type(node).__name__ for node in graph.nodes] == ["FakeQuant", "Gemm"]
    graph = from_onnx(qdq_model(nodes=pairs("s2"), s2=np.float32(0.2)))
    with pytest.raises(InputError, match="quantised already"):
        Rounding(graph, contract("int8"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"wz": np.array([0, 1, 0], np.int8)}, "zero point other than 0"),
        ({"w": np.array([[1, 2], [3, 4], [0, 64]], np.uint8), "wz": np.zeros(3, np.uint8)}, "int8 weights and int32 biases"),
        ({"s": np.float32(-0.1)}, "not positive"),
        ({"s": np.float32(np.inf)}, "not positive and finite"),
        ({"s": np.array([0.1, 0.2], np.float32)}, "scale for each channel"),
        ({"z": np.int32(0)}, "uint8 or int8"),
        ({"ws": np.array([0.1, 0.2], np.float32)}, "2 scales for shape"),
        ({"bs": np.array([0.1, 0.2, np.nan], np.float32)}, "not positive and finite"),
        ({"w": np.array([[1, 2, 5], [3, 4, 5], [0, 64, 5]], np.int8)}, "weight of shape"),
    ],
)
def test_damaged_pairs_are_refused_in_a_sentence(changes, reason):
    with pytest.raises(InputError, match=reason):
        from_onnx(qdq_model(**changes))


def test_a_pair_that_does_not_match_is_refused():
    nodes = [
        pairs()[0],
        helper.make_node("DequantizeLinear", ["xq", "s2", "z"], ["xd"]),
        helper.make_node("Gemm", ["xd", "f"], ["y"], transB=1),
    ]
    floats = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="another scale or zero point"):
        from_onnx(qdq_model(nodes=nodes, s2=np.float32(0.2), f=floats))
    nodes = [nodes[0], helper.make_node("Gemm", ["xq", "f"], ["y"], transB=1)]
    with pytest.raises(InputError, match="constant"):
        from_onnx(qdq_model(nodes=nodes, f=floats))


def test_a_float_weight_behind_a_quantised_input_is_read_but_not_certified():
    nodes = [*pairs()[:2], helper.make_node("Gemm", ["xd", "f"], ["y"], transB=1)]
    graph = from_onnx(qdq_model(nodes=nodes, f=np.ones((3, 2), np.float32)))
    with pytest.raises(InputError, match="float32 weight"):
        Rounding(graph, contract("int8"))
    Rounding(replace(graph), contract("real"))
