"""Gaussian loss smoothing: the loss is averaged over weights with noise."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.draws import Draws, normal
from vsparse.graph.ir import Affine, Graph
from vsparse.stages.train.bounds.margins import Params


class WeightNoise:
    """Draws of the noise ξ in E[L(w + ξ)], ξ ~ N(0, σ²I): the mean of ∇L(w + ξ) over them estimates the gradient of the smoothed loss.

    Randomised gradient smoothing (Balauca et al., arXiv 2403.07095): smooth losses are easier to train where bounds are tight. Weights of
    Conv and Gemm nodes have noise; biases and batch norm stay, and weights that are zero: what is pruned is not there to be moved.
    """

    def __init__(self, sigma: float, graph: Graph) -> None:
        self.sigma = sigma
        self.weights = list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))

    def draw(self, params: Params, draws: Draws) -> dict[str, Tensor]:
        """Returns σ · N(0, 1) for every weight by name, shaped like it, on its device."""
        return {name: self.sigma * normal(draws, tuple(params[name].shape), params[name].device) for name in self.weights}

    def moved(self, params: Params, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `params` with the noise on its weights; gradients pass to the weights as they were."""
        with torch.no_grad():
            there = {name: value * (params[name] != 0) for name, value in noise.items()}
        return {**params, **{name: params[name] + value for name, value in there.items()}}
