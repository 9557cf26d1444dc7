"""Gradual magnitude pruning in one training (Zhu and Gupta, To prune or not to prune, arXiv 1710.01878), with regrowth."""

from __future__ import annotations

from vsparse.stages.train.plan import Moment
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import Dynamic
from vsparse.stages.train.state import State


class Gradual(Dynamic):
    """Starts dense; every `thickening_length` epochs the items smallest in magnitude are deactivated, more each time.

    The density at epoch t before the freeze at T is d + (1 − d) · (1 − t/T)³, d the final one (equation 1 of the paper, as densities).
    Unlike there, what was deactivated trains on and may come back until the freeze, as in VeriCompress: the gradient of the certified
    loss decides. The schedule of the radius runs at the same time, so this costs what one dense training does.
    """

    def density(self, at: Moment) -> float:
        """Returns the share of the budget's measure that stays from this epoch on."""
        final = self.pattern.final_density
        return final + (1 - final) * (1 - min(1.0, at.inside / max(1, self.freeze_from))) ** 3

    def begin_epoch(self, state: State, at: Moment, tools: Tools) -> None:
        if not self.moves(at):
            return
        if at.inside == self.freeze_from:
            state.fix(self.pattern.choose(state.params, None, tools.silent(self.pattern.groups)), self.pattern.structured)
        elif at.inside:
            state.masks = self.pattern.choose(state.params, self.density(at), tools.silent(self.pattern.groups))
            self.pattern.deactivate(state.params, state.masks)
