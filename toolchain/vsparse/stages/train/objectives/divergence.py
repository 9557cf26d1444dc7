"""Kullback–Leibler divergence between the softmax outputs of two passes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Returns KL(p ‖ q) = Σ_j p_j · (ln p_j − ln q_j) in nats for each sample, [batch].

    p and q are the softmax of two logits [batch, classes]; gradients flow to both.
    """
    return F.kl_div(F.log_softmax(other, 1), F.log_softmax(reference, 1), reduction="none", log_target=True).sum(1)
