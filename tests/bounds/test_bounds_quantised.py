"""Quantised activations: the staircase against rationals, whole networks against kernels on integers and in floats, and refusals."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from device_simulation import random_graph

from vsparse.bounds import Rounding, crown, interval, refine
from vsparse.bounds.curves import linear_relaxation
from vsparse.bounds.interval import propagate
from vsparse.bounds.operators.quantised import TAU
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import Add, Affine, AveragePool, Clip, FakeQuant, Gemm, Graph, MaxPool, QuantisedParameter, Relu, Reshape
from vsparse.graph.execute import apply
from vsparse.graph.quantised import check_integer_execution, quantised_scales
from vsparse.stages.export.quantise import quantise

INT8 = CONTRACTS["int8"]
F = np.float32


def quant(scale=0.1, zero=0, low=0, high=255, name="q", source="x", shape=(1,)):
    return FakeQuant(name=name, inputs=(source,), shape=shape, scale=float(F(scale)), zero_point=zero, lowest=low, highest=high)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_steps_by_hand():
    node = quant(0.5, zero=3, low=-128, high=127)
    (low,), (high,) = (end.tolist() for end in propagate(node, {}, [(column([0.3]), column([0.3]))]))
    assert (low, high) == ([0.5], [0.5])  # 0.6 steps, which is 1
    low, high = propagate(node, {}, [(column([0.25]), column([0.25]))])
    assert (low.item(), high.item()) == (0.0, 0.5)  # a tie goes either way
    low, high = propagate(node, {}, [(column([-1e9]), column([1e9]))])
    assert (low.item(), high.item()) == (-65.5, 62.0)  # (−128 − 3)/2 and (127 − 3)/2


@pytest.mark.parametrize("zero", [0, 17, 255])
def test_execution_is_inside_and_is_the_definition(zero):
    node = quant(0.037, zero)
    rng = np.random.default_rng(zero)
    x = torch.tensor(rng.normal(size=4000) * 4, dtype=torch.float32)
    x.requires_grad_()
    y = apply(node, {}, x)
    s = Fraction(node.scale)
    for value, got in zip(x.tolist()[:500], y.tolist(), strict=False):
        t = Fraction(float(F(value) / F(node.scale)))
        k = min(max(round(t) + zero, 0), 255) - zero
        assert got == float(F(float(s * k)))
    low, high = propagate(node, {}, [(x.detach().double(), x.detach().double())])
    assert bool((low <= y.double() * (1 + 2**-20 * y.sign())).all())
    assert bool((y.detach().double() * (1 - 2**-20 * y.sign()) <= high).all())
    y.sum().backward()
    beyond = torch.maximum(node.steps[0] * node.scale - x, x - node.steps[1] * node.scale).detach()
    assert (x.grad[beyond < 0] == 1).all()
    assert (x.grad[beyond > 0.6 * node.scale] == 0).all()


def test_lines_hold_for_every_step_a_device_may_take():
    """All k that a device may take at x, and x at the ends of where it may: in rationals, against the lines as computed."""
    rng = np.random.default_rng(1)
    for _ in range(400):
        scale = float(F(2.0 ** rng.uniform(-6, 3)))
        low_q, high_q = ((0, 255), (-128, 127))[int(rng.integers(2))]
        node = quant(scale, int(rng.integers(low_q, high_q + 1)), low_q, high_q)
        a, b = node.steps
        centre, width = rng.uniform(a - 20, b + 20), 10.0 ** rng.uniform(-3, 2.7)
        l, u = sorted(scale * (centre + rng.uniform(-1, 1, 2) * width))
        if rng.random() < 0.2:
            l = scale * (round(l / scale) + 0.5)  # at a tie
            u = max(l, u)
        one = linear_relaxation(node, column([l]), column([u]), True)
        m_low, c_low, m_up, c_up = (Fraction(float(v.item())) for v in one)
        assert 0 <= m_low <= 1
        assert 0 <= m_up <= 1
        s, near = Fraction(scale), Fraction(1, 2) + Fraction(TAU) / 2
        lo, hi = Fraction(float(l)), Fraction(float(u))
        first = min(max(ceil(lo / s - near), a), b)
        last = min(max(floor(hi / s + near), a), b)
        box = propagate(node, {}, [(column([l]), column([u]))])
        assert box[0].item() <= float(s * first)
        assert float(s * last) <= box[1].item()
        for k in range(first, last + 1):
            left = lo if k == a else max(lo, s * (k - near))
            right = hi if k == b else min(hi, s * (k + near))
            for x in {max(left, lo), min(right, hi)}:
                if lo <= x <= hi:
                    assert m_low * x + c_low <= s * k <= m_up * x + c_up, (node, l, u, k)


def test_lines_without_a_clamp_are_the_identity_and_half_a_step():
    one = linear_relaxation(quant(0.5, zero=128), column([-10.0]), column([12.3]), False)
    assert one.lower_slope.item() == one.upper_slope.item() == 1
    assert one.upper_intercept.item() == pytest.approx(0.5 * (0.5 + TAU))
    assert one.lower_intercept.item() == pytest.approx(-0.5 * (0.5 + TAU))
    few = linear_relaxation(quant(0.5), column([0.3]), column([0.6]), False)
    assert (few.lower_slope.item(), few.upper_slope.item()) == (0, 0)
    assert (few.lower_intercept.item(), few.upper_intercept.item()) == (0.5, 0.5)


class Kernels:
    """A runtime that fuses: each operator in exact integers or in float32, with random orders, each rounding in one of several ways."""

    def __init__(self, graph: Graph, rng: np.random.Generator):
        self.graph, self.rng, self.readers = graph, rng, graph.consumers()
        self.scales = quantised_scales(graph)

    def run(self, x):
        self.values = {self.graph.input: x.astype(np.float64)}
        for node in self.graph.nodes:
            self.values[node.name] = self.node(node)
        return self.values

    def grid(self, name):
        while name != self.graph.input:
            node = self.graph.node(name)
            if isinstance(node, FakeQuant):
                return node
            if not isinstance(node, Relu | MaxPool | Reshape):
                return None
            name = node.inputs[0]
        return None

    def result(self, node):
        """The quantisation that alone reads a node's result, through a ReLU that the clamp absorbs; None where there is none."""
        (reader, *others) = self.readers[node.name] or [None]
        if others or node.name == self.graph.output:
            return None
        if isinstance(reader, Relu):
            after = self.result(reader)
            return after if after is not None and after.steps[0] == 0 else None
        return reader if isinstance(reader, FakeQuant) else None

    def read(self, name):
        value = self.values[name]
        return F(value).astype(np.float64) if self.scales[name] and self.rng.random() < 0.5 else value

    def node(self, node):
        # What only moves values moves the integers; a float kernel rounds scale times integer where it is read.
        x = self.values[node.inputs[0]] if isinstance(node, Relu | MaxPool | Reshape) else self.read(node.inputs[0])
        fused = self.rng.random() < 0.6
        if isinstance(node, FakeQuant):
            return self.quantise(node, x)
        if isinstance(node, Relu):
            return np.maximum(x, 0)
        if isinstance(node, Affine):
            whole = fused and self.grid(node.inputs[0]) is not None
            return self.integers(node) if whole else self.floats(node, x)
        if isinstance(node, Add):
            grids = [self.grid(name) for name in node.inputs]
            if fused and all(grids) and self.result(node):
                return self.added(node, grids)
            return F(F(x) + F(self.read(node.inputs[1]))).astype(np.float64)
        if isinstance(node, AveragePool):
            total = apply(node, {}, torch.from_numpy(x[None]))[0].numpy() * np.prod(node.kernel)
            return (F(total) * F(1 / np.prod(node.kernel))).astype(np.float64)
        if node.params:  # one rounding, of a constant added or multiplied by
            return apply(node, self.graph.tensors(), torch.from_numpy(F(x)[None]))[0].numpy().astype(np.float64)
        return apply(node, {}, torch.from_numpy(x[None]))[0].numpy()

    def quantise(self, node, x):
        s = F(node.scale)
        how = self.rng.integers(3)
        with np.errstate(over="ignore"):
            t = F(x) / s if how == 0 else F(x) * (F(1) / s)
        if how == 2:
            t = F(t + F(node.zero_point)).astype(np.float64) - node.zero_point
        t = np.asarray(t, np.float64)
        steps = np.rint(t) if self.rng.random() < 0.5 else np.where(t % 1 == 0.5, np.floor(t) + self.rng.integers(2), np.rint(t))
        return np.clip(steps, *node.steps) * node.scale

    def terms(self, node, weight, bias, x):
        tensor = {"w": torch.tensor(weight, dtype=torch.float64)}
        eye = torch.eye(x.size, dtype=torch.float64).reshape(-1, *x.shape)
        columns = apply(replace(node, weight="w", bias=None), tensor, eye).reshape(x.size, -1).numpy().T
        bias = np.zeros(len(weight)) if bias is None else bias
        return columns, np.repeat(bias.astype(np.float64), node.size // len(weight))

    def floats(self, node, x):
        bias = None if node.bias is None else self.graph.params[node.bias]
        columns, bias = self.terms(node, self.graph.params[node.weight], bias, x)
        out = []
        for row, b in zip(columns, bias, strict=True):
            parts = [F(b), *(F(F(w) * F(v)) for w, v in zip(row, F(x).reshape(-1), strict=True) if w)]
            total = F(0)
            for i in self.rng.permutation(len(parts)):
                total = F(total + parts[i])
            out.append(total)
        return np.array(out, np.float64).reshape(node.shape)

    def integers(self, node):
        grid, weight = self.grid(node.inputs[0]), self.graph.integers[node.weight]
        q = np.rint(self.values[node.inputs[0]] / grid.scale)
        bias = None if node.bias is None else self.graph.integers[node.bias].values
        columns, bias = self.terms(node, weight.values, bias, q)
        total = columns @ q.reshape(-1) + bias
        assert np.abs(total).max(initial=0) < 2**31
        scale = F(np.repeat(np.broadcast_to(weight.scale, (len(weight.values),)), node.size // len(weight.values))) * F(grid.scale)
        after = self.result(node)
        if after is None:
            return (F(total) * scale).astype(np.float64).reshape(node.shape)
        # What the clamp and the rounding see, in steps of the result, said as a value: the quantisation then divides by exactly this scale.
        steps = (F(total) * (scale / F(after.scale))).astype(np.float64)
        return (steps * after.scale).reshape(node.shape)

    def added(self, node, grids):
        after = self.result(node)
        a, b = (self.values[name] / g.scale + g.zero_point for name, g in zip(node.inputs, grids, strict=True))
        ra, rb = (F(g.scale) / F(after.scale) for g in grids)
        fixed = F(after.zero_point) - (ra * F(grids[0].zero_point) + rb * F(grids[1].zero_point))
        steps = F(fixed + F(F(np.rint(a)) * ra)) + F(F(np.rint(b)) * rb)
        return (F(steps).astype(np.float64) - after.zero_point) * after.scale


def quantised_net(rng):
    graph = random_graph(rng)
    samples = rng.random((16, *graph.input_shape)).astype(np.float32)
    return quantise(graph, samples)


def attacked(rng, rounds):
    graph = quantised_net(rng)
    rounding = Rounding(graph, INT8)
    centre = rng.random(graph.input_shape)
    radius = float(rng.choice([0.0, 0.003, 0.03, 0.2]))
    lower, upper = np.clip(F(centre - radius), 0, 1), np.clip(F(centre + radius), 0, 1)
    lower, upper = np.minimum(lower, upper), np.maximum(lower, upper)
    box = tuple(torch.tensor(end[None], dtype=torch.float64) for end in (lower, upper))
    boxes = interval(graph, rounding.params, box, rounding)
    rows = torch.cat([torch.eye(3, dtype=torch.float64), torch.tensor(rng.normal(size=(3, 3)))])
    bounds = [crown(graph, rounding.params, box, rows, boxes, rounding)[0].numpy()]
    better = refine(graph, rounding.params, box, boxes, rounding)
    bounds.append(crown(graph, rounding.params, box, rows, better, rounding)[0].numpy())
    assert all(np.isfinite(one).all() for one in bounds)
    for _ in range(rounds):
        pick = rng.random(graph.input_shape)
        x = np.where(rng.random() < 0.5, np.where(pick < 0.5, lower, upper), lower + pick * (upper - lower)).astype(np.float32)
        values = Kernels(graph, rng).run(np.clip(x, lower, upper))
        for name, value in values.items():
            for one in (boxes, better):
                l, u = (end[0].numpy() for end in one[name])
                assert (value >= l).all(), name
                assert (value <= u).all(), name
        logits = values[graph.output].reshape(-1)
        for one in bounds:
            assert (rows.numpy() @ logits >= one - 1e-12 * np.abs(rows.numpy()).sum(axis=1) * np.abs(logits).max()).all()


@pytest.mark.parametrize("seed", range(12))
def test_no_execution_leaves_its_bounds(seed):
    rng = np.random.default_rng(seed)
    for _ in range(3):
        attacked(rng, 12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_no_execution_leaves_its_bounds_at_length(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        attacked(rng, 40)


def hand_net(weight=(((3, -64), (0, 7))), scale=(0.01, 0.02), bias=(5, -9), s_x=0.1, factor=1.0, bias_scale=1.0):
    w = QuantisedParameter(np.array(weight, np.int8), np.array(scale, F))
    b = QuantisedParameter(np.array(bias, np.int32), (F(s_x) * w.scale * F(bias_scale)).astype(F))
    q = quant(s_x, shape=(2,))
    nodes = (q, Gemm(name="z", inputs=("q",), shape=(2,), weight="w", bias="b"))
    return Graph("x", (2,), nodes, "z", {"w": w.floats(), "b": b.floats()}, {"w": w, "b": b})


def test_the_error_of_a_layer_by_hand():
    graph = hand_net()
    rounding = Rounding(graph, INT8)
    at = column([20.0, 0.0]).reshape(1, 2)
    boxes = {"x": (at, at)}
    for node in graph.nodes:
        boxes[node.name] = propagate(node, rounding.params, [boxes[name] for name in node.inputs])
    assert boxes["q"][0].tolist() == [[200 * float(F(0.1)), 0.0]]
    error = rounding.error(graph.nodes[1], boxes, boxes["z"])[0]
    u = 2.0**-24
    size = abs(float(F(0.01) * F(3))) * 200 * float(F(0.1)) + abs(float(graph.params["b"][0]))
    assert error[0].item() == pytest.approx((2 + 13) * u * size, rel=1e-4)
    assert rounding.error(graph.nodes[0], boxes, boxes["q"]).abs().max() == 0


def test_an_infinite_input_stays_unknown():
    graph = hand_net()
    rounding = Rounding(graph, INT8)
    wide = (torch.full((1, 2), -np.inf, dtype=torch.float64), torch.full((1, 2), np.inf, dtype=torch.float64))
    boxes = interval(graph, rounding.params, wide, rounding)
    assert torch.isinf(boxes["q"][0]).all()
    assert torch.isinf(boxes["z"][1]).all()


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (hand_net(weight=((64, 65), (0, 7))), "8-bit weights.*export 7-bit weights.*reduce_range"),
        (hand_net(bias_scale=1.001), "bias whose scale is not"),
        (hand_net(bias=(2**31 - 1, 0)), "overflow its int32"),
        (hand_net(scale=(1e-20, 0.1)), "weight scale outside"),
        (hand_net(s_x=1e-20), "scale 1e-20, outside"),
        (replace(hand_net(), integers={}), "float32 weight"),
        (replace(hand_net(), output="r", nodes=(hand_net().nodes[0], Relu(name="r", inputs=("q",), shape=(2,)))), "moves quantised"),
        (replace(hand_net(), nodes=(hand_net().nodes[1],), output="z"), "no QuantizeLinear"),
    ],
)
def test_what_integers_cannot_execute_is_refused(graph, reason):
    if not any(isinstance(node, FakeQuant) for node in graph.nodes):
        graph = replace(graph, nodes=tuple(replace(node, inputs=("x",)) for node in graph.nodes))
    with pytest.raises(InputError, match=reason):
        Rounding(graph, INT8)


def test_quantising_twice_is_refused_and_other_contracts_are():
    graph = hand_net()
    twice = replace(graph, nodes=(graph.nodes[0], quant(0.2, name="p", source="q", shape=(2,)), replace(graph.nodes[1], inputs=("p",))))
    with pytest.raises(InputError, match="quantised already"):
        check_integer_execution(twice)
    for name in ("fp32", "tf32", "fp16", "bf16"):
        with pytest.raises(InputError, match=r"choose int8|not representable"):
            Rounding(graph, CONTRACTS[name])
    Rounding(graph, CONTRACTS["real"])


def test_tiny_steps_behind_a_clip_are_refused():
    graph = hand_net(s_x=2.0**-21)
    clip = Clip(name="c", inputs=("x",), shape=(2,), lowest=0.0, highest=1e-7)
    Rounding(graph, INT8)
    with pytest.raises(InputError, match="behind a Clip"):
        Rounding(replace(graph, nodes=(clip, replace(graph.nodes[0], inputs=("c",)), graph.nodes[1])), INT8)


def test_real_arithmetic_is_inside_too():
    rng = np.random.default_rng(5)
    graph = quantised_net(rng)
    rounding = Rounding(graph, CONTRACTS["real"])
    x = torch.tensor(rng.random((1, *graph.input_shape)))
    boxes = interval(graph, rounding.params, (x, x), rounding)
    values = {graph.input: x}
    for node in graph.nodes:
        values[node.name] = apply(node, rounding.params, *(values[name] for name in node.inputs))
        low, high = boxes[node.name]
        assert bool((low <= values[node.name] + 1e-12).all())
        assert bool((values[node.name] <= high + 1e-12).all())
