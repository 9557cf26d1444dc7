"""Lemmas: intermediate bounds with slopes optimised for each unit, layer by layer, kept where they gain something."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.proof import Proof, Units, tighten
from vsparse.bounds.region import Region
from vsparse.bounds.rounding import Rounding
from vsparse.graph.ir import Graph
from vsparse.search.alpha import Effort, optimise, quantise, relax, restore
from vsparse.search.relaxed import Choice

# A lemma costs a byte for each unit before it: it must take this share off the width of a box.
WORTH = 0.01
# Multiply-adds that lemmas may cost one region, about; layers that would need more keep the bounds they have.
WORK = 10**11


def no_proof(units: np.ndarray) -> Proof:
    """Returns a proof without lemmas and trees, which stores slopes of these units."""
    none = np.zeros(0, np.int32)
    return Proof(units, np.zeros((0, len(units)), np.uint8), none, np.zeros(0, np.uint8), none, ())


def with_lemmas(
    graph: Graph,
    rounding: Rounding,
    params32: Mapping[str, Tensor],
    box: Box | Region,
    boxes: Mapping[str, Box],
    effort: Effort,
    memory_bytes: int,
) -> tuple[Proof, dict[str, Box]]:
    """Returns a proof that holds lemmas alone, and the boxes they prove; `boxes` float64 [1, …] are the refined enclosure.

    Every unstable unit that is not reached from the input by linear operators alone is bounded on both sides, as far as `WORK` reaches.
    """
    numbering = Units.of(graph)
    boxes = dict(boxes)
    net = relax(graph, rounding, params32, box, boxes)
    all_units = net.units
    sets: list[np.ndarray] = []
    lemma_unit: list[int] = []
    lemma_side: list[int] = []
    left = WORK
    for layer, node in enumerate(numbering.nodes):
        if layer:
            net = relax(graph, rounding, params32, box, boxes)
        mine = net.layers[node.name]
        before = mine.columns.start
        cost = 4 * len(mine.index) * (effort.steps + 1) * net.work
        if not before or not len(mine.index) or cost > left:
            continue
        left -= cost
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        lower, upper = (end.flatten()[mine.index].to(torch.float64) for end in boxes[node.inputs[0]])
        step = max(1, memory_bytes // (8 * net.row_bytes))
        for start in range(0, len(mine.index), step):
            index = mine.index[start : start + step]
            rows = torch.zeros(len(index), node.size, dtype=torch.float64)
            rows[torch.arange(len(index)), index] = 1.0
            form = net.form(torch.cat([rows, -rows]), node.inputs[0])
            # A unit whose bound reaches zero is stable: nothing beyond that is of use to its ReLU.
            bound, choice = optimise(net, form, net.choice(2 * len(index)), 0.0, effort)
            stored = quantise(choice.slopes)
            bound = net.evaluate(form, Choice(restore(stored), choice.splits, choice.multipliers), False).bound  # type: ignore[arg-type]
            old = torch.cat([lower[start : start + step], -upper[start : start + step]])
            width = (upper - lower)[start : start + step].repeat(2)
            gained = (bound - old > WORTH * width).nonzero().flatten()
            side = (gained >= len(index)).to(torch.int64)
            chosen.append((index[gained % len(index)] + numbering.starts[layer], side, stored[gained]))
        part = [torch.cat(column) for column in zip(*chosen, strict=True)]
        if not len(part[0]):
            continue
        columns = np.searchsorted(all_units, net.units)
        full = np.zeros((len(part[2]), len(all_units)), np.uint8)
        full[:, columns[:before]] = part[2][:, :before].numpy()
        new = Proof(
            all_units,
            full,
            part[0].numpy().astype(np.int32),
            part[1].numpy().astype(np.uint8),
            np.arange(len(full), dtype=np.int32),
            (),
        )
        boxes = tighten(graph, rounding, box, boxes, new, memory_bytes)
        sets.append(full)
        lemma_unit += part[0].tolist()
        lemma_side += part[1].tolist()
    if not sets:
        return no_proof(all_units), boxes
    slopes = np.concatenate(sets)
    numbers = np.arange(len(slopes), dtype=np.int32)
    proof = Proof(all_units, slopes, np.array(lemma_unit, np.int32), np.array(lemma_side, np.uint8), numbers, ())
    return proof, boxes
