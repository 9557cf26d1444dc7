"""Small networks whose bounds are worked out by hand, margins, gradients, and what must never certify."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from device_simulation import random_graph

from vsparse.bounds import Choices, Rounding, ball, crown, interval, lowest_margin, margin_rows, refine, unstable_count
from vsparse.bounds.affine_box import gradients as affine_gradients
from vsparse.bounds.float64 import gamma
from vsparse.bounds.operators.piecewise import relu_relaxation
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph.ir import BatchNorm, Conv, Gemm, Graph, Relu

UNIT_BOX = (torch.tensor([[-1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 1.0]], dtype=torch.float64))


def two_neurons(w1=((1, 1), (1, -1)), w2=((1, -1),), b1=(0, 0), b2=(0,)) -> Graph:
    """y = W2 · relu(W1 · x + b1) + b2."""
    params = {k: np.array(v, np.float32) for k, v in {"w1": w1, "w2": w2, "b1": b1, "b2": b2}.items()}
    nodes = (
        Gemm(name="h", inputs=("x",), shape=(2,), weight="w1", bias="b1"),
        Relu(name="r", inputs=("h",), shape=(2,)),
        Gemm(name="y", inputs=("r",), shape=(len(w2),), weight="w2", bias="b2"),
    )
    return Graph(input="x", input_shape=(2,), nodes=nodes, output="y", params=params)


def exact(graph: Graph) -> Rounding:
    return Rounding(graph, CONTRACTS["real"])


def test_interval_by_hand():
    # h1 = x1 + x2 in [-1, 2], h2 = x1 − x2 in [-2, 1]; relu: [0, 2], [0, 1]; y = r1 − r2 in [-1, 2].
    rounding = exact(two_neurons())
    boxes = interval(rounding.graph, rounding.params, UNIT_BOX, rounding)
    for name, lower, upper in (("h", [-1, -2], [2, 1]), ("r", [0, 0], [2, 1]), ("y", [-1], [2])):
        assert boxes[name][0][0].tolist() == pytest.approx(lower, abs=1e-12)
        assert boxes[name][1][0].tolist() == pytest.approx(upper, abs=1e-12)
        assert all(a <= b for a, b in zip(boxes[name][0][0].tolist(), lower, strict=True))
    assert unstable_count(rounding.graph, boxes).tolist() == [2]


def test_crown_by_hand():
    # r1 >= h1 (slope 1, since 2 > 1), r2 <= (h2 + 2)/3: y >= x1 + x2 − (x1 − x2 + 2)/3 = (2·x1 + 4·x2 − 2)/3, at (-1, 0): −4/3.
    rounding = exact(two_neurons())
    boxes = interval(rounding.graph, rounding.params, UNIT_BOX, rounding)
    rows = torch.ones(1, 1, dtype=torch.float64)
    bound = crown(rounding.graph, rounding.params, UNIT_BOX, rows, boxes, rounding)
    assert bound.item() == pytest.approx(-4 / 3, abs=1e-12)
    assert bound.item() <= -4 / 3
    # With slope 0 for r1: y >= −(x1 − x2 + 2)/3, at (1, 0): −1.
    slopes = {"r": torch.zeros(1, 1, 2)}
    assert crown(rounding.graph, rounding.params, UNIT_BOX, rows, boxes, rounding, Choices(slopes)).item() == pytest.approx(-1, abs=1e-12)
    # −y: r1 <= (2·h1 + 2)/3 and r2 >= 0 (slope 0: 1 < 2): −y >= −(2·(x1 + x2) + 2)/3, at (1, 1): −2.
    assert crown(rounding.graph, rounding.params, UNIT_BOX, -rows, boxes, rounding).item() == pytest.approx(-2, abs=1e-12)
    # Another target: h1 + 2·h2 = 3·x1 − x2, at (-1, 1): −4.
    row = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert crown(rounding.graph, rounding.params, UNIT_BOX, row, boxes, rounding, target="h").item() == pytest.approx(-4, abs=1e-12)


def test_branching_makes_a_neuron_linear():
    rounding = exact(two_neurons())
    boxes = interval(rounding.graph, rounding.params, UNIT_BOX, rounding)
    off = {**boxes, "h": (boxes["h"][0], torch.minimum(boxes["h"][1], torch.tensor([[9.0, 0.0]], dtype=torch.float64)))}
    # In the branch h2 <= 0: y = relu(h1) >= h1 >= −1.
    rows = torch.ones(1, 1, dtype=torch.float64)
    assert crown(rounding.graph, rounding.params, UNIT_BOX, rows, off, rounding).item() == pytest.approx(-1, abs=1e-12)


def test_upper_relu_line_dominates_at_both_ends_as_computed():
    rng = np.random.default_rng(1)
    lower = -torch.tensor(10.0 ** rng.uniform(-12, 6, 2000), dtype=torch.float64)
    upper = torch.tensor(10.0 ** rng.uniform(-12, 6, 2000), dtype=torch.float64)
    low_slope, slope, intercept = relu_relaxation(lower, upper, outward=True)
    for l, u, s, t in zip(lower.tolist(), upper.tolist(), slope.tolist(), intercept.tolist(), strict=True):
        assert Fraction(s) * Fraction(l) + Fraction(t) >= 0
        assert Fraction(s) * Fraction(u) + Fraction(t) >= Fraction(u)
    assert bool(((low_slope == 0) | (low_slope == 1)).all())


def test_error_of_a_row_by_hand_and_pruned_weights_tighten_it():
    m = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    dense, pruned = two_neurons(w1=((3, 1), (3, 1))), two_neurons(w1=((3, 0), (3, 1)))
    errors = {}
    for name, graph in (("dense", dense), ("pruned", pruned)):
        rounding = Rounding(graph, CONTRACTS["fp32"])
        node = graph.nodes[0]
        out = interval(graph, rounding.params, (-m, m), rounding)["h"]
        errors[name] = rounding.error(node, {graph.input: (-m, m)}, out)[0].tolist()
    # n = 2 survivors: γ_3 · (3·0.5 + 1·0.25); n = 1: γ_2 · 3·0.5, besides 2^-126 terms and float64's own 2^-53.
    assert errors["dense"][0] == pytest.approx(gamma(3, 2.0**-24) * 1.75, rel=1e-6)
    assert errors["dense"][0] >= gamma(3, 2.0**-24) * 1.75
    assert errors["pruned"][0] == pytest.approx(gamma(2, 2.0**-24) * 1.5, rel=1e-6)
    assert errors["pruned"][1] == pytest.approx(errors["dense"][1])


def test_gamma_is_infinite_where_it_has_no_meaning():
    assert gamma(2**24, 2.0**-24) == float("inf")
    assert Fraction(gamma(100, 2.0**-11)) >= Fraction(100, 2**11) / (1 - Fraction(100, 2**11))
    assert gamma(5, 0.0) == 0


@pytest.mark.parametrize("contract", ["fp32", "real", "fp16", "bf16", "tf32"])
def test_overflow_never_certifies(contract):
    big = {"fp32": 2.0**126, "tf32": 2.0**126, "bf16": 2.0**126, "real": 2.0**126, "fp16": 2.0**14}[contract]
    # The first layer is huge, the second cancels it: the last bounds would be harmless if overflow were overlooked.
    graph = two_neurons(w1=((big, 0), (big, big)), w2=((0, 0), (0, 0)), b1=(big, big), b2=(2, 1))
    rounding = Rounding(graph, CONTRACTS[contract])
    box = (torch.full((1, 2), 0.5, dtype=torch.float64), torch.full((1, 2), 2.0 if contract != "real" else 2.0**80, dtype=torch.float64))
    boxes = interval(graph, rounding.params, box, rounding)
    assert boxes["y"][0].tolist() == [[-np.inf, -np.inf]]
    assert boxes["y"][1].tolist() == [[np.inf, np.inf]]
    rows = margin_rows(torch.tensor([0]), 2)
    for enclosure in (boxes, refine(graph, rounding.params, box, boxes, rounding)):
        assert crown(graph, rounding.params, box, rows, enclosure, rounding).item() == -np.inf


def test_what_is_not_a_number_never_certifies():
    graph = two_neurons()
    rounding = Rounding(graph, CONTRACTS["fp32"])
    for bad in (np.nan, np.inf):
        box = (UNIT_BOX[0], torch.tensor([[bad, 1.0]], dtype=torch.float64))
        boxes = interval(graph, rounding.params, box, rounding)
        assert boxes["y"][0].item() == -np.inf
        assert crown(graph, rounding.params, box, torch.ones(1, 1, dtype=torch.float64), boxes, rounding).item() == -np.inf
    assert lowest_margin(torch.tensor([[1.0, np.nan], [1.0, 2.0]])).tolist() == [-np.inf, 1.0]
    assert lowest_margin(torch.zeros(2, 0)).tolist() == [-np.inf, -np.inf]
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="not finite"):
            Rounding(two_neurons(w1=((value, 0), (0, 0))), CONTRACTS["fp32"])


def test_only_the_deployed_parameters_in_float64_decide():
    graph = two_neurons()
    rounding = Rounding(graph, CONTRACTS["fp32"])
    other = {**rounding.params, "w1": rounding.params["w1"] * 2}
    with pytest.raises(InputError, match="w1"):
        interval(graph, other, UNIT_BOX, rounding)
    with pytest.raises(InputError, match="float64"):
        interval(graph, rounding.params, (UNIT_BOX[0].float(), UNIT_BOX[1].float()), rounding)
    with pytest.raises(InputError, match="float64"):
        crown(graph, rounding.params, UNIT_BOX, torch.ones(1, 1), interval(graph, rounding.params, UNIT_BOX, rounding), rounding)
    with pytest.raises(InputError, match="fp16"):
        Rounding(two_neurons(b2=(0.1,)), CONTRACTS["fp16"])
    with pytest.raises(InputError, match="largest"):
        Rounding(two_neurons(b2=(3.4e38,)), CONTRACTS["tf32"])


def test_batch_normalisation_is_bounded_in_training_and_must_be_folded_before_a_verdict():
    params = {"s": [2, -1], "b": [0, 1], "m": [1, 0], "v": [3, 0]}
    arrays = {k: np.array(v, np.float32) for k, v in params.items()}
    node = BatchNorm(name="n", inputs=("x",), shape=(2, 1, 1), scale="s", bias="b", mean="m", variance="v", epsilon=1.0)
    graph = Graph(input="x", input_shape=(2, 1, 1), nodes=(node,), output="n", params=arrays)
    box = (torch.tensor([[-1.0, 0.0]]).view(1, 2, 1, 1), torch.tensor([[1.0, 1.0]]).view(1, 2, 1, 1))
    # Channel 1: (x − 1)·2/2 on [-1, 1]: [-2, 0]; channel 2: 1 − x on [0, 1]: [0, 1].
    lower, upper = interval(graph, {k: torch.tensor(v) for k, v in arrays.items()}, box)["n"]
    assert lower.flatten().tolist() == [-2, 0]
    assert upper.flatten().tolist() == [0, 1]
    with pytest.raises(InputError, match="fold"):
        Rounding(graph, CONTRACTS["fp32"])


def test_margin_rows():
    assert margin_rows(1, 3).tolist() == [[-1, 1, 0], [0, 1, -1]]
    assert margin_rows(torch.tensor([0, 2]), 3).shape == (2, 2, 3)
    for label in (-1, 3):
        with pytest.raises(InputError, match="label"):
            margin_rows(label, 3)


def test_rows_in_pieces_give_the_same_bounds():
    rng = np.random.default_rng(3)
    graph = random_graph(rng)
    rounding = Rounding(graph, CONTRACTS["fp32"])
    box = ball(torch.rand(3, *graph.input_shape), Fraction(1, 20))
    boxes = interval(graph, rounding.params, box, rounding)
    rows = torch.tensor(rng.normal(size=(3, 7, 3)))
    slopes = {n.name: torch.rand(3, 7, *n.shape) for n in graph.nodes if isinstance(n, Relu)}
    whole = crown(graph, rounding.params, box, rows, boxes, rounding, Choices(slopes))
    for limit in (1, 20_000, 60_000):
        pieces = crown(graph, rounding.params, box, rows, boxes, rounding, Choices(slopes), memory_limit_bytes=limit)
        assert torch.allclose(pieces, whole, atol=1e-9, rtol=0)
    empty = crown(graph, rounding.params, (box[0][:0], box[1][:0]), rows[:0], {k: (a[:0], b[:0]) for k, (a, b) in boxes.items()}, rounding)
    assert empty.shape == (0, 7)


@pytest.mark.parametrize(("channels", "stride", "pads"), [(1, (2, 2), (0, 0, 0, 0)), (2, (2, 3), (0, 0, 0, 0)), (3, (3, 2), (1, 0, 2, 1))])
def test_gradients_of_strided_pointwise_convolutions_are_those_of_the_convolution(channels, stride, pads):
    """The strided kernels of torch 2.13 write outside of their buffers here, so that a process dies after a few calls."""
    generator = torch.Generator().manual_seed(0)
    node = Conv(name="y", inputs=("x",), shape=(4, 1, 1), weight="w", bias=None, stride=stride, pads=pads)
    for dtype, batch, repeats in ((torch.float64, 3, 1), (torch.float32, 32, 60)):
        x = torch.rand(batch, channels, 8, 7, generator=generator, dtype=dtype, requires_grad=True)
        weight = torch.rand(4, channels, 1, 1, generator=generator, dtype=dtype, requires_grad=True)
        top, left, bottom, right = pads
        y = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (left, right, top, bottom)), weight, stride=stride)
        grad = torch.rand(y.shape, generator=generator, dtype=dtype)
        wanted = torch.autograd.grad(y, (x, weight), grad)
        for _ in range(repeats):
            found = affine_gradients(node, weight.detach(), x.detach(), grad, (True, True))
        for one, other in zip(found, wanted, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=0)
        assert affine_gradients(node, weight.detach(), x.detach(), grad, (False, True))[0] is None


def test_gradients_of_the_interval_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    for dtype, pads, groups in ((torch.float64, (1, 1, 1, 1), 1), (torch.float64, (0, 1, 2, 0), 2), (torch.float32, (1, 0, 0, 1), 1)):
        node = Conv(name="c", inputs=("x",), shape=(4, 3, 3), weight="w", bias="b", stride=(2, 2), pads=pads, groups=groups)
        size = (2, 5 if sum(pads[::2]) == 2 else 6, 5 if sum(pads[1::2]) == 2 else 6)
        graph = Graph(input="x", input_shape=size, nodes=(node,), output="c")
        w = torch.randn(4, 2 // groups, 3, 3, generator=generator, dtype=dtype).requires_grad_()
        b = torch.randn(4, generator=generator, dtype=dtype).requires_grad_()
        centre = torch.randn(3, *size, generator=generator, dtype=dtype)
        ends = [(centre - 0.1).requires_grad_(), (centre + 0.2).requires_grad_()]
        lower, upper = interval(graph, {"w": w, "b": b}, (ends[0], ends[1]))["c"]
        plus, minus = w.clamp(min=0), w.clamp(max=0)

        def conv(x, weight, pads=pads, groups=groups):
            padded = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
            return torch.nn.functional.conv2d(padded, weight, None, 2, 0, 1, groups)

        shift = b.view(1, -1, 1, 1)
        expected = conv(ends[0], plus) + conv(ends[1], minus) + shift, conv(ends[1], plus) + conv(ends[0], minus) + shift
        weights = [torch.randn(lower.shape, generator=generator, dtype=dtype) for _ in range(2)]
        tolerance = 1e-10 if dtype == torch.float64 else 1e-3
        assert torch.allclose(lower, expected[0], atol=tolerance)
        assert torch.allclose(upper, expected[1], atol=tolerance)
        ours = torch.autograd.grad((lower * weights[0] + upper * weights[1]).sum(), [w, b, *ends])
        theirs = torch.autograd.grad((expected[0] * weights[0] + expected[1] * weights[1]).sum(), [w, b, *ends])
        for one, other in zip(ours, theirs, strict=True):
            assert torch.allclose(one, other, atol=tolerance)


def test_slopes_can_be_optimised():
    rng = np.random.default_rng(4)
    graph = random_graph(rng)
    params = {k: torch.tensor(v) for k, v in graph.params.items()}
    x = torch.rand(1, *graph.input_shape)
    box = (x - 0.3, x + 0.3)
    boxes = interval(graph, params, box)
    slopes = {n.name: torch.full((1, 1, *n.shape), 0.5, requires_grad=True) for n in graph.nodes if isinstance(n, Relu)}
    bound = crown(graph, params, box, torch.eye(3), boxes, choices=Choices(slopes))
    gradients = torch.autograd.grad(bound.sum(), list(slopes.values()))
    assert any(float(g.abs().sum()) > 0 for g in gradients)


def test_the_price_of_float32_is_small():
    rng = np.random.default_rng(6)
    for _ in range(10):
        graph = random_graph(rng)
        box = ball(torch.rand(1, *graph.input_shape), Fraction(1, 100))
        bounds = {}
        for name in ("real", "fp32"):
            rounding = Rounding(graph, CONTRACTS[name])
            boxes = interval(graph, rounding.params, box, rounding)
            bounds[name] = crown(graph, rounding.params, box, torch.eye(3, dtype=torch.float64), boxes, rounding), boxes[graph.output]
        lost = bounds["real"][0] - bounds["fp32"][0]
        scale = max(float(end.abs().max()) for pair in boxes.values() for end in pair)
        assert bool((lost >= 0).all())
        assert bool((lost <= 1e-3 * scale).all())
