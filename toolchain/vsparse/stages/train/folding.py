"""Batch norm folded into the layer before it during training: parameters with gradients, for bounds that have no rule for batch norm."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vsparse.graph import channel_affine
from vsparse.graph.ir import AddConstant, Affine, BatchNorm, Graph, MulConstant, Node
from vsparse.stages.train.bounds.margins import Params


class Folding:
    """A graph without batch norm, and the map of parameters that goes with it: what `fold_batch_norm` does when the network is exported.

    Activations keep their names: the folded layer is called as the batch norm was whose output it makes. A batch norm that cannot be
    folded becomes MulConstant and AddConstant.
    """

    graph: Graph

    def __init__(self, graph: Graph) -> None:
        readers = graph.consumers()
        made: dict[str, Node] = {}
        self.folded: list[tuple[Affine, Affine, list[BatchNorm]]] = []
        self.constants: list[tuple[BatchNorm, MulConstant, AddConstant]] = []
        chains: dict[str, tuple[Affine, list[BatchNorm]]] = {}
        for node in graph.nodes:
            if not isinstance(node, BatchNorm):
                made[node.name] = node
                continue
            source = made.get(node.inputs[0])
            if isinstance(source, Affine) and len(readers[source.name]) == 1:
                original, norms = chains.pop(source.name, (source, []))
                del made[source.name]
                made[node.name] = replace(source, name=node.name, weight=f"{node.name}.folded.weight", bias=f"{node.name}.folded.bias")
                chains[node.name] = original, [*norms, node]
                continue
            scaled = MulConstant(name=f"{node.name}.folded", inputs=node.inputs, shape=node.shape, constant=f"{node.name}.folded.scale")
            shifted = AddConstant(name=node.name, inputs=(scaled.name,), shape=node.shape, constant=f"{node.name}.folded.shift")
            made[scaled.name], made[shifted.name] = scaled, shifted
            self.constants.append((node, scaled, shifted))
        for name, (original, norms) in chains.items():
            now = made[name]
            assert isinstance(now, Affine)
            self.folded.append((original, now, norms))
        self.graph = replace(graph, nodes=tuple(made.values()))

    def params(self, params: Params) -> dict[str, Tensor]:
        """Returns the parameters of the graph without batch norm, float32, from those with it (the statistics to fold included).

        Computed in float64 and rounded once, as on export: W' = scale · W, b' = scale · b + shift in each channel.
        """
        made = dict(params)
        for original, now, norms in self.folded:
            weight = params[original.weight].double()
            bias = weight.new_zeros(len(weight)) if original.bias is None else params[original.bias].double()
            for node in norms:
                scale, shift = channel_affine(node, {name: params[name].double() for name in node.params})
                weight, bias = weight * scale.view(-1, *(1 for _ in weight.shape[1:])), bias * scale + shift
                weight, bias = weight.float().double(), bias.float().double()
            assert now.bias is not None
            made[now.weight], made[now.bias] = weight.float(), bias.float()
        for node, scaled, shifted in self.constants:
            scale, shift = channel_affine(node, {name: params[name].double() for name in node.params})
            shape = (-1, *(1 for _ in node.shape[1:]))
            made[scaled.constant], made[shifted.constant] = scale.float().view(shape), shift.float().view(shape)
        return made
