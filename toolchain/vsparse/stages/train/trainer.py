"""One training, epoch by epoch: batches, steps, the sparsifier's changes, the best epoch, and the checkpoint to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsparse.compute_device import device_label, reading_back, to_host
from vsparse.data import Splits
from vsparse.data.augment import augment
from vsparse.draws import Draws
from vsparse.errors import GateError, InputError
from vsparse.recipe import Recipe
from vsparse.stages.train.answer_scale import AnswerScale
from vsparse.stages.train.averaging import make_average, with_population_statistics, with_statistics
from vsparse.stages.train.bounds.margins import training_box
from vsparse.stages.train.checkpoint import NAME, Checkpoint, like, read_checkpoint, require_possible, write_checkpoint
from vsparse.stages.train.checks import require_trainable
from vsparse.stages.train.dead_units import dead_units
from vsparse.stages.train.determinism import drawn, generator
from vsparse.stages.train.findings import StepFindings
from vsparse.stages.train.fingerprint import fingerprint_of
from vsparse.stages.train.initialisation import initial_kind, initialise
from vsparse.stages.train.masks import Masks, density
from vsparse.stages.train.objectives import TrainingBatch, objective_class
from vsparse.stages.train.packing import pack
from vsparse.stages.train.phases import EpochPosition, epoch_position, total_epochs
from vsparse.stages.train.placement import draws_by_counter, out_of_memory, training_device
from vsparse.stages.train.process_group import ProcessGroup
from vsparse.stages.train.result import BatchReport, EpochReport, StepsReport, TrainResult, finish
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.schedule import Schedule, rate_setting
from vsparse.stages.train.sparsifiers import make_sparsifier
from vsparse.stages.train.start import pinned
from vsparse.stages.train.start_network import starting_network
from vsparse.stages.train.state import TrainingState, weights
from vsparse.stages.train.step import Stepper
from vsparse.stages.train.units import UnitGroup
from vsparse.stages.train.validation import Quality, Validation, validated_by

# Purposes of generators; each process of a group draws for its own samples from a generator of its own, OBJECTIVE + its rank.
INITIALISE, CHOICES, BATCHES, GRADIENTS, STATISTICS, OBJECTIVE = 0, 1, 2, 3, 4, 5
# Training batches on which no unit that is worth its weights is dead.
DEAD_UNIT_BATCHES = 32
# Seconds between two reports from within an epoch.
TELL_SECONDS = 0.5


class Trainer:
    """The state of one training and the steps that move it on; `train` drives it.

    Raises InputError for a recipe that cannot be met and for a damaged checkpoint.
    """

    def __init__(self, recipe: Recipe, splits: Splits, directory: Path, sparse: bool) -> None:
        recipe = pinned(recipe)
        self.recipe, self.spec, self.directory = recipe, recipe.train, directory
        self.device = training_device(self.spec)
        self.counted = draws_by_counter(self.spec, self.device)
        self.answers = AnswerScale.of(splits.train)
        self.train = Samples.of(splits.train, self.device, self.answers)
        shape = tuple(int(size) for size in splits.train.pixels.shape[1:])
        full, own = starting_network(recipe, shape, len(splits.train.classes))
        require_trainable(self.spec, full)
        self.objective = objective_class(self.spec)
        self.validation = Validation(
            Samples.of(splits.validation, self.device, self.answers),
            float(recipe.property.perturbation.box_radius),
            validated_by(recipe),
            self.spec.batch_size,
            self.counted,
        )
        self.sparsifier = make_sparsifier(self.spec, full, sparse)
        self.phases = self.sparsifier.phases()
        self.epochs = total_epochs(self.phases)
        self.fingerprint = fingerprint_of(recipe, splits, sparse)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.best_params: dict[str, Tensor] = {}
        self.epoch = self.saved_epoch = 0
        self.seconds = 0.0
        params = {name: torch.from_numpy(value.copy()) for name, value in full.params.items()}
        initialise(full, params, generator(self.spec.seed, 0, INITIALISE), initial_kind(self.spec), own.frozen)
        params = self._moved(params)
        self.state = TrainingState(self.spec, full, params, self.phases[0], own=own)
        self.average = make_average(self.spec)
        self.process_group = ProcessGroup.current(self.device)
        self._require_samples()
        self.stepper = Stepper(self.spec, self.state, self.sparsifier, self.process_group)
        self.within: Callable[[BatchReport], None] | None = None
        self.steps: Callable[[StepsReport], None] | None = None
        self._told = time.perf_counter()
        found = read_checkpoint(directory, self.fingerprint, device_label(self.device))
        if found is not None:
            self.restore(found)
        self.saved_epoch = self.epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch has run, or none has certified more for `early_stop` epochs that could have been the result."""
        patience = self.spec.early_stop
        waited = self.epoch - self.best.get("improved", self.epoch)
        return self.epoch >= self.epochs or (patience > 0 and waited >= patience)

    def save(self, durable: bool = True) -> None:
        """Writes the checkpoint; not `durable`, it outlives the process but perhaps not a loss of power."""
        if self.process_group.is_rank_0:
            write_checkpoint(self.directory, self.checkpoint(), durable)
        self.saved_epoch = self.epoch

    def ready(self, at: EpochPosition) -> bool:
        """Whether the network after this epoch may be the result: last phase, full radius, final masks; the very last epoch always may."""
        full = at.inside >= Schedule(self.spec, at.phase).full_from
        return (at.last and full and self.sparsifier.settled(at)) or at.epoch == self.epochs - 1

    # Checkpoints: everything that the next epoch depends on.

    def checkpoint(self) -> Checkpoint:
        """Returns the checkpoint of this training, between two epochs."""
        state, average = self.state, self.average
        tensors = {"param": state.params, "mask": state.masks.entries, "units": state.masks.groups, "extra": state.extras}
        tensors |= {"best": self.best_params, **{f"moment.{kind}": values for kind, values in state.optimiser.moments().items()}}
        if average is not None:
            tensors["average"] = average.values
        return Checkpoint(
            fingerprint=self.fingerprint,
            epoch=self.epoch,
            steps=state.optimiser.steps,
            seconds=self.seconds,
            history=self.history,
            best=self.best,
            fixed=state.fixed,
            packed=state.packing is not None,
            average={} if average is None else average.scalars(),
            device=device_label(self.device),
            tensors=tensors,
        )

    def restore(self, found: Checkpoint) -> None:
        """Continues from a checkpoint; InputError for one that this training cannot have written."""
        state, tensors = self.state, found.tensors
        try:
            require_possible(found, self.epochs, state.full)
            if any(self.ready(epoch_position(self.phases, epoch)) for epoch in range(found.epoch)) != bool(found.best):
                raise ValueError("its best epoch does not fit the recipe")
            tensors = {group: self._moved(members) for group, members in tensors.items()}
            state.masks, state.fixed = Masks(tensors.get("mask", {}), tensors.get("units", {})), found.fixed
            if found.packed:
                with reading_back("masks say what is packed"):
                    state.packing = pack(state.full, state.masks)
                state.graph = state.packing.graph
            state.params = like(tensors["param"], state.graph.params, "param")
            at = epoch_position(self.phases, found.epoch - 1)
            state.extras = like(tensors.get("extra", {}), self.sparsifier.kept(state, at), "extra")
            state.phase = at.phase
            moments = {kind: tensors.get(f"moment.{kind}", {}) for kind in state.optimiser.kinds}
            for kind, values in moments.items():
                like(values, state.leaves(), kind)
            state.version += 1
            state.begin(at.phase, moments, found.steps)
            self.epoch, self.seconds = found.epoch, found.seconds
            self.history, self.best = found.history, found.best
            if found.best:
                self.best_params = like(tensors["best"], state.graph.params, "best")
            if self.average is not None:
                values = like(tensors["average"], state.graph.params, "average") if found.average.get("count") else {}
                self.average.restore(found.average, values)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise InputError(f"the checkpoint {self.directory / NAME} is damaged ({error}); remove it to train from the start") from error

    def _moved(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with reading_back("what is trained moves at once"):
            return {name: value.to(self.device) for name, value in values.items()}

    # One epoch.

    def run_epoch(self) -> EpochReport:
        """Trains one epoch and evaluates it; raises GateError when the loss is not finite."""
        started = time.perf_counter()
        at = epoch_position(self.phases, self.epoch)
        schedule = Schedule(self.spec, at.phase)
        if at.inside == 0 and at.epoch:
            self.state.begin(at.phase)
        with reading_back("masks are chosen between two epochs"):
            self.sparsifier.begin_epoch(self.state, at, _Tools(self, at))
        self.stepper.prepare()
        rate = schedule.learning_rate(at.inside)
        own = drawn(self.counted, self.spec.seed, at.epoch, OBJECTIVE + self.process_group.rank)
        found, diverged, radii = StepFindings(), None, list[float]()
        count = self._count()
        for index, (x, labels) in enumerate(self._batches(*self._draws(at, BATCHES))):
            position = at.inside + index / count
            fraction = schedule.fraction(position)
            part = self.process_group.shard(len(labels))
            batch = self._batch(schedule, fraction, x[part], labels[part], own, position)
            loss, norm = self.stepper.step(batch, fraction, rate, len(batch.labels) / len(labels))
            diverged = found.add(loss, norm, len(labels))
            radii.append(schedule.final_epsilon * fraction)
            if diverged is not None:
                break
            self._tell(at, schedule, fraction, (index + 1, count), started)
            if self.average is not None and self.ready(at):
                self.average.update(self.sparsifier.effective(self.state), position, at.phase.epochs)
        diverged = found.read() if diverged is None else diverged
        if diverged is not None:
            raise GateError(self._diverged(at, diverged, rate))
        if self.steps is not None:
            first = self.epoch * count + 1
            self.steps(StepsReport(self.epoch + 1, self.epochs, at.phase.name, first, rate, found.losses, found.norms, radii))
        self.process_group.require_equal({**self.state.params, **self.state.extras})
        quality = self._evaluate(at)
        self.epoch += 1
        spent = time.perf_counter() - started
        self.seconds += spent
        report = EpochReport(
            epoch=self.epoch,
            epochs=self.epochs,
            loss=found.total / len(self.train.labels),
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

    def _tell(self, at: EpochPosition, schedule: Schedule, fraction: float, batch: tuple[int, int], started: float) -> None:
        """Says where in the epoch the training is, to who listens, at most twice a second; `batch` is its number, and of how many."""
        now = time.perf_counter()
        if self.within is None or now - self._told < TELL_SECONDS:
            return
        self._told = now
        done = self.epoch + batch[0] / batch[1]
        left = (self.seconds + now - started) / done * (self.epochs - done)
        self.within(BatchReport(self.epoch + 1, self.epochs, *batch, at.phase.name, schedule.final_epsilon * fraction, left))

    def _count(self) -> int:
        return -(-len(self.train.labels) // self.spec.batch_size)

    def _draws(self, at: EpochPosition, purpose: int) -> tuple[torch.Generator, Draws]:
        """Returns where the order of an epoch's samples and where all else is drawn from: one generator, or the latter from a counter."""
        first = generator(self.spec.seed, at.epoch, purpose)
        return first, drawn(True, self.spec.seed, at.epoch, purpose) if self.counted else first

    def _batches(self, first: torch.Generator, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
        with reading_back("the order of an epoch is moved at once"):
            order = torch.randperm(len(self.train.labels), generator=first).to(self.device)
        for batch in order.tensor_split(self._count()):
            yield augment(self.train.inputs(batch), self.recipe.data, draws), self.train.labels[batch]

    def _batch(self, schedule: Schedule, fraction: float, x: Tensor, labels: Tensor, draws: Draws, position: float = 0.0) -> TrainingBatch:
        wanted, most = self.stepper.terms.wants_enclosure(fraction), schedule.final_epsilon
        population = self.spec.batch_norm == "population"
        return TrainingBatch(x, labels, most * fraction, most, schedule.kappa(fraction), wanted, draws, position, population)

    def _require_samples(self) -> None:
        smallest = len(self.train.labels) // self._count()
        if smallest < self.process_group.size:
            raise InputError(
                f"batches of {smallest} samples cannot be shared by {self.process_group.size} processes; lower train.processes"
            )

    def gradients(self, at: EpochPosition, batches: int, fraction: float | None) -> dict[str, Tensor]:
        """See `Tools.gradients`."""
        self.stepper.prepare()
        schedule = Schedule(self.spec, at.phase)
        fraction = schedule.fraction(at.inside) if fraction is None else fraction
        order, draws = self._draws(at, GRADIENTS)
        leaves = {name: self.state.params[name] for name in self.state.leaves()} if at.phase.trains == "parameters" else {}
        sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for index, (x, labels) in enumerate(self._batches(order, draws)):
            if index == batches:
                break
            batch = self._batch(schedule, fraction, x, labels, draws, at.inside)
            for part, share in self.stepper.parts(batch):
                value, _ = self.stepper.loss(part, fraction)
                for name, gradient in zip(sums, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True):
                    if gradient is not None:
                        sums[name] += gradient * share / batches
        return sums

    def dead_units(self, at: EpochPosition, groups: Sequence[UnitGroup], masks: Masks) -> dict[str, Tensor]:
        """See `Tools.dead_units`."""
        schedule = Schedule(self.spec, at.phase)
        epsilon = schedule.epsilon(at.inside)
        batches = islice(self._batches(*self._draws(at, GRADIENTS)), DEAD_UNIT_BATCHES)
        boxes = (training_box(x, epsilon) for x, _ in batches)
        params = dict(self.state.params)
        params |= {name: params[name].detach() * mask for name, mask in masks.entries.items() if name in params}
        return dead_units(self.state.graph, params, groups, boxes)

    def _diverged(self, at: EpochPosition, loss: float, rate: float) -> str:
        last = (
            f"the last good checkpoint, of epoch {self.saved_epoch}, is {self.directory / NAME}"
            if self.saved_epoch
            else "no checkpoint was written before"
        )
        key, value = rate_setting(self.spec, at.phase)
        now = f"{value:g}" if value == rate else f"{value:g}, {rate:g} in this epoch"
        ways = [f"lower {key} (now {now})"]
        if self.objective.uses_epsilon:
            ways += ["lower train.epsilon"] + ["lengthen train.ramp"] * at.phase.ramp
        return (
            f"training diverged in epoch {self.epoch + 1} of {self.epochs} (phase {at.phase.name}): the loss or its gradient is not finite "
            f"(loss {loss:g}); {' or '.join(ways)}; {last}"
        )

    # What comes out.

    def _evaluate(self, at: EpochPosition) -> Quality:
        """Evaluates the network (the averaged one, where there is an average) and keeps it when it is the best that may be the result."""
        params: Mapping[str, Tensor] = {name: value.detach() for name, value in self.sparsifier.effective(self.state).items()}
        if self.average is not None and self.average.count:
            params = self._with_statistics(at, self.average.values)
        elif self.spec.batch_norm == "population":
            params = self._with_statistics(at, params)
            self.state.assign_statistics(params)
        quality = self._quality(params, self.ready(at))
        if self.ready(at) and (quality.robust, quality.clean) >= (self.best.get("certified", -1.0), self.best.get("clean", -1.0)):
            epoch = float(at.epoch + 1)
            improved = epoch if quality.robust > self.best.get("certified", -1.0) else self.best["improved"]
            self.best = {"epoch": epoch, "certified": quality.robust, "clean": quality.clean, "improved": improved}
            self.best_params = {name: value.clone() for name, value in params.items()}
        return quality

    def _with_statistics(self, at: EpochPosition, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the parameters with batch-norm statistics of their own, over the training split as this epoch augments it."""

        def batches() -> Iterator[Tensor]:
            return (x for x, _ in self._batches(*self._draws(at, STATISTICS)))

        if self.spec.batch_norm == "population":
            return with_population_statistics(self.state.graph, params, batches)
        return with_statistics(self.state.graph, params, batches())

    def _quality(self, params: Mapping[str, Tensor], thorough: bool) -> Quality:
        """Returns what rank 0 finds on the validation split, in every process."""
        found = self.validation(self.state.graph, params, thorough) if self.process_group.is_rank_0 else Quality(0, 0, "")
        clean, robust = self.process_group.broadcast((found.clean, found.robust))
        return Quality(clean, robust, self.validation.measure)

    def density(self) -> float:
        """Returns the fraction of weights that the masks keep."""
        names = weights(self.state.full)
        full = {name: torch.empty(self.state.full.params[name].shape) for name in names}
        return density(full, self.state.masks, names)

    def out_of_memory(self) -> InputError:
        """Returns the error for a step that did not fit into the device's memory, naming the batch that would."""
        return out_of_memory(self.device, self.spec.batch_size, self._fits)

    def _fits(self, size: int) -> bool:
        at = epoch_position(self.phases, self.epoch)
        labels, draws = self.train.labels[:size], drawn(self.counted, 0, 0, OBJECTIVE)
        batch = self._batch(Schedule(self.spec, at.phase), 1.0, self.train.inputs(slice(size)), labels, draws, at.inside)
        self.state.optimiser.clear()
        try:
            self.stepper.loss(batch, 1.0)[0].backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        except torch.OutOfMemoryError:
            return False
        return True

    def result(self) -> TrainResult:
        """Returns the best epoch's network at full size, with its masks."""
        best = {name: to_host(value) for name, value in self.best_params.items()}
        graph, masks = finish(self.state.full, self.state.unpacked(best), self.state.masks.entries)
        graph = graph if self.answers is None else self.answers.undone(graph)
        asked = self.validation.robust_samples(self.state.graph)
        return TrainResult(graph, masks, self.history, self.seconds, int(self.best["epoch"]), asked)


class _Tools:
    def __init__(self, trainer: Trainer, at: EpochPosition) -> None:
        self.trainer, self.at = trainer, at

    def generator(self) -> torch.Generator:
        return generator(self.trainer.spec.seed, self.at.epoch, CHOICES)

    def gradients(self, batches: int, fraction: float | None = None) -> dict[str, Tensor]:
        return self.trainer.gradients(self.at, batches, fraction)

    def dead_units(self, groups: Sequence[UnitGroup], masks: Masks) -> dict[str, Tensor]:
        return self.trainer.dead_units(self.at, groups, masks)
