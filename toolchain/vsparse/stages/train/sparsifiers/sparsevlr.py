"""Search for a certified sparse network between thickening and pruning, after SparseVLR and VeriSparse (arXiv 2211.09945 v1–v5)."""

from __future__ import annotations

from math import ceil

from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.dynamic import GROWTH_BATCHES, Dynamic, forget_grown
from vsparse.stages.train.state import TrainingState


class SparseVLR(Dynamic):
    """Starts from a random sparse network, lets it grow denser by the certified gradient, and prunes it back by magnitude.

    What Kaur and Salekin publish of versions 1–5: dynamic sparse training under a verified objective, no dense model before it,
    a random sparse start (v5), and a cycle whose length later code calls `thickening_length`. How much denser the network
    gets and by which score it grows is not in what we could read (abstracts, and code of v7 alone); here it is decided so:

    before every `thickening_length`-th epoch until `freeze`,
    1. prune: each layer keeps its budget of items, the largest in magnitude;
    2. thicken: each layer of A active items gains the ⌈f(t) · A⌉ inactive ones with the largest score under
       |∂L/∂w| of the training loss (Dynamic.fraction gives f, GROWTH_BATCHES batches the gradient), which start at 0.

    So a grown weight has a whole period to prove itself before it competes by magnitude (RigL swaps at once), and the network
    trained is never denser than 1 + `drop` of the budget (vericompress.py trains all weights between two choices). Of a removed channel
    the filter is kept, unread, as what it would grow back with: its score is ‖filter‖ · ‖gradient of the weights that read it‖.
    """

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if not self.moves(at):
            return
        masks = self.pattern.choose(state.params) if at.epoch else self.random(state, tools)
        if at.inside == self.freeze_from:
            state.fix(masks, self.pattern.structured)
            return
        self.pattern.deactivate(state.params, masks)
        if at.epoch:
            masks = self._thickened(state, masks, self.fraction(at), tools)
            forget_grown(state, masks)
        state.masks = masks

    def before_step(self, state: TrainingState) -> None:
        state.mask_gradients()

    def after_step(self, state: TrainingState) -> None:
        if state.fixed:
            state.enforce()
        else:
            self.pattern.deactivate(state.params, state.masks)

    def _thickened(self, state: TrainingState, masks: Masks, fraction: float, tools: Tools) -> Masks:
        gradients = tools.gradients(GROWTH_BATCHES)
        # An inactive entry has either a weight (the filter of a removed channel) or a gradient, so the sum is whichever it has.
        saliency = {name: value.detach().abs() for name, value in state.params.items()}
        saliency |= {name: saliency[name] + value.abs() for name, value in gradients.items()}
        scores, active = self.pattern.items(saliency), self.pattern.active(masks)
        wanted = {name: scores[name].masked_fill(on, float("inf")) for name, on in active.items()}
        counts = {name: int(on.sum()) for name, on in active.items()}
        more = {name: min(active[name].numel(), count + ceil(fraction * count - 1e-9)) for name, count in counts.items()}
        return self.pattern.masks(self.pattern.top(wanted, more), state.params)
