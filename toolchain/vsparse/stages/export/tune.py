"""A quantised network trained on as it rounds: a short certified fine-tuning on the grids of its file, and whether it is better for it.

Quantisation-aware training (Jacob et al., arXiv 1712.05877, section 3) with the loss that the recipe trained with. What comes of it is
compared on validation samples with what it began from; certificates rest on none of this, as they are about the file that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, isfinite, pi

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.data import Dataset
from vsparse.data.augment import augment
from vsparse.errors import InputError
from vsparse.graph import Graph
from vsparse.graph.grids import STYLES
from vsparse.graph.ir import Affine
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Recipe
from vsparse.schema import parse_fraction
from vsparse.stages.export.fit import Fitted, MarginLoss
from vsparse.stages.train.determinism import deterministic, generator
from vsparse.stages.train.objectives import TrainingBatch, make_objective
from vsparse.stages.train.objectives.fake_quantisation import FakeQuantised

# The rate at the start, as a fraction of the recipe's; it falls to 0 by a cosine.
RATE = 0.2
# Where the recipe leaves it open: this fraction of its epochs, and no more than so many.
FRACTION, MOST = 0.25, 100
# Purposes of random numbers, apart from those of training.
BATCHES, OBJECTIVE = 101, 102

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tuning:
    """How a quantised network is trained on: the recipe, the samples that it is judged by, and who hears of epochs (done, of how many)."""

    recipe: Recipe
    validation: Dataset
    progress: Progress | None = None

    @property
    def epochs(self) -> int:
        """How many epochs: what export.int8_epochs says, or a fraction of train.epochs."""
        given, spec = self.recipe.export.int8_epochs, self.recipe.train
        return min(MOST, round(spec.epochs * FRACTION)) if given < 0 else given

    def trained(self, start: Fitted, training: Dataset, contract: str, floats: frozenset[str]) -> Graph:
        """Returns the float32 network whose quantisation was trained, from `start.source`; zeros of weights stay zeros.

        `contract` gives the style of the grids, and `floats` names affine nodes that stay in float32. Where the loss is no longer finite
        training ends, with the parameters of the last whole epoch.
        """
        graph, spec = start.source, self.recipe.train
        # Bounds of auto_LiRPA train tensors of their own, which no file has.
        spec = spec.model_copy(update={"engine": "vsparse", "amp": False})
        weights = {node.weight for node in graph.nodes if isinstance(node, Affine)}
        with deterministic():
            leaves = {name: value.requires_grad_() for name, value in graph.tensors().items()}
            masks = {name: (leaves[name] != 0).to(torch.float32) for name in weights}
            objective = FakeQuantised(spec, graph, leaves, make_objective, style=STYLES[contract], floats=floats, shares=start.shares)
            optimiser = torch.optim.Adam(leaves.values(), lr=0.0)
            count, epsilon = -(-len(training) // spec.batch_size), float(parse_fraction(spec.epsilon))
            last = graph
            for epoch in range(self.epochs):
                objective.restart()
                first, draws = (generator(spec.seed, epoch, purpose) for purpose in (BATCHES, OBJECTIVE))
                order = torch.randperm(len(training), generator=first)
                for index, batch in enumerate(order.tensor_split(count)):
                    chosen = np.asarray(batch.numpy(), dtype=np.int64)
                    x = augment(torch.from_numpy(training.inputs(chosen)), self.recipe.data, draws).reshape(-1, *graph.input_shape)
                    labels = torch.from_numpy(training.labels[chosen])
                    # Losses whose weights grow have those of the training's end.
                    given = TrainingBatch(x, labels, epsilon, epsilon, spec.kappa_end, False, draws, float(spec.epochs))
                    loss = objective(leaves, given).value
                    optimiser.zero_grad()
                    if not isfinite(float(loss.detach())):
                        return last
                    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                    torch.nn.utils.clip_grad_norm_(leaves.values(), spec.gradient_clip)
                    done = (epoch + index / count) / self.epochs
                    for group in optimiser.param_groups:
                        group["lr"] = RATE * spec.learning_rate * (1 + cos(pi * done)) / 2
                    optimiser.step()
                    with torch.no_grad():
                        for name, mask in masks.items():
                            leaves[name].mul_(mask)
                made = {name: _array(value) for name, value in leaves.items()}
                if not all(np.isfinite(value).all() for value in made.values()):
                    return last
                last = graph.with_params(made)
                if self.progress is not None:
                    self.progress(epoch + 1, self.epochs)
        return last


def better(graph: Graph, found: Sequence[Fitted], validation: Dataset, perturbation: PerturbationSet) -> Fitted:
    """Returns the one of the quantised networks, made of `graph`, whose margins on the samples are best; the first of equal ones."""
    if not len(validation):
        raise InputError("fine-tuning of int8 is judged on validation samples, and there are none; set export.int8_epochs = 0")
    samples = validation.inputs().reshape(len(validation), *graph.input_shape)
    judge = MarginLoss(graph, samples, perturbation, len(found), validation.labels, counts=True)
    return min(found, key=lambda one: judge(one.quantised))


def _array(value: torch.Tensor) -> NDArray[np.float32]:
    return value.detach().numpy().copy()
