"""CC-IBP: the cross-entropy of a convex combination of adversarial margins and their interval bounds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vsparse.stages.train.objectives.expressive import ExpressiveObjective


class CombinedMarginsObjective(ExpressiveObjective):
    """κ · CE(f(x), y) + (1 − κ) · CE(−[(1 − α) · z(x') + α · z̲], y) (De Palma et al., ICLR 2024, section 4: CC-IBP).

    z_j = logit_y − logit_j at the point x' of an attack on B(x, ε), z̲_j its lower interval bound over B(x, ε). α = 0 is adversarial
    training, α = 1 interval bound propagation. The enclosure is that of B(x, ε).
    """

    report = "Trained for certification, with a mixture of attacked and interval-bounded outputs (CC-IBP) inside the loss."

    @staticmethod
    def combination(margins: Tensor | None, bounds: Tensor | None, labels: Tensor, alpha: float) -> Tensor:
        """Returns CE(−[(1 − α) · margins + α · bounds], labels)."""
        parts = [weight * part for weight, part in ((1 - alpha, margins), (alpha, bounds)) if part is not None]
        return F.cross_entropy(-sum(parts[1:], parts[0]), labels)
