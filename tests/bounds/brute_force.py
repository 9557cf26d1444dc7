"""One random network against everything at once: simulated devices and rational arithmetic, and every bound that must hold for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch
from device_simulation import Device
from exact_execution import exact_node, exact_run
from graph_builder import CLASSES

from vsparse.bounds import Choices, Rounding, ball, crown, interval, last_layer_folding, refine
from vsparse.contract import CONTRACTS, Contract
from vsparse.errors import InputError
from vsparse.graph import ir, run
from vsparse.graph.ir import Graph, Node, Relu

RADII = (Fraction(0), Fraction(1, 10**6), Fraction(1, 1000), Fraction(1, 20), Fraction(1, 3))
# Node types that no network here has, those that quantised networks alone have, and those that are held against boxes alone; and why.
NEVER_BOUNDED = {"BatchNorm": "folded into other constants before anything is bounded"}
QUANTISED = {"FakeQuant": "only quantised networks have it, and no contract chosen takes those"}
WITHOUT_E = {"FakeQuant": "what it may round to is in its relaxation, not in E"}
EXACT_OUTPUTS = 24  # of each node that are compared with rational arithmetic, for one of the points


@dataclass
class Findings:
    """What was compared, what was found, and how near an execution came to a bound: 1 is as far as it may go."""

    nets: int = 0
    refused: int = 0
    values: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    margins: int = 0
    overflows: int = 0
    closest: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        self.nets, self.refused = self.nets + other.nets, self.refused + other.refused
        self.values, self.errors = self.values + other.values, self.errors + other.errors
        self.margins, self.overflows = self.margins + other.margins, self.overflows + other.overflows
        for name, value in other.closest.items():
            self.closest[name] = max(value, self.closest.get(name, 0.0))
        self.violations += other.violations


def operators() -> set[str]:
    """Returns the names of all node types of the graph, of every family."""
    kinds = [one for one in vars(ir).values() if isinstance(one, type) and issubclass(one, Node)]
    return {kind.__name__ for kind in kinds if not any(other is not kind and issubclass(other, kind) for other in kinds)}


def not_executed(found: Mapping[str, Findings]) -> tuple[dict[str, str], list[str]]:
    """Returns which node types cannot have been executed under these contracts, with the reason, and what is missing beside them.

    Each must have been executed under one of the contracts, and under one that rounds its error held against rational arithmetic too.
    """
    contracts = {name: CONTRACTS[name] for name in found}
    excused, wanted = dict(NEVER_BOUNDED), operators() - NEVER_BOUNDED.keys()
    if not any(one.integers or one.exact for one in contracts.values()):
        excused |= QUANTISED
    if all(one.integers for one in contracts.values()):
        excused |= dict.fromkeys(wanted - QUANTISED.keys(), "quantised networks need not have it, and no other contract was chosen")
    wanted -= excused.keys()
    values = sum((one.values for one in found.values()), Counter[str]())
    errors = sum((one.errors for one in found.values()), Counter[str]())
    missing = [f"{name} was executed in no network" for name in sorted(wanted) if not values[name]]
    if any(not one.exact for one in contracts.values()):
        missing += [f"{name} was never held against rational arithmetic" for name in sorted(wanted - WITHOUT_E.keys()) if not errors[name]]
    return excused, missing


def region(graph: Graph, rng: np.random.Generator) -> tuple[np.ndarray, Fraction, tuple[float, float]]:
    """Returns a centre [1, *shape] float32, a radius and a data range; sometimes around ones, or so small that it underflows."""
    shape = (1, *graph.input_shape)
    kind = rng.random()
    if kind < 0.1:
        return (rng.random(shape) * 1e-38).astype(np.float32), Fraction(1, 10**40), (0.0, 1.0)
    if kind < 0.2:
        return np.ones(shape, np.float32), Fraction(0), (0.0, 1.0)
    if kind < 0.3:
        return (rng.normal(size=shape) * 50).astype(np.float32).clip(-100, 100), RADII[int(rng.integers(len(RADII)))], (-100.0, 100.0)
    return rng.random(shape).astype(np.float32), RADII[int(rng.integers(len(RADII)))], (0.0, 1.0)


def points_of(graph: Graph, params: dict[str, torch.Tensor], low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns float32 members of a box: its middle, both ends, random points, random corners, and the corners of steepest descent."""
    points = [0.5 * low.astype(np.float64) + 0.5 * high, low, high]
    points += [rng.uniform(low, high) for _ in range(2)] + [np.where(rng.random(low.shape) < 0.5, low, high) for _ in range(3)]
    x = torch.tensor(rng.uniform(low, high), requires_grad=True)
    logits = run(graph, params, x[None])[0]
    for row in (logits[0] - logits[1], logits[2] - logits[0]):
        (slope,) = torch.autograd.grad(row, x, retain_graph=True, allow_unused=True) if row.requires_grad else (None,)
        if slope is not None:
            points += [np.where(slope.numpy() > 0, low, high), np.where(slope.numpy() > 0, high, low)]
    return np.clip(np.stack(points).astype(np.float32), low, high)


