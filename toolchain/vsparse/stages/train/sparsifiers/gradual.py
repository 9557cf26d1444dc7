"""Gradual magnitude pruning in one training (Zhu and Gupta, To prune or not to prune, arXiv 1710.01878), with regrowth."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vsparse.errors import InputError
from vsparse.recipe_train import Train
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import Dynamic
from vsparse.stages.train.state import TrainingState

# Emptying dead units changes what the others read, so that more of them may die; what a few attempts leave is little.
ATTEMPTS = 6


class Gradual(Dynamic):
    """Starts dense; every `thickening_length` epochs the items smallest in magnitude are deactivated, more each time.

    The density at epoch t before the freeze at T is d + (1 − d) · (1 − min(1, t / (reach · T)))³, d the final one (equation 1 of the paper,
    as densities). Magnitudes of units that no longer fire have no gradient and mean nothing: their weights go first.
    Unlike there, what was deactivated trains on and may come back until the freeze, as in VeriCompress: the gradient of the certified
    loss decides. The schedule of the radius runs at the same time, so this costs what one dense training does.
    """

    importances = ("magnitude", "sensitivity")

    @classmethod
    def require(cls, spec: Train) -> None:
        super().require(spec)
        if spec.sparse.importance == "sensitivity" and spec.optimizer == "sgd":
            raise InputError(
                'train.sparse.importance = "sensitivity" reads the second moment that train.optimizer = "adam" or "muon" keeps; set one of '
                'them, or importance to "magnitude"'
            )

    def density(self, at: EpochPosition) -> float:
        """Returns the fraction of the budget's measure that stays from this epoch on."""
        final = self.pattern.final_density
        return final + (1 - final) * (1 - min(1.0, at.inside / max(1.0, self.spec.sparse.reach * self.freeze_from))) ** 3

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if not self.moves(at):
            return
        if at.inside == self.freeze_from:
            state.fix(self.chosen(state, None, tools), self.pattern.structured)
        elif at.inside:
            state.masks = self.chosen(state, self.density(at), tools)
            self.pattern.deactivate(state.params, state.masks)

    def weighed(self, state: TrainingState) -> Mapping[str, Tensor]:
        """Returns what is ranked by magnitude: the parameters, or w · √v with Adam's running mean v of the squared gradient.

        Half the square is the loss that removing w costs at a minimum when the curvature is replaced by v (Optimal Brain Damage, LeCun,
        Denker, Solla, NeurIPS 1989, equation 4, with the empirical Fisher information).
        """
        if self.spec.sparse.importance == "magnitude":
            return state.params
        squares = state.optimiser.moments()["exp_avg_sq"]
        # Weights alone: v sees the scale of a batch norm behind a weight already, and would count it twice.
        return {name: state.params[name].detach() * squares[name].sqrt() for name in self.pattern.weights}

    def chosen(self, state: TrainingState, density: float | None, tools: Tools) -> Masks:
        """Returns masks by magnitude that spend nothing on units which, with these masks, never fire."""
        dead: dict[str, Tensor] = {}
        weighed = self.weighed(state)
        for _ in range(ATTEMPTS):
            masks = self.pattern.choose(weighed, density, dead)
            found = tools.dead_units(self.pattern.groups, masks)
            wasted = {name: quiet for name, quiet in found.items() if name not in dead or bool((quiet & ~dead[name]).any())}
            if not wasted:
                break
            dead |= {name: quiet | dead[name] if name in dead else quiet for name, quiet in wasted.items()}
        return masks
