"""Curves, differences, divisions and moves of data: their error terms, their backward rules, and the runtime itself inside the bounds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import inf

import numpy as np
import onnxruntime
import pytest
import torch

from vsparse.bounds import Rounding, ball, crown, interval, last_layer_folding, refine, unstable_count
from vsparse.bounds.fusion import one_sums
from vsparse.bounds.last_layers import last_layers
from vsparse.bounds.refine import relaxed_inputs
from vsparse.contract import CONTRACTS, FUNCTION_ERROR
from vsparse.graph import (
    Add,
    Clip,
    Concat,
    Conv,
    DivConstant,
    Gemm,
    Graph,
    LeakyRelu,
    Neg,
    Pad,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
    run,
    to_onnx,
    validate,
)

SHAPE = (2, 3, 4)


def alone(node, params=None) -> Graph:
    shape = (24,) if node.shape == (24,) else SHAPE
    return validate(Graph("x", shape, (node,), node.name, params or {}))


def error_of(graph: Graph, contract: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns E and the box of a graph of one node at points."""
    rounding = Rounding(graph, CONTRACTS[contract])
    point = torch.from_numpy(values.astype(np.float64))
    boxes = interval(graph, rounding.params, (point, point), rounding)
    error = rounding.error(graph.nodes[-1], boxes, boxes[graph.output])
    return error.numpy(), boxes[graph.output][0].numpy(), boxes[graph.output][1].numpy()


def test_one_division_and_the_reciprocal_both_stay_within_the_error() -> None:
    rng = np.random.default_rng(0)
    divisor = (rng.normal(size=24) * 10.0 ** rng.uniform(-3, 3, 24)).astype(np.float32)
    graph = alone(DivConstant(name="y", inputs=("x",), shape=(24,), constant="c"), {"c": divisor})
    x = (rng.normal(size=(200, 24)) * 10.0 ** rng.uniform(-6, 6, (200, 24))).astype(np.float32)
    error, lower, upper = error_of(graph, "fp32", x)
    divided, multiplied = x / divisor, x * (np.float32(1) / divisor)
    assert (divided != multiplied).mean() > 0.1
    worst = 0.0
    for found in (divided, multiplied):
        assert ((lower <= found) & (found <= upper)).all()
        for got, a, c, allowed in zip(found.flat, x.flat, np.broadcast_to(divisor, x.shape).flat, error.flat, strict=True):
            off = abs(Fraction(float(got)) - Fraction(float(a)) / Fraction(float(c)))
            assert off <= Fraction(allowed)
            worst = max(worst, float(off) / allowed)
    assert worst > 0.5, "the bound is far too wide"


def test_a_divisor_that_may_be_flushed_or_overflow_proves_nothing() -> None:
    for c in (1e-39, 2e-39):
        graph = alone(DivConstant(name="y", inputs=("x",), shape=SHAPE, constant="c"), {"c": np.array(c, np.float32)})
        error, lower, _ = error_of(graph, "fp32", np.zeros((1, *SHAPE)))
        assert (error == inf).all()
        assert (lower == -inf).all()


@pytest.mark.parametrize(("contract", "kind"), [("fp32", np.float32), ("fp16", np.float16)])
def test_leaky_relu_rounds_only_below_zero(contract, kind) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, *SHAPE)).astype(kind)
    for slope in (float(np.float32(0.01)), 0.25, 1.0):
        graph = alone(LeakyRelu(name="y", inputs=("x",), shape=SHAPE, slope=slope))
        rounding = Rounding(graph, CONTRACTS[contract])
        point = torch.from_numpy(x.astype(np.float64))
        error = rounding.error(graph.nodes[0], {"x": (point, point)}, (point, point)).numpy()
        # As a device of the format does it: the slope stored, the product rounded.
        found = np.where(x >= 0, x, (x * kind(slope)).astype(kind)).astype(np.float64)
        for got, a, allowed in zip(found.flat, x.flat, error.flat, strict=True):
            exact = Fraction(float(a)) if a >= 0 else Fraction(float(a)) * Fraction(slope)
            assert abs(Fraction(got) - exact) <= Fraction(allowed)
        assert (error[x > 0] < 1e-6).all()


def test_clip_is_exact_where_its_ends_are_numbers_of_the_format() -> None:
    x = np.linspace(-3, 9, 24).reshape(1, *SHAPE).astype(np.float16)
    cases = [(0.0, 6.0, 0.0), (float(np.float32(0.1)), 6.0, 2.0**-14), (-inf, 1e38, 0.0), (1e38, inf, inf)]
    for lowest, highest, allowed in cases:
        error, lower, upper = error_of(alone(Clip(name="y", inputs=("x",), shape=SHAPE, lowest=lowest, highest=highest)), "fp16", x)
        assert error.max() <= allowed
        assert (error.max() > 0) == (allowed > 0)
        if allowed < inf:
            found = np.clip(x, np.float16(lowest), np.float16(min(highest, 6e4))).astype(np.float64)
            assert ((lower <= found) & (found <= upper)).all()


