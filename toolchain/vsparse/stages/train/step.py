"""One batch: its loss, its gradients, the optimiser's step, and the running statistics of batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import torch
from torch import Tensor

from vsparse.draws import repeated
from vsparse.recipe_train import Train
from vsparse.stages.train.bounds.margins import Params
from vsparse.stages.train.objectives import Loss, Objective, TrainingBatch, make_objective
from vsparse.stages.train.objectives.loss import require_loss
from vsparse.stages.train.own import MOMENTUM
from vsparse.stages.train.process_group import ProcessGroup
from vsparse.stages.train.sparsifiers import Sparsifier
from vsparse.stages.train.state import TrainingState
from vsparse.stages.train.terms import ExtraTerms
from vsparse.stages.train.terms.certainty import AdversarialCertainty
from vsparse.stages.train.terms.weight_noise import WeightNoise
from vsparse.stages.train.terms.weight_perturbation import WeightPerturbation


class Stepper:
    """Computes losses and takes steps for the state of a training; objective and terms are made anew when its graph has changed."""

    def __init__(self, spec: Train, state: TrainingState, sparsifier: Sparsifier, group: ProcessGroup) -> None:
        self.spec, self.state, self.sparsifier, self.process_group = spec, state, sparsifier, group
        self._made = -1

    def prepare(self) -> None:
        """Makes objective and terms for the graph as it is now; before the first batch of what must not depend on earlier batches."""
        state = self.state
        if self._made != state.version:
            self._make()
            self._made = state.version
        self.objective.restart()

    def _make(self) -> None:
        state, terms = self.state, self.spec.terms
        self.objective: Objective = make_objective(self.spec, state.graph, state.params)
        self.terms = ExtraTerms(self.spec, state.graph)
        self.perturbation = WeightPerturbation(terms.weight_perturbation, state.graph) if terms.weight_perturbation > 0 else None
        self.noise = WeightNoise(terms.weight_noise, state.graph) if terms.weight_noise > 0 else None
        self.certainty = AdversarialCertainty(self.spec, state.graph) if terms.certainty > 0 else None
        leaves = state.optimiser.leaves
        if state.phase.trains == "parameters" and any(state.params[name] is not leaf for name, leaf in leaves.items()):
            # auto_LiRPA's objective trains tensors of its own
            state.begin(state.phase, state.optimiser.moments(), state.optimiser.steps)

    def loss(self, batch: TrainingBatch, fraction: float) -> tuple[Tensor, Loss]:
        """Returns the loss with its terms, at a fraction of the final radius, and what the objective found; weights are not perturbed."""
        return self._loss(self.sparsifier.effective(self.state), batch, fraction)

    def _loss(self, params: Params, batch: TrainingBatch, fraction: float) -> tuple[Tensor, Loss]:
        loss = self.objective(params, batch)
        require_loss(loss, self.spec.objective)
        return self.terms(params, batch, loss, fraction), loss

    def _perturbed(self, perturbation: WeightPerturbation, params: Params, batch: TrainingBatch, fraction: float, weight: float) -> Params:
        # The loss that is ascended and the one that is minimised make the same draws.
        with repeated(batch.generator):
            return perturbation(
                params, lambda at: self._loss(at, batch, fraction)[0], lambda gradients: self.process_group.all_reduce(gradients, weight)
            )

    def parts(self, batch: TrainingBatch) -> Iterator[tuple[TrainingBatch, float]]:
        """Yields the parts in which `train.accumulate` says that a batch is computed, each with its fraction of the samples."""
        count = min(self.spec.accumulate, len(batch.labels))
        if count == 1:
            yield batch, 1.0
            return
        for which in torch.arange(len(batch.labels)).tensor_split(count):
            part = batch.part(slice(int(which[0]), int(which[-1]) + 1))
            yield part, len(part.labels) / len(batch.labels)

    def _passes(self, batch: TrainingBatch) -> Iterator[tuple[Params, TrainingBatch, float]]:
        """Yields what a step adds up the gradients of: parameters, samples, and the weight of their loss, 1 in all."""
        if self.noise is None:
            for part, share in self.parts(batch):
                yield self.sparsifier.effective(self.state), part, share
            return
        draws = self.spec.terms.weight_noise_samples
        for _ in range(draws):
            noise = self.noise.draw(self.state.params, batch.generator)
            for part, share in self.parts(batch):
                yield self.noise.moved(self.sparsifier.effective(self.state), noise), part, share / draws

    def _less_certain(self, certainty: AdversarialCertainty, batch: TrainingBatch, rate: float, weight: float) -> None:
        """Takes a step that lowers the adversarial certainty; none on the processor where its gradient is not finite."""
        optimiser = self.state.optimiser
        optimiser.clear()
        for part, share in self.parts(batch):
            (share * certainty(self.sparsifier.effective(self.state), part)).backward()  # type: ignore[no-untyped-call]
        self.process_group.all_reduce(optimiser.gradients(), weight)
        self.sparsifier.before_step(self.state)
        norm = optimiser.step(rate, self.spec.gradient_clip)
        if norm.device.type != "cpu" or isfinite(float(norm)):
            self.sparsifier.after_step(self.state)

    def step(self, batch: TrainingBatch, fraction: float, rate: float, weight: float) -> tuple[Tensor, Tensor]:
        """Takes one step; returns the loss and the norm of its gradient, scalars where they were computed.

        On the processor the network is left as it was where one of them is not finite. An accelerator is not waited for: it takes such a
        step too, and whoever reads the norm must not keep the network.

        `weight` is this process's fraction of the group's batch: losses, gradients and batch statistics are averaged over the
        processes with it, as over the parts of a batch and draws of noise. A term of the loss that is not a mean over samples is averaged
        like one.
        """
        if self.certainty is not None and batch.epsilon > 0:
            self._less_certain(self.certainty, batch, rate, weight)
        optimiser = self.state.optimiser
        optimiser.clear()
        values: list[Tensor] = []
        statistics: dict[str, Tensor] = {}
        for params, part, share in self._passes(batch):
            if self.perturbation is not None:
                params = self._perturbed(self.perturbation, params, part, fraction, weight)
            value, loss = self._loss(params, part, fraction)
            value = share * value if share < 1 else value
            values.append(value.detach().clone())
            # Where a look costs nothing, a step that is of no use is not taken.
            unseen = value.device.type != "cpu"
            if unseen or isfinite(float(values[-1])):
                value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            for name, found in loss.statistics.items():
                mine = share * found.detach()
                statistics[name] = statistics[name] + mine if name in statistics else mine
        number = sum(values[1:], values[0])
        self.process_group.all_reduce([number, *optimiser.gradients(), *statistics.values()], weight)
        norm = torch.full_like(number, torch.nan)
        if unseen or isfinite(float(number)):
            self.sparsifier.before_step(self.state)
            norm = optimiser.step(rate, self.spec.gradient_clip)
        if unseen or isfinite(float(norm)):
            self.sparsifier.after_step(self.state)
            with torch.no_grad():
                for name, statistic in statistics.items():
                    self.state.params[name].lerp_(statistic, self.state.own.momenta.get(name, MOMENTUM))
        return number, norm
