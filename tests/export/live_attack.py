"""Attacks on the live certificate: random networks over all operators, executed at corners and where gradients lead, by the C itself.

Every activation of every execution must lie in the bounds of the device, and no margin below the one that was told.
"""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from c_nets import Builder

from vsparse.errors import InputError
from vsparse.graph import Add, AddConstant, AveragePool, Graph, MaxPool, MulConstant, Relu, run
from vsparse.stages.export.c_int8 import simulate_integers
from vsparse.stages.export.c_live import emit_live_c
from vsparse.stages.export.c_live.compiled import CompiledLive
from vsparse.stages.export.c_live.int8_emit import emit_live_int8_c
from vsparse.stages.export.c_live.int8_simulation import simulate_live_int8
from vsparse.stages.export.c_live.simulation import bounds, simulate_live
from vsparse.stages.export.c_source import CompiledModel, simulate
from vsparse.stages.export.quantise import quantise

PLAIN = ("-O1", "-std=c99", "-ffp-contract=off")
FUSED = ("-O3", "-std=gnu99", "-ffp-contract=fast", "-march=native")
CORNERS, RANDOM, STEPS = 256, 64, 12


@dataclass
class Tally:
    """What an attack has counted: verdicts, those that were certified, executions, and what was broken."""

    nets: int = 0
    verdicts: int = 0
    certified: int = 0
    executions: int = 0
    least_room: float = np.inf
    broken: tuple[str, ...] = ()

    def note(self, text: str) -> None:
        """Adds something that must not be."""
        self.broken = (*self.broken, text)


def random_net(rng: np.random.Generator, kind: str = "plain", quantisable: bool = False) -> Graph:
    """Returns a network of a few operators; `kind` says what is wrong with its weights: plain, cancel, scales, subnormal, tie."""
    b = Builder(rng, int(rng.integers(1, 4)), int(rng.integers(4, 7)), int(rng.integers(3, 6)))
    if not quantisable and rng.random() < 0.5:
        b.add(AddConstant, constant=b.param(b.shapes["x"][0], 1, 1))
        b.add(MulConstant, constant=b.param(1))
    b.conv(int(rng.integers(2, 7)), (2, 3), pads=(1, 1, 0, 1), density=float(rng.choice([0.2, 0.6, 1])))
    if rng.random() < 0.8:
        b.add(Relu)
    skip, shape = b.last, b.shapes[b.last]
    b.conv(shape[0], (3, 3), pads=(1, 1, 1, 1), groups=int(rng.choice([1, shape[0]])), density=float(rng.choice([0.3, 1])))
    if rng.random() < 0.6:
        b.add(Add, b.last, skip)
        b.add(Relu)
    for pool in (MaxPool, AveragePool):
        if rng.random() < 0.4 and min(b.shapes[b.last][1:]) >= 2:
            b.add(pool, kernel=(2, 2), stride=(int(rng.integers(1, 3)), 1))
            if pool is AveragePool and rng.random() < 0.5:
                b.add(Relu)
    b.flatten()
    if rng.random() < 0.7:
        b.gemm(int(rng.integers(3, 20)), density=float(rng.choice([0.2, 0.7, 1])))
        b.add(Relu)
    b.gemm(int(rng.integers(2, 6)), density=float(rng.choice([0.5, 1])))
    if not quantisable and rng.random() < 0.25:
        b.add(AddConstant, constant=b.param(1))
    graph = b.graph()
    for name, value in graph.params.items():
        _spoil(rng, value, kind)
        graph.params[name] = value
    return graph


def _spoil(rng: np.random.Generator, value: np.ndarray, kind: str) -> None:
    flat = value.reshape(len(value), -1)
    if kind == "cancel" and flat.shape[1] > 1:
        big = np.float32(2.0 ** rng.integers(8, 20))
        flat[:, 0], flat[:, -1] = big, -big
    elif kind == "scales":
        value *= np.exp2(rng.integers(-12, 12, size=value.shape)).astype(np.float32)
    elif kind == "subnormal":
        value *= np.where(rng.random(value.shape) < 0.3, np.float32(1e-39), np.float32(1))
    elif kind == "tie" and len(flat) > 1:
        flat[1] = flat[0]
    else:
        value /= np.float32(max(1.0, np.sqrt(flat.shape[1])))


