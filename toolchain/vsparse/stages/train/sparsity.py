"""Budgets: how many weights or units each layer keeps, so that the whole keeps what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from vsparse.errors import InputError
from vsparse.graph.ir import Affine, Conv, Graph
from vsparse.recipe import Train
from vsparse.stages.train.units import Group, groups_of


@dataclass(frozen=True)
class Layer:
    """A layer as the allocation sees it: how many items it has, its Erdős–Rényi-kernel density, and its share of the sparsity."""

    name: str
    items: int
    density: float
    share: float

    def keep(self, scale: float) -> float:
        """Returns how many items stay at a scale: items · (1 − share · (1 − min(1, scale · density)))."""
        return self.items * max(0.0, 1 - self.share * (1 - min(1.0, scale * self.density)))


def kernel_density(shape: tuple[int, ...]) -> float:
    """Returns the Erdős–Rényi-kernel density of a weight before scaling: sum of its dimensions over their product.

    Evci et al., Rigging the Lottery (ICML 2020), section 3: (n_in + n_out + kh + kw) / (n_in · n_out · kh · kw).
    """
    return sum(shape) / prod(shape)


def weight_budget(graph: Graph, spec: Train) -> int:
    """Returns how many weights (biases apart) may stay: the parameter budget, or ⌊(1 − sparsity) · weights⌋.

    Raises InputError when there is nothing to keep or less than one weight a layer.
    """
    total = sum(graph.params[name].size for name in _weights(graph))
    budget = spec.parameter_budget or int((1 - spec.sparsity) * total + 1e-9)
    if budget > total:
        raise InputError(f"train.parameter_budget is {budget} and the network has {total} weights; lower it, or set train.sparsity = 0")
    if budget < len(_weights(graph)):
        raise InputError(
            f"{budget} weights cannot serve {len(_weights(graph))} layers; lower train.sparsity or raise train.parameter_budget"
        )
    return budget


def weights_to_keep(graph: Graph, spec: Train) -> dict[str, int]:
    """Returns for each weight how many of its entries stay (unstructured); the sum is exactly `weight_budget`.

    Convolutions and the last layer lose `conv_share` of the sparsity that their density alone would give (VeriCompress,
    arXiv 2211.09945v7). Raises InputError that names the heaviest layer when the budget cannot be met.
    """
    budget = weight_budget(graph, spec)
    layers = []
    for node in _affine(graph):
        shape = graph.params[node.weight].shape
        gentle = isinstance(node, Conv) or node.name == graph.output
        density = 1.0 if spec.sparse.allocation == "uniform" else kernel_density(shape)
        layers.append(Layer(node.weight, graph.params[node.weight].size, density, min(1.0, spec.sparse.conv_share) if gentle else 1.0))

    def counts(scale: float) -> dict[str, int]:
        return {layer.name: max(1, int(layer.keep(scale))) for layer in layers}

    kept = _largest(counts, lambda chosen: sum(chosen.values()), budget, layers, spec)
    return _fill(kept, layers, budget)


def units_to_keep(graph: Graph, spec: Train) -> dict[str, int]:
    """Returns for each group of units (structured) how many stay, such that the packed network's weights meet `weight_budget`.

    Removing a unit also removes its consumers' inputs, so the count is of the physical weights that remain. Raises InputError
    that names the heaviest layer when the budget cannot be met, and when the network has nothing to remove.
    """
    budget = weight_budget(graph, spec)
    groups = groups_of(graph)
    total = sum(graph.params[name].size for name in _weights(graph))
    if not groups:
        if budget < total:
            raise InputError("the network has no hidden units that can be removed; train dense (train.sparsity = 0) or unstructured")
        return {}
    layers = []
    for group in groups:
        density = 1.0 if spec.sparse.allocation == "uniform" else _group_density(graph, group)
        share = spec.sparse.conv_share if group.convolutional else 1.0
        layers.append(Layer(group.name, group.count, density, share))

    def counts(scale: float) -> dict[str, int]:
        return {layer.name: min(layer.items, max(1, round(layer.keep(scale)))) for layer in layers}

    def physical(chosen: Mapping[str, int]) -> int:
        return physical_weights(graph, groups, chosen)

    kept = _largest(counts, physical, budget, layers, spec)
    # Rounding to whole units leaves weights over; single units are added back, gently pruned layers last.
    for layer in sorted(layers, key=lambda layer: layer.share):
        while kept[layer.name] < layer.items and physical({**kept, layer.name: kept[layer.name] + 1}) <= budget and layer.share <= 1:
            kept[layer.name] += 1
    return kept


def physical_weights(graph: Graph, groups: list[Group], kept: Mapping[str, int]) -> int:
    """Returns the number of Conv and Gemm weights of the network packed to `kept` units a group."""
    rows: dict[str, int] = {weight: kept[group.name] for group in groups for weight, _ in group.producers}
    columns: dict[str, int] = {weight: kept[group.name] * spread for group in groups for weight, spread in group.consumers}
    total = 0
    for name in _weights(graph):
        shape: tuple[int, ...] = graph.params[name].shape
        kernel = prod(shape[2:])
        total += rows.get(name, shape[0]) * columns.get(name, shape[1]) * kernel
    return total


def _group_density(graph: Graph, group: Group) -> float:
    densities = [kernel_density(graph.params[weight].shape) for weight, _ in group.producers]
    return sum(densities) / len(densities)


def _affine(graph: Graph) -> list[Affine]:
    seen: dict[str, Affine] = {}
    for node in graph.nodes:
        if isinstance(node, Affine):
            seen.setdefault(node.weight, node)
    return list(seen.values())


def _weights(graph: Graph) -> list[str]:
    return [node.weight for node in _affine(graph)]


def _largest(
    counts: Callable[[float], dict[str, int]],
    size: Callable[[dict[str, int]], int],
    budget: int,
    layers: list[Layer],
    spec: Train,
) -> dict[str, int]:
    """Returns the counts at the largest scale whose size is within the budget, found by bisection."""
    low, high = 0.0, 1 / min(layer.density for layer in layers)
    if size(counts(low)) > budget:
        heaviest = max(layers, key=lambda layer: layer.keep(low))
        raise InputError(
            f'layer "{heaviest.name}" alone keeps {counts(low)[heaviest.name]} of {heaviest.items}, so {budget} weights cannot be met; '
            f"raise train.sparse.conv_share (now {spec.sparse.conv_share:g}) or lower train.sparsity"
        )
    if size(counts(high)) <= budget:
        return counts(high)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if size(counts(middle)) <= budget else (low, middle)
    return counts(low)


def _fill(kept: dict[str, int], layers: list[Layer], budget: int) -> dict[str, int]:
    """Gives what rounding left of the budget to the layers in order of size, so that the sum is the budget exactly."""
    for layer in sorted(layers, key=lambda layer: -layer.items):
        kept[layer.name] += min(layer.items - kept[layer.name], budget - sum(kept.values()))
    return kept