def test_what_may_overflow_stays_unknown_behind_a_bounded_curve() -> None:
    """NaN passes through every curve, so a bounded image proves nothing of an unbounded argument."""
    for kind, fields in ((Sigmoid, {}), (Tanh, {}), (Clip, {"lowest": 0.0, "highest": 1.0}), (LeakyRelu, {"slope": 0.0})):
        big = Gemm(name="z", inputs=("x",), shape=(2,), weight="w", bias=None)
        graph = Graph("x", (2,), (big, kind(name="y", inputs=("z",), shape=(2,), **fields)), "y", {"w": np.full((2, 2), 3e38, np.float32)})
        rounding = Rounding(graph, CONTRACTS["fp32"])
        box = (torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
        boxes = interval(graph, rounding.params, box, rounding)
        assert (boxes["y"][0] == -inf).all()
        rows = torch.eye(2, dtype=torch.float64)
        assert (crown(graph, rounding.params, box, rows, boxes, rounding) == -inf).all()


MOVES = [
    Transpose(name="y", inputs=("x",), shape=(4, 2, 3), order=(2, 0, 1)),
    Slice(name="y", inputs=("x",), shape=(1, 2, 2), starts=(1, 0, 1), stops=(2, 3, 4), steps=(1, 2, 2)),
    Pad(name="y", inputs=("x",), shape=(2, 6, 5), before=(0, 1, 0), after=(0, 2, 1), value=0.75),
    Concat(name="y", inputs=("x", "x"), shape=(2, 6, 4), axis=1),
    Concat(name="y", inputs=("x", "x", "x"), shape=(2, 3, 12), axis=2),
    Neg(name="y", inputs=("x",), shape=SHAPE),
    Sub(name="y", inputs=("x", "x"), shape=SHAPE),
]


@pytest.mark.parametrize("node", MOVES, ids=lambda node: type(node).__name__)
def test_backward_of_a_linear_operator_is_exact_at_a_point(node) -> None:
    graph = alone(node)
    x = torch.from_numpy(2 * np.random.default_rng(2).integers(-8, 8, (2, *SHAPE)) + 1).double()  # zero might be a subnormal number
    rows = torch.from_numpy(np.random.default_rng(3).integers(-8, 8, (5, node.size))).double()
    expected = run(graph, {}, x).flatten(1) @ rows.T
    boxes = interval(graph, {}, (x, x))
    assert torch.equal(boxes["y"][0], run(graph, {}, x))
    assert torch.equal(crown(graph, {}, (x, x), rows, boxes), expected)
    if not isinstance(node, Sub):
        error, lower, upper = error_of(graph, "fp32", x.numpy())
        assert error.max() == 0
        assert (lower == upper).all()


def everything(rng: np.random.Generator) -> Graph:
    """Returns a network with every operator of this file's subject, some of them where runtimes fuse them."""
    nodes = [
        Conv(name="a", inputs=("x",), shape=(4, 6, 6), weight="A", bias="ab", pads=(1, 1, 1, 1)),
        LeakyRelu(name="leaky", inputs=("a",), shape=(4, 6, 6), slope=float(np.float32(0.1))),
        Conv(name="b", inputs=("leaky",), shape=(4, 6, 6), weight="B", bias=None, pads=(1, 1, 1, 1)),
        Sub(name="less", inputs=("b", "leaky"), shape=(4, 6, 6)),
        Clip(name="clip", inputs=("less",), shape=(4, 6, 6), lowest=-0.5, highest=1.0),
        Neg(name="neg", inputs=("clip",), shape=(4, 6, 6)),
        Concat(name="cat", inputs=("neg", "leaky"), shape=(8, 6, 6), axis=0),
        Slice(name="cut", inputs=("cat",), shape=(5, 6, 3), starts=(2, 0, 1), stops=(7, 6, 6), steps=(1, 1, 2)),
        Transpose(name="turn", inputs=("cut",), shape=(6, 3, 5), order=(1, 2, 0)),
        Pad(name="pad", inputs=("turn",), shape=(6, 4, 7), before=(0, 1, 1), after=(0, 0, 1), value=0.5),
        DivConstant(name="div", inputs=("pad",), shape=(6, 4, 7), constant="c"),
        Conv(name="d", inputs=("div",), shape=(3, 3, 6), weight="D", bias="db"),
        Sigmoid(name="sigmoid", inputs=("d",), shape=(3, 3, 6)),
        Reshape(name="flat", inputs=("sigmoid",), shape=(54,)),
        Gemm(name="g", inputs=("flat",), shape=(7,), weight="G", bias="gb"),
        Tanh(name="tanh", inputs=("g",), shape=(7,)),
        Gemm(name="h", inputs=("tanh",), shape=(4,), weight="H", bias=None),
        Neg(name="last", inputs=("h",), shape=(4,)),
        Slice(name="logits", inputs=("last",), shape=(3,), starts=(1,), stops=(4,), steps=(1,)),
    ]

    def weight(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * 1.5 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    params = {"A": weight(4, 2, 3, 3), "ab": weight(4), "B": weight(4, 4, 3, 3), "c": np.array([0.7, -1.3, 3, 0.3, 1, 5], np.float32)}
    params |= {"D": weight(3, 6, 2, 2), "db": weight(3), "G": 3 * weight(7, 54), "gb": weight(7), "H": weight(4, 7)}
    params["c"] = params["c"].reshape(6, 1, 1)
    return validate(Graph("x", (2, 6, 6), tuple(nodes), "logits", params))


@pytest.mark.parametrize("seed", range(4))
def test_onnx_runtime_stays_inside_every_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = everything(rng)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    centre = rng.random((2, 2, 6, 6)).astype(np.float32)
    box = ball(torch.from_numpy(centre), Fraction(1, int(rng.choice([4, 30, 10**6]))))
    enclosure = interval(graph, rounding.params, box, rounding)
    refined = refine(graph, rounding.params, box, enclosure, rounding)
    rows = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1]], dtype=torch.float64)
    bounds = [crown(graph, rounding.params, box, rows, boxes, rounding) for boxes in (enclosure, refined)]
    bounds.append(last_layer_folding(graph, rounding.params, rows, refined, rounding))
    low, high = (end.numpy() for end in refined["logits"])
    assert bool((bounds[1] > bounds[0]).any())
    model = to_onnx(graph).SerializeToString()
    for level in (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads = level, 1
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for trial in range(60):
            t = rng.integers(0, 2, box[0].shape) if trial % 2 else rng.random(box[0].shape)
            x = (box[0].numpy() * (1 - t) + box[1].numpy() * t).astype(np.float32)
            x = np.clip(x, np.nextafter(box[0].numpy().astype(np.float32), 2), np.nextafter(box[1].numpy().astype(np.float32), -2))
            logits = session.run(None, {"input": x})[0].astype(np.float64)
            assert ((low <= logits) & (logits <= high)).all()
            for lower in bounds:
                assert (logits @ rows.numpy().T >= lower.numpy()).all()


def test_attack_in_real_arithmetic_and_refinement_of_every_curve() -> None:
    rng = np.random.default_rng(9)
    for _ in range(4):
        graph = everything(rng)
        rounding = Rounding(graph, CONTRACTS["real"])
        box = ball(torch.from_numpy(rng.random((2, 2, 6, 6))), Fraction(1, 12))
        enclosure = interval(graph, rounding.params, box, rounding)
        refined = refine(graph, rounding.params, box, enclosure, rounding)
        assert relaxed_inputs(graph) == {"a", "less", "d", "g"}
        for name in ("d", "g"):
            width, before = (float((one[name][1] - one[name][0]).sum()) for one in (refined, enclosure))
            assert width < before
        rows = torch.from_numpy(rng.normal(size=(6, 3)))
        lowest = crown(graph, rounding.params, box, rows, refined, rounding)
        found = torch.full_like(lowest, inf)
        for _ in range(150):
            t = torch.rand_like(box[0]) if rng.random() < 0.3 else torch.randint(0, 2, box[0].shape).double()
            values = run(graph, rounding.params, box[0] + t * (box[1] - box[0]), keep=True)
            for name, (lower, upper) in refined.items():
                assert bool((values[name] >= lower - 1e-12).all()), name
                assert bool((values[name] <= upper + 1e-12).all()), name
            found = torch.minimum(found, values["logits"] @ rows.T)
        assert bool((found >= lowest - 1e-12).all())
        # A bound that is far from everything seen would hide a mistake in the other direction.
        assert float((found - lowest).median()) < 6


def test_search_without_rounding_is_differentiable() -> None:
    graph = everything(np.random.default_rng(4))
    params = {name: value.requires_grad_() for name, value in graph.tensors(torch.float32).items()}
    centre = torch.rand(2, 2, 6, 6)
    box = (centre - 0.05, centre + 0.05)
    boxes = refine(graph, params, box, interval(graph, params, box))
    crown(graph, params, box, torch.eye(3), boxes).sum().backward()
    for name in ("A", "B", "D", "G", "H", "c"):
        assert bool(torch.isfinite(params[name].grad).all())
        assert float(params[name].grad.abs().max()) > 0


def test_differences_are_fused_like_sums() -> None:
    def gemm(name: str) -> Gemm:
        return Gemm(name=name, inputs=("x",), shape=(2,), weight=name.upper(), bias=None)

    nodes = (
        gemm("r"),
        gemm("z"),
        Neg(name="n", inputs=("z",), shape=(2,)),
        Sub(name="s", inputs=("n", "r"), shape=(2,)),
        Relu(name="p", inputs=("x",), shape=(2,)),
        Add(name="y", inputs=("s", "p"), shape=(2,)),
    )
    graph = Graph("x", (2,), nodes, "y", {"R": np.ones((2, 2), np.float32), "Z": np.ones((2, 2), np.float32)})
    terms = one_sums(graph)["y"]
    assert {node.name for node in terms.affine} == {"r", "z"}
    assert terms.values == ("p",)
    assert one_sums(graph)["s"].added == 0


def test_a_difference_that_starts_the_accumulation_is_covered() -> None:
    """512 ones subtracted one by one from 2^24 + 2 in float32; in float64, and in one subtraction, they are not lost."""
    n, start = 512, 2.0**24 + 2
    nodes = (
        Gemm(name="z", inputs=("x",), shape=(1,), weight="W", bias=None),
        Gemm(name="r", inputs=("x",), shape=(1,), weight="R", bias=None),
        Sub(name="y", inputs=("r", "z"), shape=(1,)),
    )
    weights = {"W": np.ones((1, n), np.float32), "R": np.zeros((1, n), np.float32)}
    weights["R"][0, 0] = start
    graph = Graph("x", (n,), nodes, "y", weights)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    x = torch.ones((1, n), dtype=torch.float64)
    boxes = interval(graph, rounding.params, (x, x), rounding)
    total = np.float32(-start)  # the kernel's accumulator starts with −r and its result is negated
    for _ in range(n):
        total = np.float32(total + np.float32(1))
    lost = abs(-float(total) - (start - n))
    error = float(rounding.error(nodes[2], boxes, boxes["y"]))
    alone = 2.0**-24 * (start - n)
    assert error >= lost
    assert error > 100 * alone
    assert float(boxes["y"][0]) <= -float(total) <= float(boxes["y"][1])


def test_the_chain_after_the_last_curve_holds_every_linear_operator_of_one_input() -> None:
    assert [node.name for node in last_layers(everything(np.random.default_rng(0))).nodes] == ["h", "last", "logits"]


def test_a_network_without_relu_has_no_unstable_one() -> None:
    graph = alone(Tanh(name="y", inputs=("x",), shape=SHAPE))
    box = (-torch.ones(3, *SHAPE), torch.ones(3, *SHAPE))
    assert unstable_count(graph, interval(graph, {}, box)).tolist() == [0, 0, 0]


def test_functions_are_assumed_for_each_storage_format() -> None:
    graph = alone(Sigmoid(name="y", inputs=("x",), shape=SHAPE))
    for name, contract in CONTRACTS.items():
        if contract.integers:
            continue  # about quantised models alone
        of_contract = replace(graph, storage="fp16", wide_sums=True) if name == "fp16-tensorrt" else graph
        error, *_ = error_of(of_contract, name, np.zeros((1, *SHAPE)))
        assert error.max() <= FUNCTION_ERROR[contract.storage] + 2.0**-40
        assert error.min() >= FUNCTION_ERROR[contract.storage]
        # A result stored in the format is within half a unit of it at least.
        assert contract.exact or FUNCTION_ERROR[contract.storage] >= {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}[contract.storage]


@pytest.mark.parametrize("function", [Sigmoid, Tanh])
def test_onnx_runtime_computes_its_functions_four_times_closer_than_assumed(function) -> None:
    """Every binade of float32, both signs; benchmarks/functions does it at length."""
    graph = alone(function(name="y", inputs=("x",), shape=(24,)))
    bits = np.arange(0, 0x7F800000, 40_009, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), -bits.view(np.float32), np.linspace(-20, 20, 200_000, dtype=np.float32)])
    x = x[: len(x) // 24 * 24].reshape(-1, 24)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    with np.errstate(over="ignore"):
        exact = np.tanh(x.astype(np.float64)) if function is Tanh else 1 / (1 + np.exp(-x.astype(np.float64)))
    worst = float(np.abs(session.run(None, {"input": x})[0] - exact).max())
    assert 0 < worst <= FUNCTION_ERROR["fp32"] / 4
