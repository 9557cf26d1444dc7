"""Random networks of 8 to 16 inputs over all operators, controllers with tanh and sigmoid units among them, and properties of them."""

from __future__ import annotations

import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bounds"))

from graph_builder import CLASSES, ELEMENTWISE, OPERATORS, Builder, flatten, random_integer_net  # noqa: E402

from vsparse.errors import InputError  # noqa: E402
from vsparse.graph import Clip, Gemm, Graph, LeakyRelu, Relu, Sigmoid, Tanh, run, validate  # noqa: E402
from vsparse.vnnlib import Case, Constraint, InputBox, Query  # noqa: E402

SHAPES = [(8,), (10,), (12,), (16,), (1, 2, 4), (1, 3, 4), (2, 2, 3), (1, 4, 4), (2, 2, 4), (4, 2, 2), (3, 2, 2)]
KINDS = ("operators", "tail", "controller", "wide", "quantised")
SHARES = (0.4, 0.22, 0.22, 0.08, 0.08)
FEW, MANY = 16, 40
SAMPLES = 2000


def network(rng: np.random.Generator, kind: str = "") -> tuple[str, Graph]:
    """Returns a kind of network (default: a random one) and one of this kind."""
    kind = kind or str(rng.choice(KINDS, p=SHARES))
    makers = {"operators": operators, "tail": tail, "controller": controller, "wide": wide, "quantised": random_integer_net}
    while True:
        made = makers[kind](rng)
        if np.prod(made.input_shape) <= (MANY if kind == "wide" else FEW) and made.nodes:
            with suppress(InputError):  # such as a max pool that reads padding, which no file may have
                return kind, validate(made)


def grown(rng: np.random.Generator) -> Builder:
    """Returns a network of two to six random operators, ReLUs often among them."""
    b = Builder(rng, "fp32", "normal")
    b.shape = b.input_shape = SHAPES[int(rng.integers(len(SHAPES)))]
    b.shapes = {"x": b.shape}
    for _ in range(int(rng.integers(2, 7))):
        OPERATORS[int(rng.integers(len(OPERATORS)))](b)
        if rng.random() < 0.4:
            ELEMENTWISE[0](b)
    return b


def operators(rng: np.random.Generator) -> Graph:
    """Returns random operators and a linear layer behind them."""
    b = grown(rng)
    flatten(b)
    b.push(Gemm, (CLASSES,), weight=b.keep(b.weight(CLASSES, b.shape[0])), bias=b.bias(CLASSES))
    return b.graph()


def tail(rng: np.random.Generator) -> Graph:
    """Returns random operators, a linear layer, a ReLU and one or two operators that no ReLU follows."""
    b = grown(rng)
    flatten(b)
    out = int(rng.integers(3, 9))
    b.push(Gemm, (out,), weight=b.keep(b.weight(out, b.shape[0])), bias=b.bias(out))
    b.push(Relu, b.shape)
    for _ in range(int(rng.integers(1, 3))):
        OPERATORS[int(rng.integers(len(OPERATORS)))](b)
    flatten(b)
    return b.graph()


def wide(rng: np.random.Generator) -> Graph:
    """Returns a controller of more inputs than cutting the box is good for, so that what curves read is cut."""
    return controller(rng, FEW + 8, MANY)


def controller(rng: np.random.Generator, fewest: int = 8, most: int = FEW) -> Graph:
    """Returns a fully connected network of one to three hidden layers, its units and outputs tanh, sigmoid or others."""
    b = Builder(rng, "fp32", "normal")
    b.shape = b.input_shape = (int(rng.integers(fewest, most + 1)),)
    b.shapes = {"x": b.shape}
    curves = [
        lambda: b.push(Tanh, b.shape),
        lambda: b.push(Sigmoid, b.shape),
        lambda: b.push(Relu, b.shape),
        lambda: b.push(LeakyRelu, b.shape, slope=0.01),
        lambda: b.push(Clip, b.shape, lowest=0.0, highest=6.0),
    ]
    hidden = int(rng.choice(len(curves), p=[0.45, 0.25, 0.15, 0.1, 0.05]))
    for size in [int(rng.choice([8, 16, 32, 64])) for _ in range(int(rng.integers(1, 4)))]:
        b.push(Gemm, (size,), weight=b.keep(b.weight(size, b.shape[0]) * rng.uniform(0.7, 2)), bias=b.bias(size))
        curves[hidden]()
    out = int(rng.integers(1, 5))
    b.push(Gemm, (out,), weight=b.keep(b.weight(out, b.shape[0]) * 2), bias=b.bias(out))
    if rng.random() < 0.6:
        curves[int(rng.integers(3))]()
    return b.graph()


def query(rng: np.random.Generator, graph: Graph) -> Query:
    """Returns one or two boxes with one to three unsafe conjunctions each, near what sampled points reach, on either side of it."""
    size = int(np.prod(graph.input_shape))
    outputs = graph.node(graph.output).size
    cases = []
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        centre, radius = rng.uniform(-1, 1, size), rng.uniform(0.005, 0.4) * rng.uniform(0.2, 1, size)
        fixed = rng.random(size) < 0.2
        radius[fixed] = 0.0
        digits = int(rng.choice([2, 4, 9]))
        if rng.random() < 0.9:  # in the others inputs are fixed at decimals that no float32 equals
            digits, centre[fixed] = 9, np.round(centre[fixed] * 64) / 64
        lower, upper = (np.round(end, digits) for end in (centre - radius, centre + radius))
        points = rng.uniform(lower, upper, (SAMPLES, size))
        points[: SAMPLES // 2] = np.where(rng.random((SAMPLES // 2, size)) < 0.5, lower, upper)
        values = run(graph, graph.tensors(torch.float64), torch.from_numpy(points).view(-1, *graph.input_shape)).flatten(1).numpy()
        unsafe = []
        for _ in range(int(rng.integers(1, 4))):
            conjunction = []
            for _ in range(int(rng.integers(1, 3))):
                chosen = rng.choice(outputs, min(outputs, int(rng.integers(1, 3))), replace=False)
                row = np.zeros(outputs)
                row[chosen] = rng.choice([-1.0, 1.0, 0.5, -2.0], len(chosen))
                reached = values @ row
                spread = float(reached.max() - reached.min()) + 1e-3
                bound = float(reached.min()) + spread * float(rng.choice([-1.0, -0.3, -0.1, -0.02, 0.1, 0.5]))
                text = f"{bound:.6f}" if abs(bound) < 1e12 else "0"
                conjunction.append(Constraint(tuple((int(j), Fraction(row[j])) for j in sorted(chosen)), Fraction(text)))
            unsafe.append(tuple(conjunction))
        ends = [tuple(Fraction(f"{value:.{digits}f}") for value in end) for end in (lower, upper)]
        cases.append(Case(InputBox(ends[0], ends[1]), tuple(unsafe)))
    return Query(size, outputs, tuple(cases))
