"""The loss of adversarial training once the attack has found its points: clean and adversarial cross-entropy, mixed by κ."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vsparse.graph.ir import Graph
from vsparse.stages.train.objectives.clean import Clean
from vsparse.stages.train.objectives.loss import Loss, TrainingBatch
from vsparse.stages.train.objectives.precision import forward


def mixed_loss(graph: Graph, clean: Clean, batch: TrainingBatch, points: Tensor, amp: bool) -> Loss:
    """Returns κ · CE(clean) + (1 − κ) · CE(f(points)), the second pass on the clean pass's batch-norm statistics."""
    adversarial = F.cross_entropy(forward(graph, clean.params, points, amp), batch.labels)
    if batch.kappa == 0:
        return Loss(adversarial, clean.statistics)
    return Loss(batch.kappa * clean.loss + (1 - batch.kappa) * adversarial, clean.statistics)
