"""Adam and SGD over named tensors, with a state that can be cut to a packed network and written to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vsparse.recipe_train import Train

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
Moments = dict[str, dict[str, Tensor]]


class Optimiser:
    """The recipe's optimiser for the tensors `leaves` (by name), which it makes require gradients.

    `moments` holds one dict of tensors for each quantity that the method keeps (MOMENTS), and `steps` how many steps they come from.
    """

    def __init__(self, spec: Train, leaves: Mapping[str, Tensor], moments: Moments | None = None, steps: int = 0) -> None:
        self.leaves = dict(leaves)
        self.kinds = MOMENTS[spec.optimizer]
        self.steps = steps
        tensors = [{"params": [leaf.requires_grad_(True) for leaf in self.leaves.values()]}]  # a group: it may be empty
        if spec.optimizer == "adam":
            self.method: torch.optim.Optimizer = torch.optim.Adam(tensors, lr=spec.learning_rate, weight_decay=spec.weight_decay)
        else:
            self.method = torch.optim.SGD(
                tensors, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.momentum > 0
            )
        if moments is not None and steps:
            for name, leaf in self.leaves.items():
                state: dict[str, Tensor] = {kind: moments[kind][name].clone() for kind in self.kinds}
                if spec.optimizer == "adam":
                    state["step"] = torch.tensor(float(steps))
                self.method.state[leaf] = state

    def step(self, rate: float, clip: float) -> float:
        """Moves the tensors along the gradients they hold, cut to the l2 norm `clip`, unless these are not finite; returns their norm."""
        for group in self.method.param_groups:
            group["lr"] = rate
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), clip))
        if norm == norm and norm != float("inf"):
            self.method.step()
            self.steps += 1
        return norm

    def clear(self) -> None:
        """Forgets the gradients."""
        self.method.zero_grad(set_to_none=True)

    def moments(self) -> Moments:
        """Returns what the method keeps, zeros where it keeps nothing yet."""
        found: Moments = {}
        for kind in self.kinds:
            found[kind] = {}
            for name, leaf in self.leaves.items():
                value = self.method.state[leaf].get(kind) if leaf in self.method.state else None
                found[kind][name] = torch.zeros_like(leaf) if value is None else value
        return found
