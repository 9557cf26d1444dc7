"""Tightened intermediate bounds: slopes optimised for each unit, layer by layer, kept where they are tight enough to be worth storing.

A proof stores them as lemmas (docs/proofs.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.executions import Executions
from vsparse.bounds.proof import BoundProof, ReluUnits, tighten
from vsparse.bounds.region import Region
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import to_host
from vsparse.graph.ir import Graph, Relu
from vsparse.search.alpha import Effort, Net, optimise, quantise, relax, restore
from vsparse.search.relaxed import Choice

# A tightened bound costs a byte for each unit before it: it must take this fraction off the width of a box.
WORTH = 0.01
# Multiply-adds that tightening may cost one region, about; layers that would need more keep the bounds they have.
WORK = 10**11
# Of a layer with many more units than these, so many are tried first; where less than this fraction gains, the layer keeps its bounds.
PROBED, FEW = 32, 0.1
# Units, sides (0: lower, 1: upper) and slopes.
TightenedLayer = tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint8]]


def empty_proof(units: NDArray[np.int32]) -> BoundProof:
    """Returns a proof without tightened bounds and trees, which stores slopes of these units."""
    none = np.zeros(0, np.int32)
    return BoundProof(units, np.zeros((0, len(units)), np.uint8), none, np.zeros(0, np.uint8), none, ())


def tightened_bounds(
    graph: Graph,
    rounding: Rounding,
    params32: Mapping[str, Tensor],
    box: Box | Region,
    boxes: Mapping[str, Box],
    net: Net,
    effort: Effort,
    memory_bytes: int,
    executions: Executions | None = None,
) -> tuple[BoundProof, dict[str, Box], Net]:
    """Returns a proof that holds tightened bounds alone, the boxes that they prove, and the network relaxed over these.

    `boxes` float64 [1, …] are the refined enclosure, `net` the network relaxed over them.

    Every unstable unit that is not reached from the input by linear operators alone is bounded on both sides, as far as `WORK` reaches.
    SoundnessError where one of the `executions` contradicts a tightened bound.
    """
    numbering = ReluUnits.of(graph)
    boxes = dict(boxes)
    all_units = net.units
    found: list[TightenedLayer] = []
    left = WORK
    for layer, node in enumerate(numbering.nodes):
        mine = net.layers[node.name]
        cost = 4 * len(mine.index) * (effort.steps + 1) * net.work
        if not mine.columns.start or not len(mine.index) or cost > left:
            continue
        if len(mine.index) > 4 * PROBED:
            # Most layers gain much or nothing: a sample of the units tells which.
            some = mine.index[:: len(mine.index) // PROBED]
            if len(_layer(net, node, some, effort, memory_bytes)[0]) < FEW * len(some):
                continue
        left -= cost
        index, side, stored = _layer(net, node, mine.index, effort, memory_bytes)
        if not len(index):
            continue
        full = np.zeros((len(stored), len(all_units)), np.uint8)
        full[:, np.searchsorted(all_units, net.units)[: mine.columns.start]] = stored[:, : mine.columns.start].numpy()
        units = (index + numbering.starts[layer]).numpy().astype(np.int32)
        found.append((units, side.numpy().astype(np.uint8), full))
        boxes = tighten(graph, rounding, box, boxes, _joined(all_units, found[-1:]), memory_bytes, executions)
        net = relax(graph, rounding, params32, box, boxes, net)
    return _joined(all_units, found), boxes, net


def _joined(units: NDArray[np.int32], layers: list[TightenedLayer]) -> BoundProof:
    """Returns a proof of tightened bounds, each with a slope set of its own."""
    if not layers:
        return empty_proof(units)
    unit, side, slopes = (np.concatenate(column) for column in zip(*layers, strict=True))
    return BoundProof(units, slopes, unit, side, np.arange(len(slopes), dtype=np.int32), ())


def _layer(net: Net, node: Relu, units: Tensor, effort: Effort, memory_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the bounds of some elements of a ReLU's input that gain enough: elements [L], sides [L], slopes as bytes [L, U].

    All three on the processor, as a proof stores them.
    """
    lower, upper = (end.flatten() for end in net.boxes[node.inputs[0]])
    chosen: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in torch.split(units, max(1, memory_bytes // (8 * net.row_bytes))):
        rows = torch.zeros(len(index), node.size, dtype=torch.float64, device=net.device)
        rows.scatter_(1, index.unsqueeze(1), 1.0)
        form = net.form(torch.cat([rows, -rows]), node.inputs[0])
        # A unit whose bound reaches zero is stable: a tighter one would not change its ReLU.
        _, choice = optimise(net, form, net.choice(2 * len(index)), 0.0, effort)
        stored = quantise(choice.slopes)
        bound = net.evaluate(form, Choice(restore(stored), choice.splits, choice.multipliers), False).bound  # type: ignore[arg-type]
        known = torch.cat([lower[index], -upper[index]])
        gains = to_host(bound - known > WORTH * (upper - lower)[index].repeat(2)).nonzero().flatten()
        chosen.append((to_host(index)[gains % len(index)], (gains >= len(index)).to(torch.int64), to_host(stored)[gains]))
    found, side, slopes = (torch.cat(column) for column in zip(*chosen, strict=True))
    return found, side, slopes
