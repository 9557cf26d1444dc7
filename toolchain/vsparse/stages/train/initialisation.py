"""Initial weights under which interval bounds neither explode nor vanish with depth."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi, sqrt

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph


def initialise(graph: Graph, params: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Draws every Conv and Gemm weight from a normal distribution of standard deviation √(2π)/fan-in and zeroes biases, in place.

    With it the difference gain of a layer under interval propagation is 1 (Shi et al., Fast Certified Robust Training with Short
    Warmup, NeurIPS 2021, section 3.1). Normalisation layers keep their parameters, and so do layers of fan-in 1, which scale and
    shift single values just as these do.
    """
    with torch.no_grad():
        for node in graph.nodes:
            if isinstance(node, Affine):
                weight = params[node.weight]
                fan_in = weight[0].numel()
                if fan_in == 1:
                    continue
                weight.copy_(torch.randn(weight.shape, generator=generator) * (sqrt(2 * pi) / fan_in))
                if node.bias is not None:
                    params[node.bias].zero_()
