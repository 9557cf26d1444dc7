"""One random network against every fast path of the bounds, forced on and off: executions, and the plain definition beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, prod
from typing import Any

import numpy as np
import torch
from brute_force import Findings
from graph_builder import CLASSES
from topologies import random_maps
from torch import Tensor

from vsparse.bounds import Box, Choices, Executions, Rounding, ball, crown, interval, last_layer_folding, paths, proof, refine
from vsparse.bounds.crown import unit_costs
from vsparse.bounds.windows import Windows, windows
from vsparse.bounds.zonotope import lower_bounds, zonotope
from vsparse.contract import CONTRACTS, Contract
from vsparse.errors import InputError, SoundnessError
from vsparse.graph import run, scaling
from vsparse.graph.ir import Add, AveragePool, Concat, Conv, Gather, Graph, MaxPool, Pad, Relu, Slice, Transpose
from vsparse.search import alpha, relu_branching
from vsparse.search.alpha import Effort
from vsparse.search.branch_and_bound import Prover
from vsparse.search.result import Limits

RADII = (Fraction(1, 1000), Fraction(1, 100), Fraction(1, 20), Fraction(1, 5))
# Each path: where its settings lie, and what they are when it is always and when it is never taken.
PATHS: dict[str, tuple[tuple[Any, str, Any, Any], ...]] = {
    "receptive fields": ((paths, "WINDOWS", inf, 0.0),),
    "matrices for transposed convolutions": (
        (paths, "MATRIX_ROWS", 0, 4),
        (paths, "MATRIX_WORK", inf, 8.0),
        (paths, "MATRIX_ELEMENTS", 2**20, 0),
    ),
    "taps of transposed convolutions": ((paths, "SHIFTED_TAPS", inf, 0),),
    "units at one position together": ((paths, "TOGETHER", 0, inf),),
    "both ends of one row": ((paths, "BOTH_ENDS", 0, inf),),
    "sums in float32": ((paths, "WIDE_PRODUCTS", 0, inf),),
    "small pieces": ((paths, "WORKING_SET", 2**17, 2**40),),
    "unstable elements alone": ((paths, "ONLY_UNSTABLE", True, False),),
    "scaling convolutions": ((scaling, "TAKEN", True, False),),
    "dense relaxation": ((alpha, "CONVOLUTION_COST", 10**9, 0),),
}
# What a search tries last takes long, and is no other path.
SHORT = ((relu_branching, "LAST_EFFORTS", [Effort(steps=8)]), (relu_branching, "LAST_STEPS", 10))
MODES = ("always", "never", "as it comes")
# Work of the parts that cost too much on large maps: rows of refinement times the elements of a map, ReLU units, inputs.
WHOLE, SEARCHED, FEW_INPUTS = 10**6, 200, 130
# Two ways of computing one bound in float64 differ by rounding alone, relative to the size of what is added up.
AGREE = 1e-9


@contextmanager
def settings(values: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Has attributes (owner, name, value) set for the block."""
    undo = []
    try:
        for owner, name, value in values:
            undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


@contextmanager
def taken(modes: dict[str, str]) -> Iterator[None]:
    """Has paths taken always or never, as `modes` says for each, for the block."""
    forced = [(PATHS[name], mode == "always") for name, mode in modes.items() if mode != "as it comes"]
    with settings((owner, name, on if always else off) for path, always in forced for owner, name, on, off in path):
        yield


def draw(rng: np.random.Generator) -> dict[str, str]:
    """Returns a mode for each path."""
    return {name: str(rng.choice(MODES)) for name in PATHS}


def opposite(modes: dict[str, str]) -> dict[str, str]:
    """Returns modes in which every path is taken the other way."""
    return {name: "never" if mode == "always" else "always" for name, mode in modes.items()}


