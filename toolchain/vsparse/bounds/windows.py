"""Backward bounds of the units of feature maps on their receptive fields alone.

A unit of a feature map depends on a window of each map before it. Bounding it there, instead of on whole maps of coefficients that are
mostly zero, gives the same bound for a fraction of the work; every pair of sample and unit becomes a small problem of its own, with the
boxes and costs of its windows. An activation that several operators read (residual blocks) has the window that holds those of all of them,
and who reads less of it reads a slice. Positions of a window in the zero padding are constant zeros, and no operator makes them: an input
there has the box [0, 0], a ReLU passes nothing on there, as one whose input is negative, and the coefficients of any other operator there
are set to zero before its bias and its weights see them (docs/numerics.md, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds import paths
from vsparse.bounds.ball import Box
from vsparse.bounds.both_ends import BothEnds, plain_terms, relu_lines, relu_terms, source_terms, supported
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import bound_rows
from vsparse.bounds.linear import SumOfProducts
from vsparse.bounds.operators.piecewise import relu_relaxation
from vsparse.bounds.relaxation import LinearRelaxation
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params, rules_of
from vsparse.graph.ir import Add, AddConstant, Conv, Graph, MaxPool, MulConstant, Node, Relu, Shape, Slice


@dataclass(frozen=True)
class _Window:
    """The window of an activation: `size` positions from unit·step − offset on, in each direction."""

    size: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]


class Windows:
    """Bounds of single units of one activation; make it with `windows`."""

    def __init__(
        self,
        graph: Graph,
        params: Params,
        boxes: Mapping[str, Box],
        rounding: Rounding | None,
        chain: list[Node],
        source: str,
        unit_costs: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.params, self.rounding = graph, params, rounding
        self.target, self.source = chain[0], source
        geometry = _geometry(chain, params)
        shape = (graph.shape_of(source)[0], *geometry[source].size)
        self.chain = _small(chain, geometry, params, {source: shape})
        self.small = Graph(source, shape, tuple(reversed(self.chain)), self.target.name)
        costs: dict[str, Tensor] = {}
        if rounding is not None:
            costs = {node.name: unit_costs[node.name] for node in chain}
            costs[source] = rounding.coefficient_error(source, boxes)
        self.costs = {name: self._view(geometry[name], cost, 0.0) for name, cost in costs.items()}
        # What reads a slice loses nothing on the way; that is charged where the whole window is.
        self.slices = [node for node in self.chain if node.name not in geometry]
        self.boxes = {source: tuple(self._view(geometry[source], end, 0.0) for end in boxes[source])}
        self.relaxations: dict[str, list[Tensor]] = {}
        for node in chain:
            (read, *_) = node.inputs
            if isinstance(node, Relu):
                # Outside of the map the relaxation is 0, as that of a negative input.
                parts = relu_relaxation(*boxes[read], rounding is not None)
                self.relaxations[node.name] = [self._view(geometry[node.name], part, 0.0) for part in parts]
            elif isinstance(node, MaxPool) and read != source:
                self.boxes[read] = tuple(self._view(geometry[read], end, 0.0) for end in boxes[read])
        readers = {name: [node for node in chain if name in node.inputs] for name in geometry}
        # What ReLUs alone read needs no mask: nothing comes back through them there, nor through a ReLU itself.
        inner = [node for node in chain[1:] if not isinstance(node, Relu) and not all(isinstance(one, Relu) for one in readers[node.name])]
        self.padding = {node.name: self._outside(geometry[node.name], node) for node in inner}
        device = self.boxes[source][0].device
        self.padding = {name: outside.to(device) for name, outside in self.padding.items() if bool(outside.any())}
        widest = max(node.size for node in self.chain)
        self.piece = max(1, paths.working_set(device) // (16 * 6 * max(widest, prod(shape))))
        self.elements = sum(node.shape[0] * prod(geometry[node.name].size) for node in chain[1:]) + prod(shape)
        # What is multiplied for one row.
        self.work = sum(params[node.weight].numel() * prod(geometry[node.name].size) for node in chain if isinstance(node, Conv))
        self.ends: BothEnds | None = None
        if (
            rounding is not None
            and device.type == "cpu"
            and self.work >= paths.BOTH_ENDS
            and supported(self.chain, params, self.elements + self.target.shape[0])
        ):
            sums = self._terms(chain, boxes, {node.name: unit_costs[node.name] for node in chain} | {source: costs[source]}, readers)
            terms = {name: self._channels_last(geometry[name], one) for name, one in sums.items()}
            self.ends = BothEnds(self.chain, params, source, shape, terms, self.padding)

    def _terms(
        self, chain: list[Node], boxes: Mapping[str, Box], costs: Mapping[str, Tensor], readers: Mapping[str, list[Node]]
    ) -> dict[str, Tensor]:
        """Returns the terms of every activation that `BothEnds` charges; a ReLU alone charges what it reads."""
        found = {self.source: source_terms(boxes[self.source], costs[self.source])}
        for node in chain:
            alone = len(readers[node.name]) == 1 and isinstance(readers[node.name][0], Relu)
            if not isinstance(node, Relu) and (node is self.target or not alone):
                found[node.name] = plain_terms(costs[node.name], self._bias(node))
        for node in chain:
            if isinstance(node, Relu):
                (read,) = node.inputs
                known = read in found
                cost, bias = (torch.zeros_like(costs[read]), None) if known else (costs[read], self._bias(self.graph.node(read)))
                lines = relu_lines(boxes[read], *relu_relaxation(*boxes[read], True))
                found[node.name] = relu_terms(costs[node.name], lines, cost, bias)
        return found

    def _bias(self, node: Node) -> Tensor | None:
        """Returns the bias of a node [out, 1, 1]; None where it has none."""
        bias = rules.bias(node, self.params) if isinstance(rules := rules_of(node), SumOfProducts) else None
        return None if bias is None else bias.view(-1, 1, 1)

    def one_row(self, samples: Tensor, units: Tensor, signs: Tensor) -> Box:
        """Returns lower and upper bounds [n] of z by one row for each pair: that of z where the sign is 1, of −z where it is −1.

        The end that the row is about is that of `bound`; the other is looser by the row's slack.
        """
        assert self.ends is not None
        found = self.ends.bound(samples, units, signs, self.target.shape[1] * self.target.shape[2], self.target.shape[2])
        ahead = signs > 0
        return torch.where(ahead, found[:, 0], -found[:, 1]), torch.where(ahead, found[:, 1], -found[:, 0])

    def bound(self, samples: Tensor, units: Tensor) -> Box:
        """Returns lower and upper bounds [n] of z for pairs of sample [n] and flat unit [n] of the target activation."""
        if len(samples) and self.elements >= paths.TOGETHER:
            found = self._by_position(samples, units)
        else:
            parts = [self._pairs(samples[i : i + self.piece], units[i : i + self.piece]) for i in range(0, len(samples), self.piece)]
            found = torch.cat(parts) if parts else self.boxes[self.source][0].new_zeros(0, 2)
        return found[:, 0], -found[:, 1]

    def _pairs(self, samples: Tensor, units: Tensor) -> Tensor:
        """Returns lower bounds [n, 2] of z and of −z for pairs of sample and unit, each with windows of its own."""
        positions = self.target.shape[1] * self.target.shape[2]
        row = (units // positions).unsqueeze(1) == torch.arange(self.target.shape[0], device=units.device)
        row = row.to(self.boxes[self.source][0].dtype)
        return self._rows(samples, units % positions, torch.stack([row, -row], dim=1))

    def _by_position(self, samples: Tensor, units: Tensor) -> Tensor:
        """Returns what `_pairs` does: units of one sample at one position, which have the same windows, are rows of one problem."""
        channels, positions = self.target.shape[0], self.target.shape[1] * self.target.shape[2]
        place, where = torch.unique(samples * positions + units % positions, return_inverse=True)
        order = where.argsort(stable=True)
        counts = torch.bincount(where, minlength=len(place))
        starts = counts.cumsum(0) - counts
        found = self.boxes[self.source][0].new_zeros(len(samples), 2)
        # Places with the most units first, so that few rows of a block are empty.
        by_count = counts.argsort(descending=True, stable=True)
        begin = 0
        while begin < len(place):
            most = int(counts[by_count[begin]])
            chosen = by_count[begin : begin + max(1, self.piece // most)]
            begin += len(chosen)
            step = max(1, self.piece // len(chosen))
            for first in range(0, most, step):
                width = min(step, most - first)
                rank = torch.arange(first, first + width, device=counts.device).expand(len(chosen), -1)
                valid = rank < counts[chosen].unsqueeze(1)
                pair = order[(starts[chosen].unsqueeze(1) + rank)[valid]]
                rows = found.new_zeros(len(chosen), width, channels)
                at = valid.nonzero(as_tuple=True)
                rows[at[0], at[1], units[pair] // positions] = 1.0
                key = place[chosen]
                lower = self._rows(key // positions, key % positions, torch.cat([rows, -rows], dim=1))
                found[pair] = torch.stack([lower[:, :width][valid], lower[:, width:][valid]], dim=1)
        return found

    def _rows(self, samples: Tensor, position: Tensor, rows: Tensor) -> Tensor:
        """Returns lower bounds [n, R] of rows [n, R, channels] of the target at one position of one sample each."""
        width = self.target.shape[2]
        where = (samples, position // width, position % width)
        boxes: dict[str, Box] = {name: (lower[where], upper[where]) for name, (lower, upper) in self.boxes.items()}
        zero = torch.zeros((), dtype=rows.dtype, device=rows.device)
        relaxations = {
            name: LinearRelaxation(below[where], zero, above[where], over[where]) for name, (below, above, over) in self.relaxations.items()
        }
        columns = {name: cost[where].flatten(1).unsqueeze(2) for name, cost in self.costs.items()}
        nothing = {node.name: torch.zeros(1, node.size, 1, dtype=rows.dtype, device=rows.device) for node in self.slices if columns}
        padding = {name: outside[position].repeat(1, self.small.shape_of(name)[0]) for name, outside in self.padding.items()}
        walk, box, costs = list(self.chain), boxes[self.source], columns | nothing
        return bound_rows(self.small, walk, self.params, box, rows, boxes, costs, self.rounding, Choices(), padding, relaxations)

    def _outside(self, window: _Window, node: Node) -> Tensor:
        """Returns which positions of a node's window lie outside of its map: bool [positions of the target, window height · width]."""
        inside = torch.ones(1, 1, *node.shape[1:], dtype=torch.bool)
        return ~self._view(window, inside, False).flatten(4).flatten(0, 3)

    def _channels_last(self, window: _Window, x: Tensor) -> Tensor:
        """Returns a view [batch, height, width, maps, window height, window width, channels] of x [batch, maps, channels, …], 0 outside."""
        maps, (batch, count) = x.flatten(0, 1), x.shape[:2]
        # The channels of a map one behind the other for each position, so that a row of a window is one piece of memory.
        kept = maps.contiguous(memory_format=torch.channels_last)
        found = self._view(window, kept, 0.0)
        return found.view(batch, count, *found.shape[1:]).permute(0, 2, 3, 1, 5, 6, 4)

    def _view(self, window: _Window, x: Tensor, padding: float) -> Tensor:
        """Returns a view [batch, height, width, channels, window height, window width] of x [batch, channels, …], one window a unit."""
        _, rows, columns = self.target.shape
        (h, w), (down, across), (top, left) = window.size, window.step, window.offset
        below = max(0, down * (rows - 1) - top + h - x.shape[2])
        right = max(0, across * (columns - 1) - left + w - x.shape[3])
        padded = F.pad(x, (left, right, top, below), value=padding)
        return padded.unfold(2, h, down).unfold(3, w, across)[:, :, :rows, :columns].permute(0, 2, 3, 1, 4, 5)


