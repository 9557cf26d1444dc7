"""The state of one training and the steps that move it on: epochs, batches, Adam, masks at their moments, the best epoch."""

from __future__ import annotations

import time
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsparse.data import Splits
from vsparse.data.augment import augment
from vsparse.errors import GateError, InputError
from vsparse.files import canonical_json, sha256_bytes
from vsparse.graph import from_torch, run
from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.networks import make
from vsparse.recipe import Recipe
from vsparse.stages.train.checkpoint import NAME, Checkpoint, read_checkpoint, write_checkpoint
from vsparse.stages.train.determinism import generator
from vsparse.stages.train.initialisation import initialise
from vsparse.stages.train.objectives import make_objective
from vsparse.stages.train.objectives.ibp import certified
from vsparse.stages.train.objectives.loss import Objective
from vsparse.stages.train.objectives.margins import Margins
from vsparse.stages.train.result import EpochReport, TrainResult, finish
from vsparse.stages.train.samples import Samples
from vsparse.stages.train.schedule import Schedule
from vsparse.stages.train.shrink import Packing, pack
from vsparse.stages.train.sparsity import weight_budget
from vsparse.stages.train.vericompress import UNITS, Masks, SparseSearch, density, enforce

INITIALISE, START, BATCHES = 0, 1, 2
MOMENTUM = 0.1


