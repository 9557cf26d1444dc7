"""Units that never fire: what makes and reads them is wasted, however large its weights are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph
from vsparse.stages.train.bounds.fast_interval import blocks, fast_interval
from vsparse.stages.train.bounds.margins import Box, Params
from vsparse.stages.train.units import UnitGroup

DeadUnits = Mapping[str, Tensor]
"""Which units of a group are dead, bool [count], by the group's name."""


@torch.no_grad()
def dead_units(graph: Graph, params: Params, groups: Iterable[UnitGroup], boxes: Iterable[Box]) -> dict[str, Tensor]:
    """Returns which units have a ReLU whose input is at most 0 all over each of the `boxes`, (lower, upper) of [batch, *input_shape].

    By interval bounds, so that a unit counts as dead only when no point of a box makes it fire, and neither loss nor attack
    gives it a gradient. Only groups with a single producer whose ReLU alone reads it (through a batch norm or not) are looked at.
    """
    fused = blocks(graph)
    makers = {node.weight: node for node in graph.nodes if isinstance(node, Affine)}
    read = {}
    for group in groups:
        node = makers.get(group.producers[0][0]) if len(group.producers) == 1 else None
        if node is not None:
            norm, relu = fused[node.name]
            if relu is not None:
                read[group.name] = (norm or node).name
    highest: dict[str, Tensor] = {}
    for box in boxes:
        found = fast_interval(graph, params, box, "relu")
        for name, activation in read.items():
            upper = found[activation][1].transpose(0, 1).flatten(1).amax(1)
            highest[name] = torch.maximum(highest[name], upper) if name in highest else upper
    return {name: upper <= 0 for name, upper in highest.items() if bool((upper <= 0).any())}


def without_dead_units(saliency: Mapping[str, Tensor], groups: Iterable[UnitGroup], dead: DeadUnits) -> dict[str, Tensor]:
    """Returns saliencies by weight with 0 for all that makes or reads a dead unit."""
    found = dict(saliency)
    for group in groups:
        if group.name not in dead:
            continue
        for weight, mask in group.touching(dead[group.name], found).items():
            found[weight] = found[weight].masked_fill(mask, 0)
    return found