def topology(graph: Graph) -> set[str]:
    """Returns which of the topologies that fast paths have to tell apart a network has."""
    producers, readers = {node.name: node for node in graph.nodes}, graph.consumers()
    found = {"maps of 24 × 24 and more"} if max(graph.input_shape[1:]) >= 24 else set()
    for node in graph.nodes:
        source = producers.get(node.inputs[0])
        if isinstance(node, Conv) and isinstance(source, Conv):
            found.add("Conv → Conv" + (" with padding" if any(node.pads) else ""))
            if source.groups > 1 and graph.params[node.weight].shape[2:] == (1, 1):
                found.add("depthwise → pointwise")
        if isinstance(node, Add) and any(isinstance(producers.get(name), Conv) for name in node.inputs):
            found.add("Conv → Add → Conv" if any(isinstance(one, Conv) for one in readers[node.name]) else "Conv → Add")
        if isinstance(node, Conv) and node.pads[:2] != node.pads[2:]:
            found.add("uneven padding")
        if isinstance(node, Conv) and max(node.dilation) > 1:
            found.add("dilation")
        if isinstance(node, MaxPool | AveragePool):
            found.add("pools")
        if isinstance(node, Concat | Slice | Gather | Transpose | Pad):
            found.add("Concat, Slice, Transpose, Pad")
    return found


def pre_activations(graph: Graph) -> list[str]:
    """Returns the activations that a ReLU reads, the input left out."""
    return sorted({name for node in graph.nodes if isinstance(node, Relu) for name in node.inputs} - {graph.input})


def units_of(graph: Graph, name: str, count: int, rng: np.random.Generator) -> list[int]:
    """Returns some elements of an activation, half of them on the border of its map, where padding is."""
    shape = graph.shape_of(name)
    if len(shape) != 3:
        return rng.integers(0, prod(shape), count).tolist()
    found = []
    for _ in range(count):
        place = [int(rng.integers(0, size)) for size in shape]
        if rng.random() < 0.6:
            side = int(rng.integers(1, 3))
            place[side] = int(rng.choice([0, shape[side] - 1]))
        found.append((place[0] * shape[1] + place[1]) * shape[2] + place[2])
    return found