def windows(
    graph: Graph,
    params: Params,
    boxes: Mapping[str, Box],
    rounding: Rounding | None,
    target: str,
    unit_costs: Mapping[str, Tensor],
    source: str | None = None,
) -> Windows | None:
    """Returns the bounder of a map made of `source` by convolutions, ReLUs, max pools and additions; None where windows do not pay.

    `boxes` holds every activation up to the target, and so do `unit_costs` where there is a `rounding`. The pass ends at the box of
    `source`, by default the input of the network, or what makes of it element by element (an input normalisation).
    """
    if source is None:
        source = graph.input
        readers = graph.consumers()
        while len(readers[source]) == 1 and isinstance(readers[source][0], AddConstant | MulConstant):
            source = readers[source][0].name
    chain = between(graph, target, source)
    if (
        chain is None
        or len(chain) < 2
        or not all(_known(node, params) for node in chain)
        or not any(isinstance(node, Conv) for node in chain)
    ):
        return None
    geometry = _geometry(chain, params)
    if not all(map(prod, (window.size for window in geometry.values()))) or source not in geometry:
        return None
    whole = sum(node.size for node in chain[1:]) + prod(graph.shape_of(source))
    inside = sum(node.shape[0] * prod(geometry[node.name].size) for node in chain[1:])
    inside += graph.shape_of(source)[0] * prod(geometry[source].size)
    return Windows(graph, params, boxes, rounding, chain, source, unit_costs) if inside < paths.WINDOWS * whole else None


