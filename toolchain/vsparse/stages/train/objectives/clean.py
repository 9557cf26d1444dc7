"""The clean pass that most objectives begin with: logits, loss, and the batch-norm statistics that their other passes use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import BatchNorm, Graph
from vsparse.stages.train.bounds.margins import Params
from vsparse.stages.train.objectives.loss import TrainingBatch
from vsparse.stages.train.objectives.precision import forward


@dataclass(frozen=True)
class Clean:
    """Logits [batch, classes] (empty where nobody needs them), the mean cross-entropy (0 then), and what the other passes use.

    `statistics` are the means and variances of the batch by parameter name, `params` the parameters with these in place of the
    running ones: batch norm on clean statistics (Shi et al., NeurIPS 2021, section 3.2); where the batch asks for those of the
    population, the parameters as they are.
    """

    logits: Tensor
    loss: Tensor
    statistics: dict[str, Tensor]
    params: Mapping[str, Tensor]


def clean_pass(graph: Graph, params: Params, batch: TrainingBatch, always: bool = False, amp: bool = False) -> Clean:
    """Runs the clean batch where its loss counts (κ > 0), where batch norm needs its statistics, or `always`; with `amp` in bfloat16."""
    statistics: dict[str, Tensor] = {}
    if not (always or batch.kappa > 0 or any(isinstance(node, BatchNorm) for node in graph.nodes)):
        return Clean(batch.x.new_zeros(0), batch.x.new_zeros(()), statistics, params)
    logits = forward(graph, params, batch.x, amp, statistics)
    return Clean(logits, F.cross_entropy(logits, batch.labels), statistics, others(params, statistics, batch))


def others(params: Params, statistics: Mapping[str, Tensor], batch: TrainingBatch) -> Params:
    """Returns the parameters for all passes but the clean one: with the batch's statistics, or with the population's, which they hold."""
    return {**params, **statistics} if statistics and not batch.population else params
