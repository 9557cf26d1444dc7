"""Exp-IBP: the geometric mean of the adversarial and the interval loss, weighted by α."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.stages.train.objectives.expressive import ExpressiveObjective


class GeometricLossesObjective(ExpressiveObjective):
    """κ · CE(f(x), y) + (1 − κ) · mean of CE(f(x'), y)^(1 − α) · CE(−z̲, y)^α over samples (De Palma et al., ICLR 2024, section 4: Exp-IBP).

    x' is the point of an attack on B(x, ε), z̲_j the lower interval bound of logit_y − logit_j over B(x, ε). α = 0 is adversarial training,
    α = 1 interval bound propagation. The enclosure is that of B(x, ε).
    """

    report = "Trained for certification, with the geometric mean of an attack's and an interval bound's loss (Exp-IBP) inside the loss."

    @staticmethod
    def combination(margins: Tensor | None, bounds: Tensor | None, labels: Tensor, alpha: float) -> Tensor:
        """Returns the mean over samples of CE(−margins, labels)^(1 − α) · CE(−bounds, labels)^α.

        The power of a loss has no finite derivative at 0. Losses below the unit roundoff, which are rounding alone, count as that.
        """
        total = torch.zeros(len(labels), device=labels.device)
        for weight, part in ((1 - alpha, margins), (alpha, bounds)):
            if part is not None:
                loss = F.cross_entropy(-part, labels, reduction="none")
                total = total + weight * loss.clamp_min(torch.finfo(loss.dtype).eps).log()
        return total.exp().mean()