def attack_float(rng: np.random.Generator, graph: Graph, tally: Tally, samples: int = 3) -> None:
    """Attacks the float32 C of one network at the radius that it finds itself, at half and at twice of it, and at 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_live_c(graph).write(folder)
        classes = int(np.prod(graph.shape_of(graph.output)))
        x = _samples(rng, graph, samples)
        with (
            CompiledModel(folder / "model.c", graph.input_shape, classes, PLAIN) as plain,
            CompiledModel(folder / "model.c", graph.input_shape, classes, FUSED) as fused,
        ):
            lives = [CompiledLive(plain), CompiledLive(fused)]
            tally.nets += 1
            for i, radius in enumerate(lives[0].radius(x)):
                own = x[i : i + 1]
                for epsilon in sorted({0.0, float(max(radius, 0)), float(radius) / 2, min(1.0, 2 * abs(float(radius)))} - {-0.5}):
                    verdicts = [live.certify(own, epsilon) for live in lives]
                    simulated = simulate_live(graph, own, epsilon)
                    if not all(np.array_equal(getattr(simulated, f), getattr(verdicts[0], f)) for f in ("label", "certified", "margin")):
                        tally.note(f"the simulation differs at {epsilon}")
                    if epsilon == radius and not verdicts[0].certified[0]:
                        tally.note("what the radius returns is not certified")
                    points = points_of(rng, graph, own, epsilon, int(max(verdicts[0].label[0], 0)))
                    values = simulate(graph, points)
                    found = [values[graph.output].reshape(len(points), -1), plain.logits(points), fused.logits(points)]
                    with flushed():
                        found.append(fused.logits(points))
                    found.append(run(graph, graph.tensors(torch.float64), torch.tensor(points).double()).reshape(len(points), -1).numpy())
                    for verdict in verdicts:
                        judge_verdict(tally, verdict, found, epsilon)
                    _judge_boxes(tally, graph, own, epsilon, values)


def attack_int8(rng: np.random.Generator, graph: Graph, tally: Tally, samples: int = 3) -> None:
    """Attacks the int8 C of one quantised network likewise."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_live_int8_c(graph).write(folder)
        classes = int(np.prod(graph.shape_of(graph.output)))
        x = _samples(rng, graph, samples)
        source = folder / "model.int8.c"
        with (
            CompiledModel(source, graph.input_shape, classes, PLAIN, "vsparse_int8") as plain,
            CompiledModel(source, graph.input_shape, classes, FUSED, "vsparse_int8") as fused,
        ):
            lives = [CompiledLive(plain, "vsparse_int8"), CompiledLive(fused, "vsparse_int8")]
            tally.nets += 1
            for i, radius in enumerate(lives[0].radius(x)):
                own = x[i : i + 1]
                for epsilon in sorted({0.0, float(max(radius, 0)), min(1.0, 2 * abs(float(radius)))}):
                    verdicts = [live.certify(own, epsilon) for live in lives]
                    simulated = simulate_live_int8(graph, own, epsilon)
                    if not all(np.array_equal(getattr(simulated, f), getattr(verdicts[0], f)) for f in ("label", "certified", "margin")):
                        tally.note(f"the simulation differs at {epsilon}")
                    if epsilon == radius and not verdicts[0].certified[0]:
                        tally.note("what the radius returns is not certified")
                    points = points_of(rng, graph, own, epsilon, int(max(verdicts[0].label[0], 0)))
                    found = [simulate_integers(graph, points), plain.logits(points), fused.logits(points)]
                    # The file in floats, as any runtime may execute it: the contract is int8.
                    found.append(run(graph, graph.tensors(torch.float32), torch.tensor(points)).reshape(len(points), -1).numpy())
                    for verdict in verdicts:
                        judge_verdict(tally, verdict, found, epsilon)


def _samples(rng: np.random.Generator, graph: Graph, count: int) -> np.ndarray:
    x = rng.random((count, *graph.input_shape), dtype=np.float32)
    return np.where(rng.random(x.shape) < 0.3, np.round(x), x).astype(np.float32)


