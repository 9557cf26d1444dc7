"""Attacks on live verdicts of one small network: corners, random points, gradients, and the network in rational arithmetic."""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "bounds"))

from device_simulation import Device, sums  # noqa: E402
from exact_execution import exact_run  # noqa: E402

from vsparse.contract import CONTRACTS  # noqa: E402
from vsparse.graph import Graph, run  # noqa: E402
from vsparse.graph.ir import Affine, AveragePool  # noqa: E402
from vsparse.stages.export.c_int8.simulation import simulate_integers  # noqa: E402
from vsparse.stages.export.c_live.simulation import Verdicts  # noqa: E402
from vsparse.stages.export.c_source.simulation import simulate  # noqa: E402

Floats = NDArray[np.float32]
STEPS, EXACT = 10, 6
# Of a quantised network: executions that each draw anew what the contract leaves open, and the points of each.
DEVICES, POINTS = 8, 512


def region(x: Floats, epsilon: float) -> tuple[Floats, Floats]:
    """Returns the least and largest float32 points of the region of x, exactly: |x̂ − x| <= ε within [0, 1]."""
    wide = x.astype(np.float64)
    low, high = np.maximum(wide - epsilon, 0).astype(np.float32), np.minimum(wide + epsilon, 1).astype(np.float32)
    eps = Fraction(epsilon)
    low = np.array(
        [up(v) if Fraction(float(c)) - Fraction(float(v)) > eps else v for v, c in zip(low.flat, x.flat, strict=True)], np.float32
    )
    high = np.array(
        [down(v) if Fraction(float(v)) - Fraction(float(c)) > eps else v for v, c in zip(high.flat, x.flat, strict=True)], np.float32
    )
    return low.reshape(x.shape), high.reshape(x.shape)


def up(value: np.float32) -> np.float32:
    """Returns the next larger float32 number."""
    return np.nextafter(value, np.float32(np.inf))


def down(value: np.float32) -> np.float32:
    """Returns the next smaller float32 number."""
    return np.nextafter(value, np.float32(-np.inf))


def points(graph: Graph, x: Floats, epsilon: float, label: int, count: int, rng: np.random.Generator) -> Floats:
    """Returns points of the region: x itself, its corners, random ones, and those that gradients lead to."""
    low, high = region(x, epsilon)
    size = x.size
    if 2**size <= 2**12:
        bits = np.array(list(product((False, True), repeat=size))).reshape(-1, *x.shape)
    else:
        bits = rng.random((2**12, *x.shape)) < 0.5
    corners = np.where(bits, high, low)
    inside = np.clip(low + (high - low) * rng.random((count, *x.shape)).astype(np.float32), low, high)
    snapped = np.where(rng.random(inside.shape) < 0.5, inside, np.where(rng.random(inside.shape) < 0.5, low, high))
    return np.concatenate([x[None], corners, inside, snapped, gradients(graph, x, low, high, label)]).astype(np.float32)


def gradients(graph: Graph, x: Floats, low: Floats, high: Floats, label: int) -> Floats:
    """Returns points that projected gradient descent on each margin ends at."""
    params = {name: torch.from_numpy(value.astype(np.float64)) for name, value in graph.params.items()}
    found = []
    classes = int(np.prod(graph.shape_of(graph.output)))
    for other in range(classes):
        if other == label:
            continue
        at = torch.from_numpy(x.astype(np.float64))[None]
        for _ in range(STEPS):
            at = at.detach().requires_grad_(True)
            logits = run(graph, params, at).reshape(-1)
            (slope,) = torch.autograd.grad(logits[label] - logits[other], at, allow_unused=True)
            step = torch.zeros_like(at) if slope is None else torch.sign(slope)
            moved = at.detach() - step * torch.from_numpy((high - low).astype(np.float64)) / 2
            at = torch.minimum(torch.maximum(moved, torch.from_numpy(low.astype(np.float64))), torch.from_numpy(high.astype(np.float64)))
        found.append(np.clip(at.detach().numpy()[0].astype(np.float32), low, high))
    return np.stack(found)


def violations(
    graph: Graph, x: Floats, epsilon: float, verdicts: Verdicts, i: int, count: int, rng: np.random.Generator
) -> tuple[list[str], int]:
    """Returns what contradicts the certified verdict i about x at epsilon, and how many executions looked for it."""
    label, margin = int(verdicts.label[i]), float(verdicts.margin[i])
    tried = points(graph, x, epsilon, label, count, rng)
    logits = simulate(graph, tried)[graph.output].reshape(len(tried), -1).astype(np.float64)
    others = np.delete(logits, label, axis=1)
    least = logits[:, label] - others.max(axis=1)
    wrong = []
    at = int(np.argmin(least))
    if not least[at] >= margin:
        wrong.append(f"float32 margin {least[at]!r} below the certified {margin!r} at epsilon {epsilon!r}")
    rows = {node.name: sums(graph, node) for node in graph.nodes if isinstance(node, Affine | AveragePool)}
    order = np.argsort(least)[:EXACT]
    for j in order:  # the network in rational arithmetic, which the contract allows too
        exact = exact_run(graph, SimpleNamespace(params=graph.params, sums=rows), tried[j].astype(np.float64))[graph.output].reshape(-1)
        rest = [value for k, value in enumerate(exact) if k != label]
        if not exact[label] - max(rest) >= Fraction(margin):
            wrong.append(f"exact margin {float(exact[label] - max(rest))!r} below the certified {margin!r} at epsilon {epsilon!r}")
    return wrong, len(tried) + len(order)


def violations_int8(
    graph: Graph, x: Floats, epsilon: float, verdicts: Verdicts, i: int, count: int, rng: np.random.Generator
) -> tuple[list[str], int]:
    """The same of a quantised network: by the C's integers, and as the contract lets runtimes compute it, in integers and in floats."""
    label, margin = int(verdicts.label[i]), float(verdicts.margin[i])
    tried = points(graph, x, epsilon, label, count, rng)
    integers = simulate_integers(graph, tried).astype(np.float64)
    device, found = Device(graph, CONTRACTS["int8"], rng), [integers]
    worst = np.argsort(np.delete(integers, label, axis=1).max(axis=1) - integers[:, label])[::-1][: POINTS // 2]
    for _ in range(DEVICES):
        some = tried[np.concatenate([worst, rng.integers(len(tried), size=POINTS - len(worst))])]
        found.append(device.run_batch(some)[graph.output].reshape(len(some), -1))
    wrong = []
    for logits in found:
        least = float((logits[:, label] - np.delete(logits, label, axis=1).max(axis=1)).min())
        if not least >= margin:
            wrong.append(f"int8 margin {least!r} below the certified {margin!r} at epsilon {epsilon!r}")
    return wrong, sum(map(len, found))
