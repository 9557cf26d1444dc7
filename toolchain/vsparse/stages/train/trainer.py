"""One training, epoch by epoch: batches, steps, the sparsifier's moments, the best epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsparse.data import Splits
from vsparse.data.augment import augment
from vsparse.errors import GateError, InputError
from vsparse.files import canonical_json, sha256_bytes
from vsparse.graph import from_torch
from vsparse.networks import make
from vsparse.recipe import Recipe
from vsparse.stages.train import resume
from vsparse.stages.train.averaging import make_average, with_statistics
from vsparse.stages.train.checkpoint import NAME, read_checkpoint, write_checkpoint
from vsparse.stages.train.determinism import generator
from vsparse.stages.train.initialisation import initialise
from vsparse.stages.train.masks import Masks, density
from vsparse.stages.train.objectives import Batch
from vsparse.stages.train.objectives.margins import training_box
from vsparse.stages.train.own import read_own
from vsparse.stages.train.plan import Moment, moment, total_epochs
from vsparse.stages.train.result import EpochReport, TrainResult, finish
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.schedule import Schedule, rate_setting
from vsparse.stages.train.silence import silent_units
from vsparse.stages.train.sparsifiers import make_sparsifier
from vsparse.stages.train.state import State, weights
from vsparse.stages.train.step import Stepper
from vsparse.stages.train.team import Team
from vsparse.stages.train.units import Group
from vsparse.stages.train.validation import Quality, Validation, measure_of

# Purposes of generators; each process of a team draws for its own samples from a generator of its own, OBJECTIVE + its rank.
INITIALISE, CHOICES, BATCHES, GRADIENTS, STATISTICS, OBJECTIVE = 0, 1, 2, 3, 4, 5
# Objectives that no radius enters.
WITHOUT_RADIUS = ("natural", "smoothing")
# Training batches on which no unit that is worth its weights stays silent.
SILENCE_BATCHES = 32


class Trainer:
    """The state of one training and the steps that move it on; `train` drives it.

    Raises InputError for a recipe that cannot be met and for a damaged checkpoint.
    """

    def __init__(self, recipe: Recipe, splits: Splits, directory: Path, sparse: bool) -> None:
        self.recipe, self.spec, self.directory = recipe, recipe.train, directory
        self.train = Samples.of(splits.train)
        shape = tuple(int(size) for size in splits.train.pixels.shape[1:])
        module = make(recipe.network, shape, len(splits.train.classes), recipe.data.mean, recipe.data.std, self.spec.seed)
        full = from_torch(module, shape)
        own = read_own(module, full, self.spec)
        self.validation = Validation(
            Samples.of(splits.validation),
            float(recipe.property.perturbation.box_radius),
            measure_of(self.spec.objective),
            self.spec.batch_size,
        )
        self.sparsifier = make_sparsifier(self.spec, full, sparse)
        self.phases = self.sparsifier.phases()
        self.epochs = total_epochs(self.phases)
        self.fingerprint = _fingerprint(recipe, splits, sparse)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.best_params: dict[str, Tensor] = {}
        self.epoch = self.saved_epoch = 0
        self.seconds = 0.0
        params = {name: torch.from_numpy(value.copy()) for name, value in full.params.items()}
        initialise(full, params, generator(self.spec.seed, 0, INITIALISE), self.spec.initial, own.frozen)
        self.state = State(self.spec, full, params, self.phases[0], own=own)
        self.average = make_average(self.spec)
        self.team = Team.current()
        self._require_samples()
        self.stepper = Stepper(self.spec, self.state, self.sparsifier, self.team)
        found = read_checkpoint(directory, self.fingerprint)
        if found is not None:
            resume.restore(self, found)
        self.saved_epoch = self.epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch has run, or none has certified more for `early_stop` epochs that could have been the result."""
        patience = self.spec.early_stop
        waited = self.epoch - self.best.get("improved", self.epoch)
        return self.epoch >= self.epochs or (patience > 0 and waited >= patience)

    def save(self, durable: bool = True) -> None:
        """Writes the checkpoint; not `durable`, it outlives the process but perhaps not a loss of power."""
        if self.team.leads:
            write_checkpoint(self.directory, resume.checkpoint_of(self), durable)
        self.saved_epoch = self.epoch

    def ready(self, at: Moment) -> bool:
        """Whether the network after this epoch may be the result: last phase, full radius, final masks; the very last epoch always may."""
        full = at.inside >= Schedule(self.spec, at.phase).full_from
        return (at.last and full and self.sparsifier.settled(at)) or at.epoch == self.epochs - 1

    # One epoch.

    def run_epoch(self) -> EpochReport:
        """Trains one epoch and evaluates it; raises GateError when the loss is not finite."""
        started = time.perf_counter()
        at = moment(self.phases, self.epoch)
        schedule = Schedule(self.spec, at.phase)
        if at.inside == 0 and at.epoch:
            self.state.begin(at.phase)
        self.sparsifier.begin_epoch(self.state, at, _Tools(self, at))
        self.stepper.prepare()
        rate = schedule.learning_rate(at.inside)
        draws, own = generator(self.spec.seed, at.epoch, BATCHES), generator(self.spec.seed, at.epoch, OBJECTIVE + self.team.rank)
        total = 0.0
        count = self._count()
        for index, (x, labels) in enumerate(self._batches(draws)):
            position = at.inside + index / count
            share = schedule.share(position)
            part = self.team.part(len(labels))
            batch = self._batch(schedule, share, x[part], labels[part], own)
            loss, norm = self.stepper.step(batch, share, rate, len(batch.labels) / len(labels))
            if not isfinite(norm):
                raise GateError(self._diverged(at, loss, rate))
            total += loss * len(labels)
            if self.average is not None and self.ready(at):
                self.average.update(self.sparsifier.effective(self.state), position, at.phase.epochs)
        self.team.compare({**self.state.params, **self.state.extras})
        quality = self._evaluate(at)
        self.epoch += 1
        spent = time.perf_counter() - started
        self.seconds += spent
        report = EpochReport(
            epoch=self.epoch,
            epochs=self.epochs,
            loss=total / len(self.train.labels),
            clean=quality.clean,
            certified=quality.robust,
            measure=quality.measure,
            phase=at.phase.name,
            density=self.density(),
            epsilon=schedule.epsilon(at.inside + 1),
            learning_rate=rate,
            seconds=spent,
            eta_s=self.seconds / self.epoch * (self.epochs - self.epoch),
        )
        self.history.append({key: value for key, value in asdict(report).items() if key not in ("epochs", "eta_s")})
        return report

    def _count(self) -> int:
        return -(-len(self.train.labels) // self.spec.batch_size)

    def _batches(self, draws: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.train.labels), generator=draws)
        for batch in order.tensor_split(self._count()):
            yield augment(self.train.inputs(batch), self.recipe.data, draws), self.train.labels[batch]

    def _batch(self, schedule: Schedule, share: float, x: Tensor, labels: Tensor, draws: torch.Generator) -> Batch:
        wanted = self.stepper.terms.wants_enclosure(share)
        return Batch(x, labels, schedule.final_epsilon * share, schedule.final_epsilon, schedule.kappa(share), wanted, draws)

    def _require_samples(self) -> None:
        smallest = len(self.train.labels) // self._count()
        if smallest < self.team.size:
            raise InputError(f"batches of {smallest} samples cannot be shared by {self.team.size} processes; lower train.processes")

    def gradients(self, at: Moment, batches: int, share: float | None) -> dict[str, Tensor]:
        """See `Tools.gradients`."""
        self.stepper.prepare()
        schedule = Schedule(self.spec, at.phase)
        share = schedule.share(at.inside) if share is None else share
        draws = generator(self.spec.seed, at.epoch, GRADIENTS)
        leaves = {name: self.state.params[name] for name in self.state.leaves()} if at.phase.trains == "parameters" else {}
        sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for index, (x, labels) in enumerate(self._batches(draws)):
            if index == batches:
                break
            value, _ = self.stepper.loss(self._batch(schedule, share, x, labels, draws), share)
            for name, gradient in zip(sums, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True):
                if gradient is not None:
                    sums[name] += gradient / batches
        return sums

    def silent(self, at: Moment, groups: Sequence[Group], masks: Masks) -> dict[str, Tensor]:
        """See `Tools.silent`."""
        schedule = Schedule(self.spec, at.phase)
        epsilon = schedule.epsilon(at.inside)
        batches = islice(self._batches(generator(self.spec.seed, at.epoch, GRADIENTS)), SILENCE_BATCHES)
        boxes = (training_box(x, epsilon) for x, _ in batches)
        params = dict(self.state.params)
        params |= {name: params[name].detach() * mask for name, mask in masks.items() if name in params}
        return silent_units(self.state.graph, params, groups, boxes)

    def _diverged(self, at: Moment, loss: float, rate: float) -> str:
        last = (
            f"the last good checkpoint, of epoch {self.saved_epoch}, is {self.directory / NAME}"
            if self.saved_epoch
            else "no checkpoint was written before"
        )
        key, value = rate_setting(self.spec, at.phase)
        now = f"{value:g}" if value == rate else f"{value:g}, {rate:g} in this epoch"
        ways = [f"lower {key} (now {now})"]
        if self.spec.objective not in WITHOUT_RADIUS:
            ways += ["lower train.epsilon"] + ["lengthen train.ramp"] * at.phase.ramp
        return (
            f"training diverged in epoch {self.epoch + 1} of {self.epochs} (phase {at.phase.name}): the loss or its gradient is not finite "
            f"(loss {loss:g}); {' or '.join(ways)}; {last}"
        )

    # What comes out.

    def _evaluate(self, at: Moment) -> Quality:
        """Evaluates the network (the averaged one, where there is an average) and keeps it when it is the best that may be the result."""
        params: Mapping[str, Tensor] = {name: value.detach() for name, value in self.sparsifier.effective(self.state).items()}
        if self.average is not None and self.average.count:
            draws = generator(self.spec.seed, at.epoch, STATISTICS)
            params = with_statistics(self.state.graph, self.average.values, (x for x, _ in self._batches(draws)))
        quality = self._quality(params, self.ready(at))
        if self.ready(at) and (quality.robust, quality.clean) >= (self.best.get("certified", -1.0), self.best.get("clean", -1.0)):
            epoch = float(at.epoch + 1)
            improved = epoch if quality.robust > self.best.get("certified", -1.0) else self.best["improved"]
            self.best = {"epoch": epoch, "certified": quality.robust, "clean": quality.clean, "improved": improved}
            self.best_params = {name: value.clone() for name, value in params.items()}
        return quality

    def _quality(self, params: Mapping[str, Tensor], thorough: bool) -> Quality:
        """Returns what the process that leads finds on the validation split, in every process."""
        found = self.validation(self.state.graph, params, thorough) if self.team.leads else Quality(0, 0, "")
        clean, robust = self.team.hear((found.clean, found.robust))
        return Quality(clean, robust, self.validation.measure)

    def density(self) -> float:
        """Returns the share of weights that the masks keep."""
        names = weights(self.state.full)
        full = {name: torch.empty(self.state.full.params[name].shape) for name in names}
        return density(full, self.state.masks, names)

    def result(self) -> TrainResult:
        """Returns the best epoch's network at full size, with its masks."""
        graph, masks = finish(self.state.full, self.state.unpacked(self.best_params), self.state.masks)
        return TrainResult(graph, masks, self.history, self.seconds)


class _Tools:
    def __init__(self, trainer: Trainer, at: Moment) -> None:
        self.trainer, self.at = trainer, at

    def generator(self) -> torch.Generator:
        return generator(self.trainer.spec.seed, self.at.epoch, CHOICES)

    def gradients(self, batches: int, share: float | None = None) -> dict[str, Tensor]:
        return self.trainer.gradients(self.at, batches, share)

    def silent(self, groups: Sequence[Group], masks: Masks) -> dict[str, Tensor]:
        return self.trainer.silent(self.at, groups, masks)


def _fingerprint(recipe: Recipe, splits: Splits, sparse: bool) -> str:
    """Returns what a checkpoint must have been made from to be gone on with."""
    parts = {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "network", "property", "train")}
    return sha256_bytes(canonical_json({**parts, "splits": splits.sha256, "sparse": sparse, "torch": torch.__version__}))
