"""Attacks certifying files: their margins against executions of the network in ONNX Runtime, on hostile devices and in rationals."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from vsparse.bounds import Rounding, ball, interval
from vsparse.bounds.last_layers import last_layer_folding
from vsparse.bounds.margins import margin_rows
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import Graph, from_onnx, run, to_onnx
from vsparse.graph.ir import Affine
from vsparse.reading.runtime import LEVELS
from vsparse.stages.export.certify_onnx import certifying_model
from vsparse.stages.export.certify_onnx.check import MarginBounds
from vsparse.stages.export.half import half
from vsparse.stages.export.quantise import quantise

sys.path.append(str(Path(__file__).resolve().parents[1] / "bounds"))  # the simulated devices

from device_simulation import Device
from exact_execution import exact_run
from graph_builder import KINDS, random_integer_net, random_net
from random_graphs import random_graph

__all__ = ["KINDS", "Tally", "attack", "certify", "quantised_net", "random_graph", "random_net", "sessions"]

CLIPS = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 2.0))
REFUSED = ((" may reach ", "too large"), (" may overflow in fp16", "may overflow"))
RADII = (0.0, 1e-6, 1e-3, 0.02, 0.2)


@dataclass
class Tally:
    """What an attack looked at."""

    nets: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    margins: int = 0
    certified: int = 0
    executions: int = 0
    rationals: int = 0
    kinds: set[str] = field(default_factory=set)
    smallest_slack: float = float("inf")


def quantised_net(rng: np.random.Generator, contract: str) -> Graph:
    """Returns a random network for a contract on integers: of every operator or one that was calibrated, whose biases decide little."""
    tensorrt = contract == "int8-tensorrt"
    while True:
        graph = random_integer_net(rng, tensorrt)
        if rng.random() < 0.4:
            plain = random_net(rng, "fp32", "normal")
            try:
                return quantise(plain, rng.uniform(-0.5, 1, (40, *plain.input_shape)).astype(np.float32), contract)
            except InputError:
                continue
        if rng.random() < 0.7:
            shrink = int(2.0 ** rng.uniform(4, 14))
            small = {
                name: replace(one, values=(one.values // shrink).astype(np.int32))
                for name, one in graph.integers.items()
                if one.values.dtype == np.int32
            }
            floats = {name: one.floats() for name, one in small.items()}
            if tensorrt:
                names = [node.bias for node in graph.nodes if isinstance(node, Affine) and node.bias is not None]
                floats = {name: np.where(np.abs(graph.params[name]) < 1, graph.params[name], 0).astype(np.float32) for name in names}
            graph = replace(graph, integers={**graph.integers, **small}, params={**graph.params, **floats})
        return graph


def sessions(data: bytes) -> dict[str, onnxruntime.InferenceSession]:
    """Returns a session of a file for each optimisation level."""
    made = {}
    for name, level in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads, options.log_severity_level = level, 1, 4
        made[name] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return made


def certify(session: onnxruntime.InferenceSession, x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns logits, classes and margins of samples."""
    logits, classes, margins = session.run(["logits", "class", "margin"], {"input": x, "epsilon": np.array(epsilon, np.float32)})
    return logits, classes, margins


def host_margins(graph: Graph, rounding: Rounding, x: np.ndarray, epsilon: float, clip: tuple[float, float], classes: np.ndarray):
    """Returns the least margins by float64 interval bounds under the contract, and the enclosure of the logits at the points themselves."""
    exact = Fraction(float(np.float32(epsilon)))
    with torch.no_grad():
        boxes = interval(graph, rounding.params, ball(torch.from_numpy(x), exact, clip), rounding)
        rows = margin_rows(torch.from_numpy(classes), graph.shape_of(graph.output)[0])
        lower = last_layer_folding(graph, rounding.params, rows, boxes, rounding).min(1).values
        low, high = interval(graph, rounding.params, ball(torch.from_numpy(x), Fraction(0), clip), rounding)[graph.output]
    return lower.numpy(), low.numpy(), high.numpy()


