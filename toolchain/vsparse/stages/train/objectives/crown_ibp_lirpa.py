"""CROWN-IBP with loss fusion: auto_LiRPA bounds the cross-entropy itself, and interval bounds take over as the radius grows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse import second_opinion
from vsparse.errors import InputError
from vsparse.graph import to_torch
from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Margins, Params, training_box
from vsparse.stages.train.objectives.clean import clean_pass
from vsparse.stages.train.objectives.crown_ibp import CrownIntervalObjective, crown_weight, mixed
from vsparse.stages.train.objectives.loss import Loss, TrainingBatch


class LirpaCrownObjective(CrownIntervalObjective):
    """log(β · CROWN upper bound + (1 − β) · interval upper bound) of Σ_j exp(logit_j − logit_label), averaged over the batch.

    β = (ε_max − ε)/ε_max (Zhang et al., CROWN-IBP, ICLR 2020; loss fusion: Xu et al., NeurIPS 2020, section 3.3). The backward bound
    is auto_LiRPA's, on its own interval bounds of the hidden layers; the interval part is ours, with the last layer folded into the
    margins, so that with β = 0 this is the interval objective. The network's tensors in `params` are replaced by those that auto_LiRPA
    differentiates. Raises InputError for batch norm, for weights that two layers share and for a network that auto_LiRPA cannot read.
    """

    def __init__(self, spec: Train, graph: Graph, params: dict[str, Tensor]) -> None:
        self.graph, self.margins = graph, Margins(graph)
        if any(isinstance(node, BatchNorm) for node in graph.nodes):
            raise InputError('train.engine = "auto_lirpa" is for networks without batch norm; use cnn4, mlp or train.engine = "vsparse"')
        if self.margins.last is None or self.margins.last.bias is None:
            raise InputError(
                'train.engine = "auto_lirpa" is for networks that end in a linear layer with a bias; use train.engine = "vsparse"'
            )
        module = to_torch(graph.with_params({name: value.detach().numpy() for name, value in params.items()}))
        _share(graph, module, params)
        example = torch.zeros(2, *graph.input_shape), torch.zeros(2, dtype=torch.int64)
        try:
            self.fused = second_opinion.fused_loss(module, example)
        except second_opinion.NoOpinionError as error:
            raise InputError(f'train.engine = "auto_lirpa": {error}; use train.engine = "vsparse"') from error

    def __call__(self, params: Params, batch: TrainingBatch) -> Loss:
        clean = clean_pass(self.graph, params, batch)
        if batch.kappa == 1 and not batch.enclosure:
            return Loss(clean.loss)
        box = training_box(batch.x, batch.epsilon)
        enclosure = self.margins.enclosure(params, box)
        worst = F.cross_entropy(-self.margins.lower(params, enclosure, batch.labels), batch.labels, reduction="none")
        beta = crown_weight(batch.epsilon, batch.epsilon_max)
        if beta > 0:
            worst = mixed(worst, self.crown(batch.x, box, batch.labels), beta)
        return Loss(batch.kappa * clean.loss + (1 - batch.kappa) * worst.mean(), enclosure=enclosure)

    def crown(self, x: Tensor, box: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Returns auto_LiRPA's upper bound of the cross-entropy of each sample over the box, [batch]."""
        return self.fused.upper(x, box, labels)


def _share(graph: Graph, module: nn.Module, params: dict[str, Tensor]) -> None:
    """Puts the module's own parameters into `params`, by the graph's names."""
    layers: Mapping[str, nn.Module] = dict(zip((node.name for node in graph.nodes), module.get_submodule("layers").children(), strict=True))
    weights = [node.weight for node in graph.nodes if isinstance(node, Affine)]
    if len(set(weights)) < len(weights):
        raise InputError('train.engine = "auto_lirpa" is for networks whose layers share no weights; use train.engine = "vsparse"')
    for node in graph.nodes:
        if isinstance(node, Affine):
            layer = next(part for part in layers[node.name].modules() if isinstance(part, nn.Conv2d | nn.Linear))
            params[node.weight] = layer.weight
            if node.bias is not None:
                assert layer.bias is not None
                params[node.bias] = layer.bias
