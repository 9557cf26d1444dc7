"""Output channels and neurons, with all that is coupled to them: what can be dropped from the network physically."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import BatchNorm, Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import PrunableLayer
from vsparse.stages.train.granularity.allocated import Allocated
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.units import groups_of, unit_norms, why_none


class ChannelPattern(Allocated):
    """An item is a unit of a group of coupled channels (units.py); the measure is that of the packed network.

    A unit's score is the product of the l2 norms of the weights that make it and of those that read it: VeriCompress scores a
    filter by the former and a linear layer's input column by the latter; the product does not change when a factor moves through the
    ReLU between them.
    """

    structured = True

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.groups = groups_of(graph)
        self.scales = {node.scale: node.shape[0] for node in graph.nodes if isinstance(node, BatchNorm)}
        if not self.groups and spec.is_sparse:
            raise InputError(
                f"the network has no hidden units that can be removed: {why_none(graph)}; set train.sparse.granularity = "
                '"element", which removes weights one by one, or train.sparsity = 0'
            )
        super().__init__(graph, spec)

    def make_layers(self, graph: Graph) -> list[PrunableLayer]:
        layers = []
        for group in self.groups:
            shapes = [self.cells[weight].shape for weight, _ in group.producers]
            factor = self.spec.sparse.conv_share if group.convolutional else 1.0
            layers.append(self.make_layer(group.name, group.name, group.count, shapes, factor))
        return layers

    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Returns the measure of each weight packed to so many units a group: rows × columns × kernel entries, stored dense."""
        rows = {weight: counts[group.name] for group in self.groups for weight, _ in group.producers}
        columns = {weight: counts[group.name] * spread for group in self.groups for weight, spread in group.consumers}
        return {
            name: self.budget.measure.packed(cell, rows.get(name, cell.shape[0]) * columns.get(name, cell.shape[1]) * prod(cell.shape[2:]))
            for name, cell in self.cells.items()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {group.name: (group.count,) for group in self.groups}

    def items(self, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = saliency[self.weights[0]].device
        known = {name: saliency[name] if name in saliency else torch.ones(count, device=device) for name, count in self.scales.items()}
        known |= {name: saliency[name] for name in self.weights}
        scores = {}
        for group in self.groups:
            incoming, outgoing = unit_norms(group, known)
            scores[group.name] = incoming * outgoing
        return scores

    def masks(self, active: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Masks:
        masks = Masks()
        for group in self.groups:
            keep = active[group.name].to(params[group.producers[0][0]].device, copy=True)
            masks.groups[group.name] = keep
            for name, mask in group.masks(keep, params).items():
                masks.entries[name] = masks.entries[name] & mask if name in masks.entries else mask.clone()
        return masks

    def active(self, masks: Masks) -> dict[str, Tensor]:
        return {group.name: masks.groups[group.name].clone() for group in self.groups}

    def deactivate(self, params: Mapping[str, Tensor], masks: Masks) -> None:
        """Zeroes the weights that read a removed unit, and its bias, in place.

        A unit whose own filter were zero would sit at the kink of its ReLU, where the gradient is zero, for ever; the network
        computes the same either way.
        """
        with torch.no_grad():
            for group in self.groups:
                keep = masks.groups[group.name]
                for _, bias in group.producers:
                    if bias is not None:
                        params[bias].masked_fill_(~keep, 0)
                for weight, mask in group.columns(keep, params).items():
                    params[weight].masked_fill_(~mask, 0)
