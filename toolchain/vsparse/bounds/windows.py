"""Backward bounds of convolutional pre-activations on their receptive fields alone.

A unit of a feature map depends on a window of each map before it. Bounding it there, instead of on whole maps of coefficients that are
mostly zero, gives the same bound for a fraction of the work; every pair of sample and unit becomes a small problem of its own, with the
boxes and costs of its windows. Positions of a window that lie in the zero padding are constant zeros, and no operator makes them: an
input there has the box [0, 0], a ReLU that of a pre-activation [−1, −1], so that it passes nothing on, and the coefficients of a
convolution there are set to zero before its bias and its weights see them (docs/numerics.md, section 4.3).
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
from vsparse.bounds.choices import Choices
from vsparse.bounds.crown import bound_rows
from vsparse.bounds.rounding import Rounding
from vsparse.bounds.rules import Params
from vsparse.graph.ir import AddConstant, Conv, Graph, MulConstant, Node, Relu


@dataclass(frozen=True)
class _Window:
    """The window of an activation: `size` positions from unit·step − offset on, in each direction."""

    size: tuple[int, int]
    step: tuple[int, int]
    offset: tuple[int, int]


class Windows:
    """Bounds of single units of one pre-activation; make it with `windows`."""

    def __init__(
        self,
        graph: Graph,
        params: Params,
        boxes: Mapping[str, Box],
        rounding: Rounding | None,
        chain: list[Node],
        unit_costs: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.params, self.rounding = graph, params, rounding
        self.target = chain[0]
        self.source = chain[-1].inputs[0]
        geometry = _geometry(chain, params)
        self.chain = [_small(node, geometry[node.name].size) for node in chain]
        shape = (graph.shape_of(self.source)[0], *geometry[self.source].size)
        self.small = Graph(self.source, shape, tuple(reversed(self.chain)), self.target.name)
        costs: dict[str, Tensor] = {}
        if rounding is not None:
            costs = {node.name: unit_costs[node.name] for node in chain}
            costs[self.source] = rounding.coefficient_error(self.source, boxes)
        # ReLUs take their relaxations from the boxes of what they read; the source is where the pass ends.
        read = {node.inputs[0] for node in chain if isinstance(node, Relu)} | {self.source}
        self.boxes = {
            name: tuple(self._view(geometry[name], end, 0.0 if name == self.source else -1.0) for end in boxes[name]) for name in read
        }
        self.costs = {name: self._view(geometry[name], cost, 0.0) for name, cost in costs.items()}
        # What a ReLU reads needs no mask: nothing comes back through a ReLU whose input is negative.
        inner = [(node, reader) for node, reader in zip(chain[1:], chain, strict=False) if isinstance(node, Conv)]
        self.padding = {node.name: self._outside(geometry[node.name], node) for node, reader in inner if not isinstance(reader, Relu)}
        device = self.boxes[self.source][0].device
        self.padding = {name: outside.to(device) for name, outside in self.padding.items() if bool(outside.any())}
        widest = max(node.size for node in self.chain)
        self.piece = max(1, paths.working_set(self.boxes[self.source][0].device) // (16 * 6 * max(widest, prod(shape))))

    def bound(self, samples: Tensor, units: Tensor) -> Box:
        """Returns lower and upper bounds [n] of z for pairs of sample [n] and flat unit [n] of the target activation."""
        parts = [self._piece(samples[i : i + self.piece], units[i : i + self.piece]) for i in range(0, len(samples), self.piece)]
        found = torch.cat(parts) if parts else self.boxes[self.source][0].new_zeros(0, 2)
        return found[:, 0], -found[:, 1]

    def _piece(self, samples: Tensor, units: Tensor) -> Tensor:
        channels, height, width = self.target.shape
        channel, position = units // (height * width), units % (height * width)
        where = (samples, position // width, position % width)
        boxes: dict[str, Box] = {name: (lower[where], upper[where]) for name, (lower, upper) in self.boxes.items()}
        columns = {name: cost[where].flatten(1).unsqueeze(2) for name, cost in self.costs.items()}
        padding = {name: outside[position].repeat(1, self.small.shape_of(name)[0]) for name, outside in self.padding.items()}
        row = (channel.unsqueeze(1) == torch.arange(channels, device=channel.device)).to(boxes[self.source][0].dtype)
        rows, box = torch.stack([row, -row], dim=1), boxes[self.source]
        return bound_rows(self.small, list(self.chain), self.params, box, rows, boxes, columns, self.rounding, Choices(), padding)

    def _outside(self, window: _Window, node: Node) -> Tensor:
        """Returns which positions of a node's window lie outside of its map: bool [positions of the target, window height · width]."""
        inside = torch.ones(1, 1, *node.shape[1:], dtype=torch.bool)
        return ~self._view(window, inside, False).flatten(4).flatten(0, 3)

    def _view(self, window: _Window, x: Tensor, padding: float) -> Tensor:
        """Returns a view [batch, height, width, channels, window height, window width] of x [batch, channels, …], one window a unit."""
        _, rows, columns = self.target.shape
        (h, w), (down, across), (top, left) = window.size, window.step, window.offset
        below = max(0, down * (rows - 1) - top + h - x.shape[2])
        right = max(0, across * (columns - 1) - left + w - x.shape[3])
        padded = F.pad(x, (left, right, top, below), value=padding)
        return padded.unfold(2, h, down).unfold(3, w, across)[:, :, :rows, :columns].permute(0, 2, 3, 1, 4, 5)


