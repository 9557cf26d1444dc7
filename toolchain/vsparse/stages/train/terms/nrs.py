"""NRSLoss: keeps neurons on one side of zero over the whole box, so that verifiers need not split them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.graph.ir import BatchNorm, Graph, LeakyRelu, Relu

_TINY = 1e-8


def nrs_loss(graph: Graph, params: Mapping[str, Tensor], enclosure: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> Tensor:
    """Returns the mean of −tanh(1 + l · u/γ²) over the channels that ReLUs read, a scalar in (−1, 1), 1 for neurons far from stable.

    l, u are the ends of the box of a neuron before its ReLU, [batch, *shape] in `enclosure`; each channel counts once, by its mean over
    batch and map (Li et al., TMLR 2022, arXiv 2206.07311, section 4). γ is `scale`, times the scale of the batch norm that the ReLU reads
    where there is one: it holds the size of the channel's activations, and gets no gradient here, as growing it would lower the loss.
    """
    makers = {node.name: node for node in graph.nodes}
    channels = []
    for node in graph.nodes:
        if not isinstance(node, Relu | LeakyRelu) or node.inputs[0] not in enclosure:
            continue
        lower, upper = enclosure[node.inputs[0]]
        maker = makers.get(node.inputs[0])
        size = lower.new_full((), scale**2)
        if isinstance(maker, BatchNorm):
            size = size * params[maker.scale].detach().square()
        product = (lower * upper).transpose(0, 1).flatten(1)  # [channels, batch · positions]
        channels.append(-torch.tanh(1 + product / size.clamp(min=_TINY).view(-1, 1)).mean(1))
    return torch.cat(channels).mean() if channels else next(iter(enclosure.values()))[0].new_zeros(())
