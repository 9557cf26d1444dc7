"""Adversarial weight perturbation: the loss is taken where a small step has made the weights worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph
from vsparse.stages.train.bounds.margins import Params


class WeightPerturbation:
    """Moves the weights of Conv and Gemm nodes up the loss before it is minimised (Wu et al., NeurIPS 2020, section 4).

    min over w of max over ‖v_l‖ ≤ γ‖w_l‖ of L(w + v), l2 norms in each layer l, with one step of ascent from v = 0:
    v_l = γ · ‖w_l‖ · ∇_l L/‖∇_l L‖.
    Biases and batch norm stay, and weights that are zero: what is pruned is not there to be perturbed.
    """

    def __init__(self, size: float, graph: Graph) -> None:
        self.size = size
        self.weights = list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))

    def __call__(
        self, params: Params, loss_of: Callable[[Params], Tensor], average: Callable[[list[Tensor]], None] | None = None
    ) -> dict[str, Tensor]:
        """Returns `params` with each weight moved by a constant v_l, so that gradients pass to the weights as they were.

        `loss_of` maps parameters to a scalar; it is called once, with detached values, under gradients. `average` averages the gradients
        in place over the processes that train together, so that all perturb alike.
        """
        leaves = {name: params[name].detach().requires_grad_() for name in self.weights}
        fixed = {name: value.detach() for name, value in params.items()}
        with torch.enable_grad():
            found = torch.autograd.grad(loss_of({**fixed, **leaves}), list(leaves.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
        if average is not None:
            average(list(gradients.values()))
        moved = dict(params)
        for name, gradient in gradients.items():
            weight = fixed[name]
            step = gradient * (weight != 0)
            # A layer without gradient stays; the division of zero by zero would not.
            length = step.norm()
            moved[name] = params[name] + step * torch.where(length > 0, self.size * weight.norm() / length, 0.0)
        return moved