def between(graph: Graph, target: str, source: str) -> list[Node] | None:
    """Returns the nodes that make `target` of `source`, target first; None where it depends on anything else."""
    needed, walk = {target}, []
    for node in reversed(graph.nodes):
        if node.name in needed and node.name != source:
            walk.append(node)
            needed.update(node.inputs)
    return walk if needed - {node.name for node in walk} == {source} else None


def _known(node: Node, params: Params) -> bool:
    """Returns whether a node can stand in a window."""
    if isinstance(node, AddConstant | MulConstant):
        constant = params[node.constant]
        return len(node.shape) == 3 and (constant.dim() == 0 or (constant.dim() == 3 and constant.shape[1:].numel() == 1))
    return len(node.shape) == 3 and (isinstance(node, Conv | Relu | Add) or (isinstance(node, MaxPool) and not any(node.pads)))


def _geometry(chain: list[Node], params: Params) -> dict[str, _Window]:
    """Returns the window of every activation of a chain (target first), its source included: that of all who read it.

    A window of size 0 stands for those of several readers that step differently.
    """
    found = {chain[0].name: _Window((1, 1), (1, 1), (0, 0))}
    for node in chain:
        window = _read(node, found[node.name], params)
        for name in node.inputs:
            found[name] = _union(found[name], window) if name in found else window
    return found