def points_of(graph: Graph, params: dict[str, Tensor], box: Box, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Returns members of each sample's box, float64 [n, …], and whose they are [n]: its middle, ends, random points and corners, and the
    corners of steepest ascent and descent of margins and of single pre-activations."""
    lower, upper = box
    middle = torch.minimum(torch.maximum(lower + (upper - lower) * 0.5, lower), upper)
    shares = [torch.tensor(rng.random(lower.shape)), *(torch.tensor(rng.random(lower.shape)).round() for _ in range(2))]
    found = [middle, lower, upper, *(torch.minimum(lower + share * (upper - lower), upper) for share in shares)]
    x = middle.clone().requires_grad_()
    values = run(graph, params, x, keep=True)
    aims = [(values[graph.output].flatten(1) @ rows[int(rng.integers(len(rows)))]).sum() for _ in range(2)]
    for name in rng.permutation(pre_activations(graph))[:4].tolist():
        aims += [values[name].flatten(1)[:, unit].sum() for unit in units_of(graph, name, 2, rng)]
    for aim in aims:
        (slope,) = torch.autograd.grad(aim, x, retain_graph=True, allow_unused=True) if aim.requires_grad else (None,)
        if slope is not None:
            found += [torch.where(slope > 0, *pair) for pair in (box, box[::-1])]
    return torch.cat(found), torch.arange(len(lower)).repeat(len(found))


@dataclass
class PathFindings(Findings):
    """What was compared and found, and how many networks had which topology, and took which path always or never."""

    topologies: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Findings) -> None:
        super().add(other)
        if isinstance(other, PathFindings):
            self.topologies, self.modes = self.topologies + other.topologies, self.modes + other.modes


class Attack:
    """One network under attack."""

    def __init__(self, graph: Graph, contract: Contract, rng: np.random.Generator) -> None:
        self.graph, self.rng, self.found = graph, rng, PathFindings(nets=1, topologies=Counter(topology(graph)))
        self.modes = draw(rng)
        with taken(self.modes):  # which sums are taken in float32 is settled here
            self.rounding = Rounding(graph, contract)
        self.params = self.rounding.params
        x = torch.tensor(rng.random((int(rng.choice([1, 2, 2, 3])), *graph.input_shape)).astype(np.float32))
        self.box = ball(x, RADII[int(rng.integers(len(RADII)))])
        self.rows = torch.tensor(np.concatenate([np.eye(CLASSES), -np.eye(CLASSES), [[1, -1, 0]], rng.normal(size=(2, CLASSES))]))
        points, samples = points_of(graph, self.params, self.box, self.rows, rng)
        self.executions = Executions.of(graph, self.params, points, samples)

    def hold(self, boxes: dict[str, Box] | None, bounds: Tensor | None, what: str) -> None:
        """Holds boxes and bounds of the rows against the executions."""
        try:
            if boxes is not None:
                self.executions.check(boxes, what)
                for node in self.graph.nodes:
                    self.found.values[type(node).__name__] += len(self.executions) * node.size
            if bounds is not None:
                self.executions.check_rows(self.rows, bounds, what)
                self.found.margins += len(self.executions) * len(self.rows)
        except SoundnessError as error:
            self.found.violations.append(str(error))

    def agree(self, one: Tensor, other: Tensor, size: float, what: str) -> None:
        """Holds one way of computing bounds against another."""
        self.found.errors[what] += one.numel()
        wrong = ~((one - other).abs() <= AGREE * (1 + size)) & ~(one == other)
        if bool(wrong.any()):
            at = tuple(wrong.nonzero()[0].tolist())
            self.found.violations.append(f"{what}: {float(one[at])!r} one way and {float(other[at])!r} the other")

    def run(self) -> PathFindings:
        """Attacks everything."""
        graph, params, rounding, rng = self.graph, self.params, self.rounding, self.rng
        modes = self.modes
        units = sum(graph.node(name).size for name in pre_activations(graph))
        widest = max(node.size for node in graph.nodes)
        if len(self.box[0]) * units * widest > WHOLE:  # whole maps of so many rows take too long; single units are compared all the same
            modes |= {"receptive fields": "always", "unstable elements alone": "always", "small pieces": "as it comes"}
        self.found.modes.update(f"{name}: {mode}" for name, mode in modes.items())
        slopes = {node.name: torch.rand(1, 1, *node.shape, dtype=torch.float64) for node in graph.nodes if isinstance(node, Relu)}
        with taken(modes):
            boxes = interval(graph, params, self.box, rounding)
            refined = refine(graph, params, self.box, boxes, rounding)
            self.hold(boxes, last_layer_folding(graph, params, self.rows, boxes, rounding), f"interval {modes}")
            plain = crown(graph, params, self.box, self.rows, refined, rounding)
            self.hold(refined, plain, f"crown {modes}")
            self.hold(None, crown(graph, params, self.box, self.rows, refined, rounding, Choices(slopes)), f"slopes {modes}")
            self.hold(None, last_layer_folding(graph, params, self.rows, refined, rounding), f"folded {modes}")
            self._splits(refined, slopes)
            self._tree(refined)
            if units <= SEARCHED and rng.random() < 0.15:
                self._search(refined, plain)
        size = max(float(end.abs().amax()) for box in refined.values() for end in box)
        if np.isfinite(size):
            with taken(opposite(modes)):
                self.agree(plain, crown(graph, params, self.box, self.rows, refined, rounding), size, "crown both ways")
        self._single_units(refined)
        if self.box[0][0].numel() <= FEW_INPUTS and rng.random() < 0.3:
            state = zonotope(graph, self.box, rounding)
            self.hold(state.boxes, lower_bounds(state.output, self.rows.expand(len(self.box[0]), -1, -1)), "zonotope")
        return self.found

    def _single_units(self, boxes: dict[str, Box]) -> None:
        """Bounds single units on their receptive fields, and on whole maps."""
        graph, params, rounding, rng = self.graph, self.params, self.rounding, self.rng
        costs = unit_costs(list(graph.nodes), boxes, rounding)
        for name in pre_activations(graph):
            with taken({"receptive fields": "always", "both ends of one row": "always"}):
                small = windows(graph, params, boxes, rounding, name, costs)
            if small is None:
                continue
            self.found.modes["pre-activations bounded on receptive fields"] += 1
            chosen = torch.tensor(units_of(graph, name, 8, rng))
            samples = torch.tensor(rng.integers(0, len(self.box[0]), len(chosen)))
            lower, upper = small.bound(samples, chosen)
            held = self.executions.values[name].flatten(1)
            for sample, unit, low, high in zip(samples.tolist(), chosen.tolist(), lower.tolist(), upper.tolist(), strict=True):
                value = held[self.executions.samples == sample][:, unit]
                self.found.values["single units"] += len(value)
                if not bool(((value >= low) & (value <= high)).all()):
                    self.found.violations.append(f'receptive field of unit {unit} of "{name}": [{low!r}, {high!r}] misses an execution')
            self._one_row(name, small, samples, chosen, (lower, upper))
            if rounding.contract.exact:  # what a device loses before the first convolution is charged in another place
                rows = torch.zeros(len(boxes[name][0]), 2 * len(chosen), graph.node(name).size, dtype=torch.float64)
                rows[:, torch.arange(len(chosen)), chosen], rows[:, torch.arange(len(chosen)) + len(chosen), chosen] = 1.0, -1.0
                with taken(dict.fromkeys(PATHS, "never")):
                    whole = crown(graph, params, self.box, rows, boxes, rounding, None, name)
                size = max(float(end.abs().amax()) for end in boxes[name])
                at = torch.arange(len(chosen))
                self.agree(torch.stack([lower, -upper]), torch.stack([whole[samples, at], whole[samples, at + len(at)]]), size, "windows")

    def _one_row(self, name: str, small: Windows, samples: Tensor, chosen: Tensor, bounds: Box) -> None:
        """Bounds single units by one row each way, whose own end is that of two rows, and whose other end holds."""
        if small.ends is None:
            return
        self.found.modes["pre-activations bounded by one row"] += 1
        held, size = self.executions.values[name].flatten(1), 1 + max(float(end.abs().max()) for end in bounds)
        for sign in (1.0, -1.0):
            ends = small.one_row(samples, chosen, torch.full(samples.shape, sign, dtype=torch.float64))
            own = 0 if sign > 0 else 1
            self.agree(ends[own], bounds[own], 100 * size, "one row")
            for sample, unit, low, high in zip(samples.tolist(), chosen.tolist(), *(end.tolist() for end in ends), strict=True):
                value = held[self.executions.samples == sample][:, unit]
                self.found.values["single units"] += len(value)
                if not bool(((value >= low) & (value <= high)).all()):
                    self.found.violations.append(f'row of unit {unit} of "{name}": [{low!r}, {high!r}] misses an execution')

    def _splits(self, boxes: dict[str, Box], slopes: dict[str, Tensor]) -> None:
        """Bounds each row where one or two units have one sign, and holds that against the executions where they do."""
        relus = [node for node in self.graph.nodes if isinstance(node, Relu) and node.inputs[0] != self.graph.input]
        if not relus:
            return
        splits = {node.name: torch.zeros(1, len(self.rows), node.size, dtype=torch.float64) for node in relus}
        holds = torch.ones(len(self.executions), len(self.rows), dtype=torch.bool)
        for row in range(len(self.rows)):
            for _ in range(int(self.rng.integers(1, 3))):
                node = relus[int(self.rng.integers(len(relus)))]
                lower, upper = (end[0].flatten() for end in boxes[node.inputs[0]])
                open_ = ((lower < 0) & (upper > 0)).nonzero().flatten().tolist() or list(range(node.size))
                unit, sign = int(self.rng.choice(open_)), float(self.rng.choice([-1.0, 1.0]))
                if float(splits[node.name][0, row, unit]) == 0:
                    splits[node.name][0, row, unit] = sign
                    holds[:, row] &= self.executions.values[node.inputs[0]].flatten(1)[:, unit] * sign >= 0
        multipliers = {name: split * float(self.rng.random()) for name, split in splits.items()}
        shaped = [{node.name: one[node.name].view(1, -1, *node.shape) for node in relus} for one in (splits, multipliers)]
        lower = crown(self.graph, self.params, self.box, self.rows, boxes, self.rounding, Choices(slopes, *shaped))
        for row in range(len(self.rows)):
            inside = self.executions[holds[:, row].nonzero().flatten()]
            try:
                inside.check_rows(self.rows[row : row + 1], lower[:, row : row + 1], f"splits of row {row}")
            except SoundnessError as error:
                self.found.violations.append(str(error))
            self.found.margins += len(inside)

    def _first(self, refined: dict[str, Box]) -> tuple[Executions, Box, dict[str, Box]]:
        """Returns what belongs to the first sample: executions, region and boxes."""
        mine = self.executions[(self.executions.samples == 0).nonzero().flatten()]
        return mine, (self.box[0][:1], self.box[1][:1]), {name: (low[:1], high[:1]) for name, (low, high) in refined.items()}

    def _tree(self, refined: dict[str, Box]) -> None:
        """Bounds the leaves of a tree of three random splits, one of which holds each execution."""
        mine, box, boxes = self._first(refined)
        numbering, rng = proof.ReluUnits.of(self.graph), self.rng
        ends = [torch.cat([boxes[node.inputs[0]][side].flatten() for node in numbering.nodes] or [torch.zeros(0)]) for side in (0, 1)]
        open_ = ((ends[0] < 0) & (ends[1] > 0)).nonzero().flatten().numpy()
        few = open_ if len(open_) >= 3 else np.arange(numbering.count)
        if len(few) < 3:
            return
        first, second, third = rng.choice(few, 3, replace=False).tolist()
        nodes = np.array([first, second, -1, -1, third, -1, -1], np.int32)
        tree = proof.BoundTree(0, nodes, np.full(4, proof.NO_SET, np.int32), rng.random(8).astype(np.float32) * rng.choice([0, 1e-2]))
        none = np.zeros(0, np.int32)
        about = proof.BoundProof(none, np.zeros((0, 0), np.uint8), none, np.zeros(0, np.uint8), none, (tree,))
        try:
            proof.leaf_bounds(self.graph, self.rounding, box, boxes, about, tree, self.rows[6], executions=mine)
            self.found.margins += len(mine)
        except SoundnessError as error:
            self.found.violations.append(f"tree: {error}")

    def _search(self, refined: dict[str, Box], plain: Tensor) -> None:
        """Has a few domains proved, whose lemmas and leaves are held against the executions."""
        mine, box, boxes = self._first(refined)
        if not bool(torch.isfinite(plain[0]).all()):
            return
        # A threshold between what is proved and what is executed makes the search work for it.
        value = float((mine.values[self.graph.output] @ self.rows[0]).min())
        threshold = float(plain[0, 0]) + 0.7 * (value - float(plain[0, 0]))
        try:
            with settings(SHORT):
                prover = Prover(self.graph, self.rounding, box, boxes, Limits(domains=16), mine)
                prover.tighten()
                prover.settle({0: self.rows[0]}, threshold)
            self.found.errors["searches"] += 1
        except SoundnessError as error:
            self.found.violations.append(f"search: {error}")


def net_and_contract(seed: int, number: int) -> tuple[Graph, Contract, np.random.Generator]:
    """Returns the network of a number, the contract it is bounded under, and the random numbers to attack it with."""
    rng = np.random.default_rng([seed, number])
    return random_maps(rng), CONTRACTS["fp32" if number % 3 == 0 else "real"], rng


def attack_paths(graph: Graph, contract: Contract, rng: np.random.Generator) -> PathFindings:
    """Bounds a network with fast paths forced on and off, and compares with executions and with the plain definition."""
    try:
        return Attack(graph, contract, rng).run()
    except InputError:
        return PathFindings(refused=1)
