"""HYDRA: pruning by scores that are trained on the robust loss (Sehwag, Wang, Mittal, Jana, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.phases import EpochPosition, Phase
from vsparse.stages.train.sparsifiers.base import Sparsifier, Tools
from vsparse.stages.train.sparsifiers.magnitude import fine_tuning
from vsparse.stages.train.state import SCORES, TrainingState


class Hydra(Sparsifier):
    """Trains dense; then trains one score for each weight, all weights frozen; then fine-tunes the weights with the best scores.

    In phase "prune" the network's weights are w ⊙ m, where m keeps the items with the largest |s| (the paper's section 3). The
    gradient passes m straight through to |s|: ∂L/∂s = ∂L/∂(w ⊙ m) · w · sign(s), as in the paper's code. Scores start scaled:
    s = √(6 / fan-in) · w / max|w| in each layer, so the first mask is that of magnitude pruning. Biases and batch norm's
    scales are frozen with the weights; batch norm's statistics follow the network as it is pruned.

    The paper: 100 epochs of SGD at 0.1 with a cosine, 20 of pruning at 0.1, 100 of fine-tuning at 0.01, one density for all
    layers (allocation "uniform", conv_share 1). Without fine-tuning the last epoch of "prune" gives the result. Raises InputError
    with auto_LiRPA, which bounds weights of its own.
    """

    def __init__(self, spec: Train, graph: Graph) -> None:
        super().__init__(spec, graph)
        if spec.engine == "auto_lirpa":
            raise InputError('method "hydra" trains scores, which auto_LiRPA does not see; set train.engine = "vsparse"')

    def phases(self) -> tuple[Phase, ...]:
        sparse = self.spec.sparse
        prune = Phase("prune", sparse.prune_epochs, sparse.prune_learning_rate, ramp=False, trains="scores")
        tuning = (fine_tuning(self.spec, "fine-tune"),) if sparse.finetune_epochs else ()
        return (*super().phases(), prune, *tuning)

    def settled(self, at: EpochPosition) -> bool:
        return at.index == 2

    def begin_epoch(self, state: TrainingState, at: EpochPosition, tools: Tools) -> None:
        if at.inside:
            return
        if at.index == 1:
            state.extras = {f"{SCORES}{name}": scaled_scores(state.params[name].detach()) for name in self.pattern.weights}
            state.begin(at.phase)  # so that it trains the scores
        elif at.index == 2:
            masks = self.chosen(state)
            state.extras = {}
            state.fix(masks, self.pattern.structured)

    def kept(self, state: TrainingState, at: EpochPosition) -> dict[str, Tensor]:
        params = state.full.tensors()
        return {f"{SCORES}{name}": params[name] for name in self.pattern.weights} if at.index == 1 else {}

    def chosen(self, state: TrainingState) -> Masks:
        """Returns the masks of the items with the largest |score|."""
        scores = self.pattern.items({name: state.extras[f"{SCORES}{name}"].detach().abs() for name in self.pattern.weights})
        return self.pattern.masks(self.pattern.top(scores, self.pattern.counts(scores=scores)), state.params)

    def effective(self, state: TrainingState) -> Mapping[str, Tensor]:
        """Returns the masked parameters in phase "prune", and leaves their masks in the state: the scores move with every step."""
        if state.phase.trains != "scores":
            return state.params
        state.masks = self.chosen(state)
        found = dict(state.params)
        for name, mask in state.masks.entries.items():
            score = state.extras.get(f"{SCORES}{name}")
            found[name] = state.params[name] * (mask.float() if score is None else straight_through(mask, score))
        return found


def scaled_scores(weight: Tensor) -> Tensor:
    """Returns √(6 / fan-in) · w / max|w|, shaped like the weight; 0 where all of it is 0."""
    largest = weight.abs().max()
    return weight * (sqrt(6 / weight[0].numel()) / largest) if largest > 0 else weight.clone()


def straight_through(mask: Tensor, score: Tensor) -> Tensor:
    """Returns the mask, exactly 0 and 1, with the gradient of |score|."""
    size = score.abs()
    return mask.float() + (size - size.detach())
