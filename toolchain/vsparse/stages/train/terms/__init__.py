"""Further terms of the loss, each in its own file; `ExtraTerms` adds those that a recipe asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.objectives.clean import others
from vsparse.stages.train.objectives.loss import Loss, TrainingBatch
from vsparse.stages.train.terms.nrs import nrs_loss
from vsparse.stages.train.terms.warm_up import warm_up_regulariser


class ExtraTerms:
    """Adds the terms of a recipe to an objective's loss: warm-up regulariser, NRSLoss, L1."""

    def __init__(self, spec: Train, graph: Graph) -> None:
        self.spec = spec
        self.margins = Margins(graph)
        self.weights = list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))

    def wants_enclosure(self, fraction: float) -> bool:
        """Whether a term reads interval bounds at this fraction of the final radius."""
        return self._regulariser(fraction) > 0 or self._nrs(fraction) > 0

    def _regulariser(self, fraction: float) -> float:
        return self.spec.regulariser * (1 - fraction)

    def _nrs(self, fraction: float) -> float:
        """The weight of NRSLoss: none at radius 0, where no neuron is unstable."""
        return self.spec.terms.nrs if fraction > 0 else 0.0

    def __call__(self, params: Params, batch: TrainingBatch, loss: Loss, fraction: float) -> Tensor:
        """Returns the loss with every term added, a scalar."""
        total = loss.value
        if self.wants_enclosure(fraction):
            enclosure = loss.enclosure
            if enclosure is None:
                enclosure = self.margins.enclosure(others(params, loss.statistics, batch), training_box(batch.x, batch.epsilon))
            if self._regulariser(fraction) > 0:
                total = total + self._regulariser(fraction) * warm_up_regulariser(self.margins.trunk, enclosure)
            if self._nrs(fraction) > 0:
                total = total + self._nrs(fraction) * nrs_loss(self.margins.trunk, params, enclosure, self.spec.terms.nrs_scale)
        if self.spec.l1 > 0:
            total = total + self.spec.l1 * torch.stack([params[name].abs().sum() for name in self.weights]).sum()
        return total
