"""Turns a graph into a plain `nn.Module` of standard layers."""

from __future__ import annotations

from torch import Tensor, nn

from vsparse.graph.core import Graph
from vsparse.graph.rules import torch_layer


class GraphModule(nn.Module):
    """The layers of a graph in order; `layers` is a ModuleList, so that tracers see straight-line code."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.layers = nn.ModuleList(torch_layer(node, graph) for node in graph.nodes)
        position = {graph.input: 0} | {node.name: i + 1 for i, node in enumerate(graph.nodes)}
        self.reads = [tuple(position[name] for name in node.inputs) for node in graph.nodes]
        self.result = position[graph.output]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of x [batch, *input_shape]."""
        values = [x]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(layer(*[values[i] for i in reads]))
        return values[self.result]


def to_torch(graph: Graph) -> nn.Module:
    """Returns a float32 module, in eval mode, that computes what the graph computes.

    It is made of nn.Conv2d, nn.Linear, nn.BatchNorm, nn.ReLU and pooling layers in an `nn.ModuleList`, and can be traced by
    torch.fx and torch.jit (auto_LiRPA). Parameters are copies. Raises InputError for a node type that has no layer.
    """
    return GraphModule(graph).eval()
