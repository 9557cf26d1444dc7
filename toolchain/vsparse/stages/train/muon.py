"""Muon: steps of weight matrices made orthogonal, Adam's for all else (Jordan et al. 2024; Liu et al., arXiv 2502.16982)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic iteration (Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024), and how often.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
# Root mean square of the entries of a step of an orthogonal matrix, as a fraction of the rate; Adam's is about the same.
ROOT_MEAN_SQUARE = 0.2
BETAS, TINY = (0.9, 0.999), 1e-8


def orthogonalised(matrix: Tensor) -> Tensor:
    """Returns about U·Vᵀ of the singular value decomposition U·S·Vᵀ of a [rows, columns] matrix; 0 for a zero matrix.

    Five steps of X ← a·X + (b·X·Xᵀ + c·(X·Xᵀ)²)·X from the matrix scaled to Frobenius norm 1 (Jordan et al. 2024). They bring singular
    values of 0.01 and more to between 0.68 and 1.14, which is all that a step needs.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def is_matrix(leaf: Tensor) -> bool:
    """Whether a tensor, a kernel's inputs and positions taken together, is a matrix of more than one column and row."""
    return leaf.dim() > 1 and leaf.shape[0] > 1 and leaf[0].numel() > 1


class Muon(torch.optim.Optimizer):
    """Moves matrices by 0.2 · √max(rows, columns) · rate along orthogonalised momentum, with Nesterov's look-ahead; the rest by Adam.

    With the factor (Liu et al., section 2.2) entries move by about as much as under Adam, so that the same rates do for both. A gradient
    dominated by few directions moves a matrix in the others as well. `weight_decay` λ of a group multiplies its tensors by 1 − rate · λ
    (as there). Both moments are kept of every tensor, as Adam keeps them: the second one moves no matrix, but says how
    sensitive the loss is to a weight.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given, so no loss is returned
        """Takes a step with the gradients that the tensors hold; those without one stay."""
        for group in self.param_groups:
            for leaf in group["params"]:
                if leaf.grad is not None:
                    leaf.mul_(1 - group["lr"] * group["weight_decay"])
                    self._move(leaf, leaf.grad, group["lr"])

    def _move(self, leaf: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[leaf]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(leaf), exp_avg_sq=torch.zeros_like(leaf))
        state["step"] += 1
        count, first, second = float(state["step"]), state["exp_avg"], state["exp_avg_sq"]
        second.lerp_(gradient.square(), 1 - BETAS[1])
        if is_matrix(leaf):
            first.lerp_(gradient, 1 - MOMENTUM)
            ahead = gradient.lerp(first, MOMENTUM).flatten(1)
            leaf.add_(orthogonalised(ahead).reshape(leaf.shape), alpha=-rate * ROOT_MEAN_SQUARE * sqrt(max(ahead.shape)))
            return
        first.lerp_(gradient, 1 - BETAS[0])
        scale = (second / (1 - BETAS[1] ** count)).sqrt_().add_(TINY)
        leaf.addcdiv_(first, scale, value=-rate / (1 - BETAS[0] ** count))
