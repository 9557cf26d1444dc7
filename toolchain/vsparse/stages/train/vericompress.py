"""Certified dynamic sparse training in the manner of VeriCompress (Kaur, Xiao, Salekin, arXiv 2211.09945v7).

Training starts from a random sparse network. After every `thickening_length` epochs the least important units (or weights)
are deactivated; until the next such moment all weights train freely, so what was zeroed can grow back through the gradient of
the certified loss. From `freeze` of the epochs on, the mask is fixed and enforced after every step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph
from vsparse.recipe import Train
from vsparse.stages.train.sparsity import units_to_keep, weights_to_keep
from vsparse.stages.train.units import groups_of, unit_norms

Masks = dict[str, Tensor]


class SparseSearch:
    """Chooses masks: bool tensors, by parameter name, of what stays.

    Structured: a unit is an output channel or neuron with everything that leaves when it is removed. Its importance is the
    product of the l2 norms of the weights that make it and of those that read it: VeriCompress scores a filter by the former and a linear
    layer's input column by the latter; the product does not change when a factor moves through the ReLU between them.
    Unstructured: the importance of a weight is its magnitude. Raises InputError when the budget cannot be met.
    """

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.structured = spec.sparse.granularity == "channel"
        self.groups = groups_of(graph)
        self.weights = list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))
        self.keep = units_to_keep(graph, spec) if self.structured else weights_to_keep(graph, spec)

    def random(self, params: Mapping[str, Tensor], generator: torch.Generator) -> Masks:
        """Returns the masks of the sparse start, drawn at random."""
        if self.structured:
            return self._unit_masks(params, {group.name: torch.rand(group.count, generator=generator) for group in self.groups})
        return {name: _top(torch.rand(params[name].shape, generator=generator), self.keep[name]) for name in self.weights}

    def choose(self, params: Mapping[str, Tensor]) -> Masks:
        """Returns the masks of the most important units or weights as they are now."""
        if self.structured:
            scores = {}
            for group in self.groups:
                incoming, outgoing = unit_norms(group, params)
                scores[group.name] = incoming * outgoing
            return self._unit_masks(params, scores)
        return {name: _top(params[name].detach().abs(), self.keep[name]) for name in self.weights}

    def deactivate(self, params: Mapping[str, Tensor], masks: Masks) -> None:
        """Zeroes what the masks leave out, in a way that lets it grow back, in place.

        Of a structured unit the weights that read it and its bias are zeroed: a unit whose own filter were zero would sit
        at the kink of its ReLU, where the gradient is zero, for ever. The network computes the same either way.
        """
        with torch.no_grad():
            for group in self.groups if self.structured else ():
                keep = group_keep(group.name, masks)
                for _, bias in group.producers:
                    if bias is not None:
                        params[bias] *= keep
                for weight, mask in group.columns(keep, params).items():
                    params[weight] *= mask
        if not self.structured:
            enforce(params, masks)

    def _unit_masks(self, params: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> Masks:
        masks: Masks = {}
        for group in self.groups:
            keep = _top(scores[group.name], self.keep[group.name])
            masks[f"{UNITS}{group.name}"] = keep
            for name, mask in group.masks(keep, params).items():
                masks[name] = masks[name] & mask if name in masks else mask.clone()
        return masks


UNITS = "units:"


def group_keep(name: str, masks: Masks) -> Tensor:
    """Returns which units of a group stay, bool [count]."""
    return masks[f"{UNITS}{name}"]


def enforce(params: Mapping[str, Tensor], masks: Masks) -> None:
    """Sets every masked entry of the parameters to exactly 0, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            if not name.startswith(UNITS):
                params[name].masked_fill_(~mask, 0)


def density(params: Mapping[str, Tensor], masks: Masks | None, weights: list[str]) -> float:
    """Returns the share of weights that the masks leave (biases apart); 1 without masks."""
    total = sum(params[name].numel() for name in weights)
    if not masks or not total:
        return 1.0
    return sum(int(masks[name].sum()) if name in masks else params[name].numel() for name in weights) / total


def _top(score: Tensor, count: int) -> Tensor:
    """Returns a mask of the `count` largest entries; ties go to the first, NaN counts as least."""
    flat = torch.nan_to_num(score.flatten(), nan=-1.0)
    order = torch.sort(flat, descending=True, stable=True).indices
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(score.shape)