class Trainer:
    """The state of one training and the steps that move it on; `train` drives it."""

    def __init__(self, recipe: Recipe, splits: Splits, directory: Path, sparse: bool) -> None:
        self.recipe, self.spec, self.directory = recipe, recipe.train, directory
        self.schedule = Schedule(self.spec)
        self.train, self.validation = Samples.of(splits.train), Samples.of(splits.validation)
        shape = tuple(int(size) for size in splits.train.pixels.shape[1:])
        module = make(recipe.network, shape, len(splits.train.classes), recipe.data.mean, recipe.data.std, self.spec.seed)
        self.full = from_torch(module, shape)
        self.sparse = sparse and weight_budget(self.full, self.spec) < sum(self.full.params[name].size for name in _weights(self.full))
        self.fingerprint = _fingerprint(recipe, splits, sparse)
        self.masks: Masks = {}
        self.packing: Packing | None = None
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, float] = {}
        self.best_params: dict[str, Tensor] = {}
        self.epoch = self.saved_epoch = 0
        self.seconds = 0.0
        self.search = SparseSearch(self.full, self.spec) if self.sparse else None
        params = {name: torch.from_numpy(value.copy()) for name, value in self.full.params.items()}
        initialise(self.full, params, generator(self.spec.seed, 0, INITIALISE))
        self._adopt(self.full, params, {}, {}, 0)
        self._restore(read_checkpoint(directory, self.fingerprint))

    # What is trained: the full graph, or the packed one after the freeze of a structured search.

    def _adopt(self, graph: Graph, params: dict[str, Tensor], mean: dict[str, Tensor], square: dict[str, Tensor], steps: int) -> None:
        """Makes these the graph, parameters and Adam state that training goes on with."""
        self.graph, self.params = graph, params
        self.objective: Objective = make_objective(self.spec, graph, params)
        self.margins = Margins(graph)
        self.norms = [node for node in graph.nodes if isinstance(node, BatchNorm)]
        self.trainable = _trainable(graph)
        leaves = [self.params[name].requires_grad_(True) for name in self.trainable]
        self.optimizer = torch.optim.Adam(leaves, lr=self.spec.learning_rate)
        if steps:
            for name, leaf in zip(self.trainable, leaves, strict=True):
                self.optimizer.state[leaf] = {"step": torch.tensor(float(steps)), "exp_avg": mean[name], "exp_avg_sq": square[name]}

    def _moments(self) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
        state = {name: self.optimizer.state[self.params[name]] for name in self.trainable if self.params[name] in self.optimizer.state}
        steps = max((int(entry["step"]) for entry in state.values()), default=0)
        mean = {name: state[name]["exp_avg"] if name in state else torch.zeros_like(self.params[name]) for name in self.trainable}
        square = {name: state[name]["exp_avg_sq"] if name in state else torch.zeros_like(self.params[name]) for name in self.trainable}
        return mean, square, steps

    def _pack(self) -> None:
        """Goes on with the packed network: same function, same Adam state, less work."""
        packing = pack(self.full, self.masks)
        mean, square, steps = self._moments()
        params = {name: packing.pack(name, value.detach()) for name, value in self.params.items()}
        packed = [{name: packing.pack(name, value) for name, value in moments.items()} for moments in (mean, square)]
        self.packing = packing
        self._adopt(packing.graph, params, packed[0], packed[1], steps)

    # Checkpoints.

    def _restore(self, state: Checkpoint | None) -> None:
        if state is None:
            return
        graph, tensors = self.full, state.tensors
        try:
            self._check(state)
            self.epoch = self.saved_epoch = state.epoch
            self.seconds, self.history, self.best = state.seconds, state.history, state.best
            self.masks = tensors.get("mask", {})
            if self._packs and self.epoch > self.schedule.freeze_from:
                self.packing = pack(self.full, self.masks)
                graph = self.packing.graph
            self.best_params = tensors.get("best", {})
            for group in ("param", "mean", "square", *(["best"] if self.best else [])):
                for name in graph.params if group in ("param", "best") else _trainable(graph):
                    if tuple(tensors[group][name].shape) != graph.params[name].shape or tensors[group][name].dtype != torch.float32:
                        raise ValueError(f"{name} has the wrong shape or type")
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise InputError(f"the checkpoint {self.directory / NAME} is damaged ({error}); remove it to train from the start") from error
        self._adopt(graph, tensors["param"], tensors["mean"], tensors["square"], state.steps)

    def _check(self, state: Checkpoint) -> None:
        """Raises ValueError for a checkpoint whose counts and masks cannot come from this training."""
        if not 0 < state.epoch <= self.spec.epochs or len(state.history) != state.epoch or state.steps < 1:
            raise ValueError("its epochs do not fit the recipe")
        if (state.epoch > self._ready) != bool(state.best):
            raise ValueError("its best epoch does not fit the recipe")
        shapes = {name: value.shape for name, value in self.full.params.items()}
        if self.search is not None:
            shapes |= {f"{UNITS}{group.name}": (group.count,) for group in self.search.groups}
        masks = state.tensors.get("mask", {})
        if bool(masks) != (self.search is not None) or any(tuple(mask.shape) != shapes[name] for name, mask in masks.items()):
            raise ValueError("its masks do not fit the network")

    @property
    def _ready(self) -> int:
        """The first epoch whose network may be the result: trained at the full radius and with the final mask."""
        return self.schedule.full_from if self.search is None else max(self.schedule.full_from, self.schedule.freeze_from)

    def save(self) -> None:
        """Writes the checkpoint."""
        mean, square, steps = self._moments()
        self.saved_epoch = self.epoch
        write_checkpoint(
            self.directory,
            Checkpoint(
                fingerprint=self.fingerprint,
                epoch=self.epoch,
                steps=steps,
                seconds=self.seconds,
                history=self.history,
                best=self.best,
                tensors={"param": self.params, "mean": mean, "square": square, "mask": self.masks, "best": self.best_params},
            ),
        )

    # One epoch.

    @property
    def _packs(self) -> bool:
        return self.search is not None and self.search.structured

    def run_epoch(self) -> EpochReport:
        """Trains one epoch and evaluates it; raises GateError when the loss is not finite."""
        started = time.perf_counter()
        self._mask_moment()
        rate = self.schedule.learning_rate(self.epoch)
        for entry in self.optimizer.param_groups:
            entry["lr"] = rate
        draws = generator(self.spec.seed, self.epoch, BATCHES)
        order = torch.randperm(len(self.train.labels), generator=draws)
        batches = order.tensor_split(-(-len(order) // self.spec.batch_size))
        total = 0.0
        for index, batch in enumerate(batches):
            x = augment(self.train.inputs(batch), self.recipe.data, draws)
            total += self._step(x, self.train.labels[batch], self.epoch + index / len(batches)) * len(batch)
        clean, sure = self.evaluate()
        self._remember(clean, sure)
        self.epoch += 1
        spent = time.perf_counter() - started
        self.seconds += spent
        report = EpochReport(
            epoch=self.epoch,
            epochs=self.spec.epochs,
            loss=total / len(order),
            clean=clean,
            certified=sure,
            density=self.density(),
            epsilon=self.schedule.epsilon(self.epoch),
            learning_rate=rate,
            seconds=spent,
            eta_s=self.seconds / self.epoch * (self.spec.epochs - self.epoch),
        )
        self.history.append({key: value for key, value in asdict(report).items() if key not in ("epochs", "eta_s")})
        return report

    def _mask_moment(self) -> None:
        """Deactivates, or fixes the final mask, where this epoch is a moment to do so."""
        if self.search is None or self.packing is not None:
            return
        if self.epoch == self.schedule.freeze_from:
            self.masks = self.search.choose(self.params) if self.epoch else self._random_masks()
            enforce(self.params, self.masks)
            if self._packs:
                self._pack()
        elif self.epoch < self.schedule.freeze_from and self.epoch % self.spec.sparse.thickening_length == 0:
            self.masks = self.search.choose(self.params) if self.epoch else self._random_masks()
            self.search.deactivate(self.params, self.masks)

    def _random_masks(self) -> Masks:
        assert self.search is not None
        return self.search.random(self.params, generator(self.spec.seed, 0, START))

    def _step(self, x: Tensor, labels: Tensor, position: float) -> float:
        share = self.schedule.share(position)
        regulariser = self.spec.regulariser * (1 - share)
        loss = self.objective(self.params, x, labels, self.schedule.epsilon(position), self.schedule.kappa(position), regulariser)
        value = loss.value
        if self.spec.l1 > 0:
            value = value + self.spec.l1 * torch.stack([self.params[name].abs().sum() for name in _weights(self.graph)]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        number = float(value.detach())
        norm = float("nan")
        if isfinite(number):
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            norm = float(torch.nn.utils.clip_grad_norm_([self.params[name] for name in self.trainable], self.spec.gradient_clip))
        if not isfinite(norm):
            raise GateError(self._diverged(number))
        self.optimizer.step()
        if self.search is not None and self.packing is None and self.epoch >= self.schedule.freeze_from:
            enforce(self.params, self.masks)
        with torch.no_grad():
            for name, statistic in loss.statistics.items():
                self.params[name].lerp_(statistic.detach(), MOMENTUM)
        return number

    def _diverged(self, loss: float) -> str:
        last = (
            f"the last good checkpoint, of epoch {self.saved_epoch}, is {self.directory / NAME}"
            if self.saved_epoch
            else "no checkpoint was written before"
        )
        return (
            f"training diverged in epoch {self.epoch + 1} of {self.spec.epochs}: the loss or its gradient is not finite (loss {loss:g}); "
            f"lower train.learning_rate (now {self.spec.learning_rate:g}) or train.epsilon, or lengthen train.ramp; {last}"
        )

    def evaluate(self) -> tuple[float, float]:
        """Returns the shares of the validation split classified correctly, and certified by interval bounds at the property's radius."""
        right = sure = 0
        radius = float(self.recipe.property.radius)
        for start in range(0, len(self.validation.labels), self.spec.batch_size):
            part = slice(start, start + self.spec.batch_size)
            x, labels = self.validation.inputs(part), self.validation.labels[part]
            with torch.no_grad():
                correct = run(self.graph, self.params, x).argmax(1) == labels
            right += int(correct.sum())
            sure += int((certified(self.margins, self.params, x, labels, radius) & correct).sum())
        count = max(1, len(self.validation.labels))
        return right / count, sure / count

    def _remember(self, clean: float, sure: float) -> None:
        """Keeps this epoch's parameters when they are the best of those with full radius and final mask (the last epoch is one)."""
        if self.epoch >= self._ready and (sure, clean) >= (self.best.get("certified", -1.0), self.best.get("clean", -1.0)):
            self.best = {"epoch": float(self.epoch + 1), "certified": sure, "clean": clean}
            self.best_params = {name: value.detach().clone() for name, value in self.params.items()}

    def density(self) -> float:
        """Returns the share of weights that the masks keep."""
        full = {name: torch.empty(self.full.params[name].shape) for name in _weights(self.full)}
        return density(full, self.masks, list(full))

    def result(self) -> TrainResult:
        """Returns the best epoch's network at full size, with its masks."""
        params = self.best_params
        if self.packing is not None:
            params = {name: self.packing.unpack(name, value) for name, value in params.items()}
            for node in self.full.nodes:
                if isinstance(node, BatchNorm):  # a removed channel's variance is of no account, but must stay positive
                    params[node.variance] = params[node.variance].masked_fill(params[node.variance] == 0, 1)
        graph, masks = finish(self.full, params, self.masks)
        return TrainResult(graph, masks, self.history, self.seconds)


def _weights(graph: Graph) -> list[str]:
    return list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))


def _trainable(graph: Graph) -> list[str]:
    names: list[str] = []
    for node in graph.nodes:
        if isinstance(node, Affine):
            names += node.params
        elif isinstance(node, BatchNorm):
            names += [node.scale, node.bias]
    return list(dict.fromkeys(names))


def _fingerprint(recipe: Recipe, splits: Splits, sparse: bool) -> str:
    """Returns what a checkpoint must have been made from to be gone on with."""
    parts = {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "network", "property", "train")}
    return sha256_bytes(canonical_json({**parts, "splits": splits.sha256, "sparse": sparse, "torch": torch.__version__}))