def points_of(rng: np.random.Generator, graph: Graph, x: np.ndarray, epsilon: float, label: int) -> np.ndarray:
    """Members of the region: the input, corners (all where there are few), random points, and where descents of margins lead."""
    low, high = _members(x, epsilon)
    corners = rng.random((CORNERS, *x.shape[1:])) < 0.5
    found = [x, low, high, np.where(corners, low, high), low + rng.random((RANDOM, *x.shape[1:]), dtype=np.float32) * (high - low)]
    params, ends = graph.tensors(torch.float32), (torch.tensor(low), torch.tensor(high))
    classes = int(np.prod(graph.shape_of(graph.output)))
    for other in [one for one in range(classes) if one != label][:3]:
        point = torch.tensor(x)
        for _ in range(STEPS):
            point = point.detach().requires_grad_(True)
            logits = run(graph, params, point).reshape(1, -1)
            (grad,) = torch.autograd.grad((logits[:, label] - logits[:, other]).sum(), point)
            point = torch.where(grad > 0, ends[0], torch.where(grad < 0, ends[1], point.detach()))
            found.append(point.numpy().copy())
    return np.clip(np.concatenate(found), low, high).astype(np.float32)


def _members(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest float32 numbers within the exact radius and the range."""
    wide = x.astype(np.float64)
    low, high = (wide - epsilon).astype(np.float32), (wide + epsilon).astype(np.float32)
    low = np.where(low.astype(np.float64) < wide - epsilon, np.nextafter(low, np.float32(2)), low)
    high = np.where(high.astype(np.float64) > wide + epsilon, np.nextafter(high, np.float32(-1)), high)
    return np.clip(low, 0, 1).astype(np.float32), np.clip(high, 0, 1).astype(np.float32)


def judge_verdict(tally: Tally, verdict: object, found: list[np.ndarray], epsilon: float) -> None:
    """Notes where executions, logits [n, classes] each, contradict a verdict at a radius."""
    label, certified, margin = int(verdict.label[0]), bool(verdict.certified[0]), float(verdict.margin[0])
    tally.verdicts += 1
    tally.certified += certified
    if label < 0:
        if certified:
            tally.note("certified without a label")
        return
    for logits in found:
        tally.executions += len(logits)
        wide = logits.astype(np.float64)
        room = wide[:, label] - np.delete(wide, label, axis=1).max(axis=1) - margin
        if certified and not (np.isfinite(wide).all() and (wide.argmax(axis=1) == label).all()):
            tally.note(f"certified at {epsilon}, and broken")
        if not (room >= 0).all() and margin > -1e38:
            tally.note(f"a margin of {margin} at {epsilon} is {-room.min()} too large")
        tally.least_room = min(tally.least_room, float(room.min()))


def _judge_boxes(tally: Tally, graph: Graph, x: np.ndarray, epsilon: float, values: dict[str, np.ndarray]) -> None:
    boxes, beyond = bounds(graph, x, np.float32(epsilon), (0.0, 1.0))
    if beyond.any():
        return
    relus = {node.inputs[0] for node in graph.nodes if isinstance(node, Relu)}
    for name, (c, r) in boxes.items():
        if name in relus:  # stored after the ReLU
            continue
        away = np.abs(values[name].astype(np.float64) - c.astype(np.float64)) - r.astype(np.float64)
        if not (away <= 0).all():
            tally.note(f"{name} leaves its bounds by {away.max()} at {epsilon}")


class flushed:
    """Subnormal numbers are read and written as zero, where this processor has a switch for it."""

    library: ctypes.CDLL | None = None

    def __enter__(self) -> None:
        torch.set_flush_denormal(True)

    def __exit__(self, *_: object) -> None:
        torch.set_flush_denormal(False)


def quantised_net(rng: np.random.Generator, kind: str) -> Graph | None:
    """Returns a random quantised network, None where it has no live certificate."""
    graph = random_net(rng, kind, quantisable=True)
    try:
        made = quantise(graph, rng.random((16, *graph.input_shape), dtype=np.float32))
        emit_live_int8_c(made)
    except InputError:
        return None
    return made


__all__ = ["FUSED", "Tally", "attack_float", "attack_int8", "flushed", "judge_verdict", "points_of", "quantised_net", "random_net"]
