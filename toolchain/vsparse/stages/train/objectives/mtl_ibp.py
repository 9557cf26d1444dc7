"""MTL-IBP: a convex combination of the adversarial and the interval loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vsparse.stages.train.objectives.expressive import ExpressiveObjective


class CombinedLossesObjective(ExpressiveObjective):
    """κ · CE(f(x), y) + (1 − κ) · [(1 − α) · CE(f(x'), y) + α · CE(−z̲, y)] (De Palma et al., ICLR 2024, section 4: MTL-IBP).

    x' is the point of an attack on B(x, ε), z̲_j the lower interval bound of logit_y − logit_j over B(x, ε). α = 0 is adversarial training,
    α = 1 interval bound propagation. The enclosure is that of B(x, ε).
    """

    report = "Trained for certification, with a mixture of an attack's and an interval bound's loss (MTL-IBP) inside the loss."

    @staticmethod
    def combination(margins: Tensor | None, bounds: Tensor | None, labels: Tensor, alpha: float) -> Tensor:
        """Returns (1 − α) · CE(−margins, labels) + α · CE(−bounds, labels)."""
        parts = [weight * F.cross_entropy(-part, labels) for weight, part in ((1 - alpha, margins), (alpha, bounds)) if part is not None]
        return sum(parts[1:], parts[0])