def inner(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of a float64 box as float32 values inside it."""
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > upper, np.nextafter(high, np.float32(-np.inf)), high)


def attack(graph: Graph, contract: Contract, rng: np.random.Generator, devices: int = 6) -> Findings:
    """Executes a network in many ways over a random region, and compares with all bounds; `devices` executions of every point."""
    found = Findings(nets=1)
    try:
        rounding = Rounding(graph, contract)
    except InputError:
        return Findings(refused=1)
    x, radius, clip = region(graph, rng)
    box = ball(torch.tensor(x), radius, clip)
    params = rounding.params
    boxes = interval(graph, params, box, rounding)
    refined = refine(graph, params, box, boxes, rounding)
    rows = torch.tensor(np.concatenate([np.eye(CLASSES), -np.eye(CLASSES), [[1, -1, 0]], rng.normal(size=(2, CLASSES))]))
    slopes = {n.name: torch.rand(1, 1, *n.shape, dtype=torch.float64) for n in graph.nodes if isinstance(n, Relu)}
    bounds = [crown(graph, params, box, rows, one, rounding) for one in (boxes, refined)]
    bounds += [
        crown(graph, params, box, rows, refined, rounding, Choices(slopes)),
        last_layer_folding(graph, params, rows, refined, rounding),
    ]
    lower = torch.stack(bounds).amax(dim=0)[0].numpy()
    ends = {
        name: (torch.maximum(boxes[name][0], one[0])[0].numpy(), torch.minimum(boxes[name][1], one[1])[0].numpy())
        for name, one in refined.items()
    }
    low, high = inner(box[0][0].numpy(), box[1][0].numpy())
    if not (low <= high).all():
        return found
    points = points_of(graph, params, low, high, rng)
    names = {graph.input: "input", **{node.name: type(node).__name__ for node in graph.nodes}}
    device = Device(graph, contract, rng)
    if contract.exact:
        for point in points[:: max(1, len(points) // 4)]:
            values = exact_run(graph, device, point)
            for name, value in values.items():
                _inside(found, names[name], name, value, *ends[name])
            _margins(found, rows.numpy(), list(values[graph.output].reshape(-1)), lower)
        return found
    for _ in range(devices):
        values = device.run_batch(points)
        finite = np.all([np.isfinite(v).reshape(len(points), -1).all(axis=1) for v in values.values()], axis=0)
        found.overflows += int((~finite).sum())
        for name, value in values.items():
            bad = ~np.isfinite(value).all(axis=0)
            if not np.isinf(ends[name][0][bad]).all():
                found.violations.append(f"{names[name]} {name}: an overflow that no bound foresaw")
            _inside(found, names[name], name, value[finite], *ends[name])
        for i in np.flatnonzero(finite)[:3]:
            _margins(found, rows.numpy(), [Fraction(float(v)) for v in values[graph.output][i].reshape(-1)], lower)
        if finite.any():
            i = int(rng.choice(np.flatnonzero(finite)))
            executed = {name: (torch.tensor(value[i])[None],) * 2 for name, value in values.items()}
            for node in graph.nodes:
                if node.name in device.fused_nodes or type(node).__name__ in WITHOUT_E:
                    continue  # a fused sum errs for several operators
                # E at the very values that were executed, where it is smallest.
                allowed = rounding.error(node, executed, executed[node.name])[0].numpy()
                _errors(found, device, node, values[node.name][i], [values[name][i] for name in node.inputs], allowed, rng)
    return found


def _inside(found: Findings, kind: str, name: str, value: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    found.values[kind] += value.size
    outside = (value < lower) | (value > upper)
    if outside.any():
        at = tuple(np.argwhere(outside)[0])
        end = at[-lower.ndim :] if lower.ndim else ()
        found.violations.append(f"{kind} {name}: {float(value[at])!r} outside [{lower[end]!r}, {upper[end]!r}]")


def _margins(found: Findings, rows: np.ndarray, logits: list[Fraction], lower: np.ndarray) -> None:
    for row, bound in zip(rows, lower, strict=True):
        if np.isfinite(bound):
            found.margins += 1
            value = sum((Fraction(float(c)) * v for c, v in zip(row, logits, strict=True)), Fraction(0))
            if value < Fraction(float(bound)):
                found.violations.append(f"margin: {float(value)!r} below its bound {bound!r}")


def _errors(
    found: Findings, device: Device, node: object, got: np.ndarray, inputs: list[np.ndarray], allowed: np.ndarray, rng: np.random.Generator
) -> None:
    kind, true = type(node).__name__, exact_node(device, node, *inputs)  # type: ignore[arg-type]
    flat, limit = got.reshape(-1), allowed.reshape(-1)
    for i in rng.permutation(len(flat))[:EXACT_OUTPUTS]:
        if np.isfinite(limit[i]):
            found.errors[kind] += 1
            off = abs(Fraction(float(flat[i])) - true[i])
            if limit[i] > 0 and off > 0:
                found.closest[kind] = max(found.closest.get(kind, 0.0), float(off / Fraction(float(limit[i]))))
            if off > Fraction(float(limit[i])):
                found.violations.append(f"{kind} {node.name}: error {float(off)!r} above E {limit[i]!r}")  # type: ignore[attr-defined]
