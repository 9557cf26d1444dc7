"""Adam, SGD and Muon over named tensors, with a state that can be cut to a packed network and written to a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from vsparse.recipe_train import Train
from vsparse.stages.train.muon import Muon

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "muon": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
Moments = dict[str, dict[str, Tensor]]


class Optimiser:
    """The recipe's optimiser for the tensors `leaves` (by name), which it makes require gradients.

    Weight decay λ adds λ · w to the gradient of each weight (l2, as both methods of the sources do it, not AdamW's), after clipping, and
    to nothing else: biases and the scales and shifts of batch norm, the vectors among the leaves, are not decayed (Goyal et al., arXiv
    1706.02677, section 5.1); Muon shrinks the same weights themselves. A weight that is 0 with no gradient and no momentum stays 0, but
    not under Muon, which moves whole matrices: there the caller enforces masks. `moments` holds one dict of tensors for each quantity that
    the method keeps (MOMENTS), and `steps` how many steps they come from.
    """

    def __init__(self, spec: Train, leaves: Mapping[str, Tensor], moments: Moments | None = None, steps: int = 0) -> None:
        self.leaves = dict(leaves)
        self.kinds = MOMENTS[spec.optimizer]
        self.steps = steps
        tensors = [leaf.requires_grad_(True) for leaf in self.leaves.values()]
        decayed, plain = ([leaf for leaf in tensors if (leaf.dim() > 1) == wanted] for wanted in (True, False))
        # Groups may be empty: a phase that trains scores begins before there are any.
        groups = [{"params": part, "weight_decay": decay} for part, decay in ((decayed, spec.weight_decay), (plain, 0.0))]
        if spec.optimizer == "adam":
            self.method: torch.optim.Optimizer = torch.optim.Adam(groups, lr=spec.learning_rate, fused=True)
        elif spec.optimizer == "muon":
            self.method = Muon(groups, lr=spec.learning_rate)
        else:
            nesterov = spec.nesterov and spec.momentum > 0
            self.method = torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=nesterov)
        if moments is not None and steps:
            for name, leaf in self.leaves.items():
                state: dict[str, Tensor] = {kind: moments[kind][name].clone() for kind in self.kinds}
                if "exp_avg_sq" in self.kinds:
                    # Where torch keeps it: a fused Adam beside the tensor, Muon on the processor.
                    state["step"] = torch.full((), float(steps), device=leaf.device if spec.optimizer == "adam" else None)
                self.method.state[leaf] = state

    def gradients(self) -> list[Tensor]:
        """Returns the gradient of every leaf, zeros where the loss did not depend on one: all leaves take every step."""
        found = []
        for leaf in self.leaves.values():
            if leaf.grad is None:
                leaf.grad = torch.zeros_like(leaf)
            found.append(leaf.grad)
        return found

    def step(self, rate: float, clip: float) -> Tensor:
        """Moves the tensors along the gradients they hold, cut to the l2 norm `clip`; returns their norm, a scalar beside them.

        On the processor nothing moves where the norm is not finite; an accelerator is not waited for.
        """
        for group in self.method.param_groups:
            group["lr"] = rate
        self.gradients()
        norm = torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), clip)
        if norm.device.type != "cpu" or isfinite(float(norm)):
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