def windows(
    graph: Graph, params: Params, boxes: Mapping[str, Box], rounding: Rounding | None, target: str, unit_costs: Mapping[str, Tensor]
) -> Windows | None:
    """Returns the bounder of a pre-activation that a chain of convolutions and ReLUs makes of the input, None where windows do not pay.

    `boxes` holds every activation up to the target, and so do `unit_costs` where there is a `rounding`. The pass ends at the input of the
    first convolution, so that what comes before it (an input normalisation, element by element) is covered by its box.
    """
    producers = {node.name: node for node in graph.nodes}
    readers = graph.consumers()
    chain: list[Node] = []
    name = target
    while isinstance(producers.get(name), Conv | Relu) and (name == target or len(readers[name]) == 1):
        chain.append(producers[name])
        name = chain[-1].inputs[0]
    while chain and not isinstance(chain[-1], Conv):
        chain.pop()
    if len(chain) < 2 or not isinstance(chain[0], Conv) or not _elementwise(producers, graph.input, chain[-1].inputs[0]):
        return None
    geometry = _geometry(chain, params)
    source = chain[-1].inputs[0]
    whole = sum(node.size for node in chain[1:]) + prod(graph.shape_of(source))
    inside = sum(node.shape[0] * geometry[node.name].size[0] * geometry[node.name].size[1] for node in chain[1:])
    inside += graph.shape_of(source)[0] * geometry[source].size[0] * geometry[source].size[1]
    return Windows(graph, params, boxes, rounding, chain, unit_costs) if inside < paths.WINDOWS * whole else None


def _elementwise(producers: Mapping[str, Node], start: str, name: str) -> bool:
    """Returns whether `name` is the input, shifted and scaled element by element at most."""
    while isinstance(producers.get(name), AddConstant | MulConstant):
        name = producers[name].inputs[0]
    return name == start


def _geometry(chain: list[Node], params: Params) -> dict[str, _Window]:
    """Returns the window of every activation of a chain (target first), its source included."""
    found = {chain[0].name: _Window((1, 1), (1, 1), (0, 0))}
    for node in chain:
        window = found[node.name]
        if isinstance(node, Conv):
            sides = params[node.weight].shape[2:]
            kernel = [node.dilation[k] * (sides[k] - 1) + 1 for k in (0, 1)]
            window = _Window(
                ((window.size[0] - 1) * node.stride[0] + kernel[0], (window.size[1] - 1) * node.stride[1] + kernel[1]),
                (window.step[0] * node.stride[0], window.step[1] * node.stride[1]),
                (window.offset[0] * node.stride[0] + node.pads[0], window.offset[1] * node.stride[1] + node.pads[1]),
            )
        found[node.inputs[0]] = window
    return found


def _small(node: Node, size: tuple[int, int]) -> Node:
    """Returns a node of the chain on windows: the padding is in the boxes."""
    shape = (node.shape[0], *size)
    return replace(node, shape=shape, pads=(0, 0, 0, 0)) if isinstance(node, Conv) else replace(node, shape=shape)