def inside(x: np.ndarray, epsilon: float, clip: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the ball as float32 numbers inside it."""
    e = float(np.float32(epsilon))
    low, high = np.maximum(x.astype(np.float64) - e, clip[0]), np.minimum(x.astype(np.float64) + e, clip[1])
    inner_low, inner_high = low.astype(np.float32), high.astype(np.float32)
    inner_low = np.where(inner_low < low, np.nextafter(inner_low, np.float32(np.inf)), inner_low)
    inner_high = np.where(inner_high > high, np.nextafter(inner_high, np.float32(-np.inf)), inner_high)
    return np.minimum(inner_low, x), np.maximum(inner_high, x)


def gradient_corner(graph: Graph, x: np.ndarray, low: np.ndarray, high: np.ndarray, label: int) -> np.ndarray:
    """Returns the corner that a step against each margin's gradient leads to, one for each other class."""
    found = []
    for j in range(graph.shape_of(graph.output)[0]):
        if j != label:
            point = torch.tensor(x[None], dtype=torch.float64, requires_grad=True)
            z = run(graph, graph.tensors(torch.float64), point)[0]
            (slope,) = torch.autograd.grad(z[label] - z[j], point)
            found.append(np.where(slope[0].numpy() > 0, low, high))
    return np.stack(found).astype(np.float32)


def attack(
    graph: Graph,
    rng: np.random.Generator,
    tally: Tally,
    *,
    samples: int = 3,
    points: int = 8,
    rational: bool = False,
    radii: tuple[float, ...] = RADII,
    contract: str = "fp32",
) -> None:
    """Holds the margins that every optimisation level returns against executions inside the ball and the host's bounds.

    A network that is quantised already is one for a contract on integers.

    Under a contract of half precision the network is rounded to it first.
    """
    rules = CONTRACTS[contract]
    file = to_onnx(half(graph, wide_sums=contract == "fp16-tensorrt") if rules.storage == "fp16" else graph)
    graph = from_onnx(file.SerializeToString())
    clip = CLIPS[int(rng.integers(len(CLIPS)))]
    tally.nets += 1
    try:
        data = certifying_model(file, clip, contract_name=contract).SerializeToString()
    except InputError as error:
        reason = next((short for long, short in REFUSED if long in str(error)), str(error)[:90])
        tally.refused[reason] = tally.refused.get(reason, 0) + 1
        return
    tally.kinds |= {type(node).__name__ for node in graph.nodes}
    rounding, room = Rounding(graph, rules), MarginBounds(graph, onnx.load_model_from_string(data), clip, contract).room
    x = rng.uniform(*clip, (samples, *graph.input_shape)).astype(np.float32)
    x[0] = rng.choice([clip[0], clip[1], np.float32(rng.uniform(*clip))], size=x[0].shape)
    whole, plain = sessions(data), sessions(file.SerializeToString())
    device = Device(graph, rules, rng)
    for epsilon in radii:
        for level, session in whole.items():
            logits, classes, margins = certify(session, x, epsilon)
            bound, low, high = host_margins(graph, rounding, x, epsilon, clip, classes)
            assert not np.isnan(margins).any(), (level, margins)
            assert (margins <= bound + room).all(), (level, epsilon, margins, bound, graph)
            assert (classes == logits.argmax(1)).all()
            assert ((low <= logits) & (logits <= high)).all(), (level, logits, low, high)
            tally.margins += samples
            tally.certified += int((margins > 0).sum())
            if np.isfinite(bound).all():
                tally.smallest_slack = min(tally.smallest_slack, float((bound - margins).min()))
            for i in range(samples):
                if not np.isfinite(margins[i]):
                    continue
                ends = inside(x[i], epsilon, clip)
                tries = [x[i], *(np.where(rng.integers(0, 2, x[i].shape) > 0, *ends) for _ in range(points))]
                tries += list(rng.uniform(*ends, (points, *x[i].shape)).astype(np.float32).clip(*ends))
                members = np.concatenate([np.stack(tries), gradient_corner(graph, x[i], *ends, int(classes[i]))]).astype(np.float32)
                found = [plain[level].run(None, {"input": members})[0].astype(np.float64), device.run_batch(members)[graph.output]]
                for z in found:
                    check(z, int(classes[i]), float(margins[i]), (level, epsilon, graph))
                    tally.executions += len(z)
                if rational and level == "all":
                    for point in members[-2:]:
                        z = exact_run(graph, device, point.astype(np.float64))[graph.output]
                        check(z, int(classes[i]), Fraction(float(margins[i])), (level, epsilon, graph))
                        tally.rationals += 1


def check(z: np.ndarray, label: int, margin, what) -> None:
    """Asserts that the margins of logits [classes] or [batch, classes] are no less than the bound."""
    z = np.atleast_2d(z)
    rest = np.delete(z, label, axis=1)
    least = min(row[label] - other for row, others in zip(z, rest, strict=True) for other in others)
    assert least >= margin, (least, margin, what)