def _read(node: Node, window: _Window, params: Params) -> _Window:
    """Returns what a node reads of its inputs for a window of its own."""
    if isinstance(node, Conv):
        kernel, pads = tuple(params[node.weight].shape[2:]), node.pads
        reach = [node.dilation[k] * (kernel[k] - 1) + 1 for k in (0, 1)]
        stride = node.stride
    elif isinstance(node, MaxPool):
        reach, pads, stride = list(node.kernel), node.pads, node.stride
    else:
        return window
    return _Window(
        ((window.size[0] - 1) * stride[0] + reach[0], (window.size[1] - 1) * stride[1] + reach[1]),
        (window.step[0] * stride[0], window.step[1] * stride[1]),
        (window.offset[0] * stride[0] + pads[0], window.offset[1] * stride[1] + pads[1]),
    )


def _union(one: _Window, other: _Window) -> _Window:
    """Returns the window that holds both, of size 0 where they step differently."""
    if one.step != other.step:
        return _Window((0, 0), one.step, one.offset)
    offset = max(one.offset[0], other.offset[0]), max(one.offset[1], other.offset[1])
    ends = [max(one.size[k] - one.offset[k], other.size[k] - other.offset[k]) for k in (0, 1)]
    return _Window((ends[0] + offset[0], ends[1] + offset[1]), one.step, offset)


def _small(chain: list[Node], geometry: Mapping[str, _Window], params: Params, sources: Mapping[str, Shape]) -> list[Node]:
    """Returns the nodes of a chain (target first) on their windows, with a slice where one reads less than the window; the padding is in
    the boxes."""
    found: list[Node] = []
    for node in chain:
        wanted = _read(node, geometry[node.name], params)
        read, slices = [], []
        for number, name in enumerate(node.inputs):
            window = geometry[name]
            if window == wanted:
                read.append(name)
                continue
            starts = [window.offset[k] - wanted.offset[k] for k in (0, 1)]
            stops = [starts[k] + wanted.size[k] for k in (0, 1)]
            channels = sources[name][0] if name in sources else next(one.shape[0] for one in chain if one.name == name)
            read.append(f"{name} for {node.name} {number}")
            fields = {"starts": (0, *starts), "stops": (channels, *stops), "steps": (1, 1, 1)}
            slices.append(Slice(name=read[-1], inputs=(name,), shape=(channels, *wanted.size), **fields))
        shape = (node.shape[0], *geometry[node.name].size)
        fields = {"pads": (0, 0, 0, 0)} if isinstance(node, Conv) else {}
        found += [replace(node, inputs=tuple(read), shape=shape, **fields), *slices]  # type: ignore[arg-type]
    return found
