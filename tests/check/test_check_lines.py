"""The checker's lines around curves, its own execution, and what it does where a bound of its own is false; attacked without its means."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import onnx
import pytest
from check_artifacts import build, graph_of, samples, sign
from onnx import TensorProto, helper, numpy_helper
from test_check_bounds import derive, property_of
from test_check_mutations import content_sha256, forge

from vsparse.graph import to_onnx
from vsparse.stages.compress.rational import evaluate
from vsparse_check import backward, check
from vsparse_check.arrays import Interval
from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.form import check_form
from vsparse_check.model import Model
from vsparse_check.op import Op
from vsparse_check.operators import RULES
from vsparse_check.operators.piecewise import clip_relaxation, leaky_relaxation
from vsparse_check.operators.relaxation import ElementwiseRelaxation
from vsparse_check.operators.sigmoidal import sigmoid_relaxation, tanh_relaxation
from vsparse_check.refusal import Unchecked, plain
from vsparse_check.region import SampleRegions

CURVES = {
    "leaky": (0.1,),
    "flat leaky": (0.0,),
    "clip": (-0.3, 0.4),
    "clip from 0": (0.0, np.inf),
    "point": (0.25, 0.25),
    "sigmoid": (),
    "tanh": (),
}


def curve(name: str) -> Op:
    kind = name.split()[-1] if "leaky" in name else "clip" if name in ("clip", "clip from 0", "point") else name
    return Op(kind, "y", ("x",), (1,), constants=CURVES[name])


def lines(name: str, lower: np.ndarray, upper: np.ndarray) -> ElementwiseRelaxation:
    op, box = curve(name), Interval(lower, upper)
    if op.kind in ("leaky", "clip"):
        return {"leaky": leaky_relaxation, "clip": clip_relaxation}[op.kind](op, box)
    return {"sigmoid": sigmoid_relaxation, "tanh": tanh_relaxation}[op.kind](lower, upper)


def exactly(name: str, x: np.ndarray) -> np.ndarray:
    """Returns the function in 64 bits of significand."""
    x = x.astype(np.longdouble)
    if name == "tanh":
        return np.tanh(x)
    if name == "sigmoid":
        return 1 / (1 + np.exp(-x))
    if "leaky" in name:
        return np.where(x >= 0, x, np.longdouble(CURVES[name][0]) * x)
    return np.clip(x, *map(np.longdouble, CURVES[name]))


@pytest.mark.parametrize("name", CURVES)
def test_no_point_of_a_curve_lies_outside_of_its_lines(name):
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-9, 2.5, 4000)
    centre = rng.normal(size=4000) * 10.0 ** rng.uniform(-6, 1.5, 4000)
    lower, upper = centre - size * rng.random(4000), centre + size * rng.random(4000)
    lower[:50] = upper[:50]
    line = lines(name, lower[None], upper[None])
    assert all(np.isfinite(part).all() for part in line)
    assert ((line.lower_slope >= 0) & (line.lower_slope <= 1) & (line.upper_slope >= 0) & (line.upper_slope <= 1)).all()
    shares = np.linspace(0, 1, 257).astype(np.longdouble)[:, None]
    points = lower.astype(np.longdouble) * (1 - shares) + upper.astype(np.longdouble) * shares
    points = np.concatenate([np.clip(points, lower, upper), np.clip(np.zeros_like(points[:1]), lower, upper)])
    values = exactly(name, points)
    assert (line.lower_slope * points + line.lower_intercept <= values).all()
    assert (line.upper_slope * points + line.upper_intercept >= values).all()


@pytest.mark.parametrize("name", ["leaky", "clip", "clip from 0"])
def test_lines_of_piecewise_functions_hold_in_rational_arithmetic(name):
    rng = np.random.default_rng(1)
    for _ in range(300):
        lower = float(rng.normal())
        upper = lower + float(rng.exponential())
        line = [Fraction(float(part[0, 0])) for part in lines(name, np.array([[lower]]), np.array([[upper]]))]
        ends = CURVES[name] if "clip" in name else (0.0,)
        for point in (lower, upper, *(end for end in ends if lower <= end <= upper)):
            x = Fraction(point)
            if name == "leaky":
                value = x if x >= 0 else x * Fraction(CURVES[name][0])
            else:
                value = max(x, Fraction(ends[0])) if ends[1] == np.inf else min(max(x, Fraction(ends[0])), Fraction(ends[1]))
            assert line[0] * x + line[1] <= value <= line[2] * x + line[3]


@pytest.mark.parametrize("kind", ["leaky", "clip", "slice", "transpose", "pad", "neg", "div"])
def test_bounds_at_a_point_enclose_the_exact_rational_margin(kind):
    graph = graph_of(kind, 0)
    x, labels = samples(graph, 1, 0)
    lower = derive(graph, x, labels, "0", "crown", rounded=False)[0]
    logits = evaluate(graph, x[0])
    exact = min(logits[labels[0]] - value for j, value in enumerate(logits) if j != labels[0])
    assert Fraction(float(lower)) <= exact
    assert float(exact) - lower < 1e-9


@pytest.mark.parametrize("kind", ["relaxation", "interval", "fold"])
def test_a_bound_that_its_own_sample_contradicts_confirms_nothing(tmp_path, monkeypatch, kind):
    build(tmp_path, "residual", epsilon="0.005", methods=("crown",), count=6)
    assert check(tmp_path).passed
    if kind == "relaxation":
        monkeypatch.setattr(backward, "over_box", lambda *a: 10.0 + np.zeros(len(a[0])))
    elif kind == "interval":

        def shifted(op, boxes):
            return Interval(*(boxes[0].lower[:, :1].repeat(op.size, 1) + 50.0,) * 2)

        for rule in RULES:
            monkeypatch.setitem(RULES, rule, RULES[rule]._replace(interval=shifted))
    else:
        monkeypatch.setattr(Bounds, "folded", lambda self, rows, samples: np.full(len(rows), 1e6))
    found = check(tmp_path)
    assert (found.status, found.verdict) == (1, "cannot be checked")
    assert "contradiction" in found.problem


def file(nodes, constants, shape=(2, 4, 4)):
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "logits")]
    ends[0] = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *shape])
    made = [helper.make_node(kind, inputs, [output], **more) for kind, inputs, output, more in nodes]
    return helper.make_model(helper.make_graph(made, "g", ends[:1], ends[1:], values), opset_imports=[helper.make_opsetid("", 17)])


K = {"k": np.ones((2, 2, 1, 1), np.float32), "b": np.zeros(2, np.float32), "c": np.float32([[[2.0]], [[3.0]]]), "d": np.float32(1.0)}
W = {"w": np.ones((4, 32), np.float32), "o": np.zeros(4, np.float32)}
FLAT = [("Flatten", ["y"], "f", {}), ("Gemm", ["f", "w", "o"], "logits", {"transB": 1})]
SHAPE = {"r": np.array([0, 2, 4, 4]), "s": np.array([0, 32])}
FOLDABLE = {
    "3, factor": [("Conv", ["input", "k"], "x", {}), ("Mul", ["x", "c"], "y", {}), *FLAT],
    "3, through moves": [("Conv", ["input", "k"], "x", {}), ("Identity", ["x"], "i", {}), ("Mul", ["i", "d"], "y", {}), *FLAT],
    "3, behind a summand": [("Conv", ["input", "k"], "x", {}), ("Add", ["x", "c"], "a", {}), ("Mul", ["a", "c"], "y", {}), *FLAT],
    "3, behind neutral constants": [("Conv", ["input", "k"], "x", {}), ("Div", ["x", "d"], "i", {}), ("Mul", ["i", "c"], "y", {}), *FLAT],
    "4, with a bias": [("Conv", ["input", "k", "b"], "x", {}), ("Add", ["x", "c"], "y", {}), *FLAT],
    "4, twice": [("Conv", ["input", "k"], "x", {}), ("Add", ["x", "c"], "a", {}), ("Add", ["a", "c"], "y", {}), *FLAT],
    "6": [
        ("Pad", ["input", "p"], "x", {}),
        ("MaxPool", ["x"], "m", {"kernel_shape": [2, 2]}),
        ("Slice", ["m", "z", "e", "z1"], "y", {}),
        *FLAT,
    ],
    "7, transposed": [
        ("Conv", ["input", "k"], "x", {}),
        ("Transpose", ["x"], "t", {"perm": [0, 1, 3, 2]}),
        ("Add", ["t", "input"], "y", {}),
        *FLAT,
    ],
    "7, back again": [
        ("Conv", ["input", "k"], "x", {}),
        ("Reshape", ["x", "s"], "v", {}),
        ("Reshape", ["v", "r"], "u", {}),
        ("Sub", ["input", "u"], "y", {}),
        *FLAT,
    ],
}
FORMED = {
    "factor before": [("Mul", ["input", "c"], "x", {}), ("Conv", ["x", "k", "b"], "y", {}), *FLAT],
    "summand without a bias": [("Conv", ["input", "k"], "x", {}), ("Add", ["x", "c"], "y", {}), *FLAT],
    "division": [("Conv", ["input", "k", "b"], "x", {}), ("Div", ["x", "c"], "y", {}), *FLAT],
    "residual": [("Conv", ["input", "k", "b"], "x", {}), ("Add", ["x", "input"], "y", {}), *FLAT],
    "behind a ReLU": [("Conv", ["input", "k", "b"], "x", {}), ("Relu", ["x"], "h", {}), ("Mul", ["h", "c"], "y", {}), *FLAT],
}
P = {"p": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "z": np.array([0, 0]), "e": np.array([4, 4]), "z1": np.array([2, 3])}


@pytest.mark.parametrize("name", FOLDABLE)
def test_what_a_runtime_may_fold_is_left_unchecked(name):
    model = file(FOLDABLE[name], K | W | SHAPE | P)
    network = Model(model)
    with pytest.raises(Unchecked, match="may fold"):
        check_form(model, network.shapes, network.parameters)


@pytest.mark.parametrize("name", FORMED)
def test_what_no_runtime_folds_is_checked(name):
    model = file(FORMED[name], K | W | SHAPE | P)
    network = Model(model)
    check_form(model, network.shapes, network.parameters)


def test_a_factor_that_folds_into_infinite_weights_is_confirmed_under_real_alone(tmp_path):
    build(tmp_path, "residual", epsilon="0.005", methods=("interval",), count=4)
    path, place = tmp_path / "model/model.fp32.onnx", tmp_path / "certificate/certificate.json"
    model, content = onnx.load(path), json.loads(place.read_text())
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    (made,) = conv.output
    conv.output[0] = "before"
    index = list(model.graph.node).index(conv) + 1
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "one"))
    model.graph.node.insert(index, helper.make_node("Mul", ["before", "one"], [made]))
    path.write_bytes(model.SerializeToString())
    for part in (content, *content["claims"]):
        part["model"]["sha256"] = content_sha256(model)
    forge(tmp_path, content)
    found = check(sign(tmp_path))
    assert (found.status, found.verdict) == (1, "cannot be checked")
    assert "may fold" in found.problem


def test_an_operator_that_is_not_known_is_named_and_nothing_refuted(tmp_path):
    build(tmp_path, "residual", epsilon="0.005", methods=("interval",), count=4)
    path, place = tmp_path / "model/model.fp32.onnx", tmp_path / "certificate/certificate.json"
    model, content = onnx.load(path), json.loads(place.read_text())
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Mish"
    path.write_bytes(model.SerializeToString())
    for part in (content, *content["claims"]):
        part["model"]["sha256"] = content_sha256(model)
    forge(tmp_path, content)
    found = check(sign(tmp_path))
    assert (found.status, found.verdict) == (1, "cannot be checked")
    assert "Mish" in found.sentence.splitlines()[0]


def test_the_execution_encloses_the_exact_values_of_every_operator():
    for kind in ("plain", "residual", "leaky", "clip", "concat", "slice", "pad", "sub", "neg", "div"):
        graph = graph_of(kind, 3)
        x, _ = samples(graph, 2, 3)
        network = Model(to_onnx(graph))
        run = Bounds(
            network, ErrorTerms(network, CONTRACTS["real"]), SampleRegions(property_of("0"), x.reshape(2, -1).astype(float)), False
        ).executed
        if kind not in ("concat", "sub"):  # tanh is not rational
            exact = [[float(value) for value in evaluate(graph, one)] for one in x]
            assert (np.abs(run.value(network.output) - exact) <= run.error(network.output) + 1e-15).all()
        assert (run.error(network.output) < 1e-11).all()


def test_text_of_files_is_made_harmless():
    assert plain("a\x1b[2K\r\nb\u202e\ud800") == r"a\x1b[2K\r\nb\u202e\ud800"
    assert len(plain("x" * 10**6)) < 2000
