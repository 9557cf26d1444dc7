"""Initial weights: under which interval bounds neither explode nor vanish with depth, or the usual ones of plain training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import pi, sqrt

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Conv, Graph
from vsparse.recipe_train import Initialisation, Train
from vsparse.stages.train.objectives import objective_class


def initial_kind(spec: Train) -> Initialisation:
    """Returns the kind of a recipe's initial weights; "auto" is "interval" where the objective is certified, "he" otherwise.

    With train.start the weights stay as they were loaded: "module".
    """
    if spec.start:
        return "module"
    if spec.initialisation == "auto":
        return "interval" if objective_class(spec).certified else "he"
    return spec.initialisation


def initialise(
    graph: Graph, params: Mapping[str, Tensor], generator: torch.Generator, kind: Initialisation, frozen: Collection[str] = ()
) -> None:
    """Draws every Conv and Gemm weight and zeroes biases, in place.

    - interval: normal, standard deviation √(2π)/fan-in, so that the difference gain of a layer under interval propagation is 1 (Shi et
      al., Fast Certified Robust Training with Short Warmup, NeurIPS 2021, section 3.1);
    - he: normal, √(2/fan-in), so that ReLU layers keep the variance (He et al., ICCV 2015, equation 10);
    - glorot: uniform between ±√(6/(fan-in + fan-out)) (Glorot, Bengio, AISTATS 2010, equation 16);
    - module: all parameters stay as they are.

    Normalisation layers and tensors named in `frozen` stay as they are, and so do layers of fan-in 1, which scale and shift single values
    just as the former do.
    """
    if kind == "module":
        return
    with torch.no_grad():
        for node in graph.nodes:
            if not isinstance(node, Affine):
                continue
            weight = params[node.weight]
            fan_in = weight[0].numel()
            if fan_in == 1 or node.weight in frozen:
                continue
            if kind == "glorot":
                groups = node.groups if isinstance(node, Conv) else 1
                fan_out = weight[:, 0].numel() // groups
                limit = sqrt(6 / (fan_in + fan_out))
                weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * limit)
            else:
                deviation = sqrt(2 * pi) / fan_in if kind == "interval" else sqrt(2 / fan_in)
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
            if node.bias is not None and node.bias not in frozen:
                params[node.bias].zero_()
