"""Lottery tickets: clean, FGSM and PGD accuracy on the test set after every round; reported only, nothing is chosen by it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rows import Row
from torch import Tensor

from vsparse.artifact.stage_files import read_masks, write_tensors
from vsparse.data import Dataset, Splits
from vsparse.errors import InputError
from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.recipe import Recipe
from vsparse.recipe_train import Loss
from vsparse.stages.train.determinism import deterministic, generator
from vsparse.stages.train.initialisation import initialise
from vsparse.stages.train.objectives.attack import cross_entropy_value, fgsm, pgd
from vsparse.stages.train.objectives.margins import training_box
from vsparse.stages.train.plan import Moment, moment
from vsparse.stages.train.sparsifiers.base import Tools
from vsparse.stages.train.sparsifiers.lottery import Lottery
from vsparse.stages.train.state import State
from vsparse.stages.train.trainer import Trainer

# Cosentino, Zaiter, Pei, Zhu (arXiv 1912.02386): FGSM with ε 0.3; PGD with 10 steps of 0.05, a sixth of ε.
PGD = Loss(attack_steps=10, attack_step=0.05 / 0.3)
BATCH = 500


class Redrawn(Lottery):
    """The control arm: the masks of another training, and in every round weights drawn anew (Frankle, Carbin, ICLR 2019, section 2)."""

    def __init__(self, trainer: Trainer, rounds: Mapping[int, Mapping[str, Tensor]]) -> None:
        super().__init__(trainer.spec, trainer.state.full)
        self.masks = rounds

    def begin_epoch(self, state: State, at: Moment, tools: Tools) -> None:
        if at.index and at.inside == 0:
            fresh = {name: torch.from_numpy(value.copy()) for name, value in state.full.params.items()}
            initialise(state.full, fresh, tools.generator(), self.spec.initial)
            state.assign(fresh)
            state.fix(dict(self.masks[at.index]), False)


def accuracies(graph: Graph, params: Mapping[str, Tensor], split: Dataset, epsilon: float) -> dict[str, float]:
    """Returns the shares of a split classified correctly as it is, at a step of FGSM, and after PGD from a random start."""
    frozen = {name: value.detach() for name, value in params.items()}
    found = {"clean": 0, "fgsm": 0, "pgd": 0}
    draws = generator(0, 0, 0)
    for start in range(0, len(split), BATCH):
        part = slice(start, start + BATCH)
        x, labels = torch.from_numpy(split.inputs(part)), torch.from_numpy(split.labels[part])
        value, box = cross_entropy_value(graph, frozen, labels), training_box(x, epsilon)
        points = {"clean": x, "fgsm": fgsm(value, x, box, epsilon), "pgd": pgd(value, box, epsilon, PGD, draws)}
        with torch.no_grad():
            for name, point in points.items():
                found[name] += int((run(graph, frozen, point).argmax(1) == labels).sum())
    return {name: count / len(split) for name, count in found.items()}


def measure_rounds(row: Row, recipe: Recipe, splits: Splits, work: Path, masks_from: Path | None) -> dict[str, Any]:
    """Trains all rounds of a lottery recipe and measures the network at the end of each; goes on where an interrupted run stopped."""
    work.mkdir(parents=True, exist_ok=True)
    with deterministic():
        trainer = Trainer(recipe, splits, work, True)
        if masks_from is not None:
            trainer.sparsifier = trainer.stepper.sparsifier = Redrawn(
                trainer, {r: _read(masks_from, r) for r in range(1, len(trainer.phases))}
            )
        while not trainer.finished:
            at = moment(trainer.phases, trainer.epoch)
            began = time.process_time()
            trainer.run_epoch()
            trainer.history[-1]["cpu"] = round(time.process_time() - began, 3)
            if at.inside == at.phase.epochs - 1:
                if at.index:
                    # Written before the checkpoint, so that whoever finds the round finished finds its masks.
                    write_tensors(
                        _masks(work, at.index), {name: mask.to(torch.uint8).numpy() for name, mask in trainer.state.masks.items()}
                    )
                shares = accuracies(
                    trainer.state.graph, trainer.sparsifier.effective(trainer.state), splits.test, float(recipe.property.radius)
                )
                trainer.history[-1] |= {f"test_{name}": share for name, share in shares.items()}
            trainer.save()
        history = trainer.history
    ends = [epoch for epoch in history if "test_clean" in epoch]
    return {
        "epsilon": recipe.property.epsilon,
        "samples": len(splits.test),
        "epochs": len(history),
        "train_wall_s": round(sum(epoch["seconds"] for epoch in history), 1),
        "train_cpu_s": round(sum(epoch["cpu"] for epoch in history), 1),
        "rounds": [
            {"round": index, "density": end["density"], **{name: end[f"test_{name}"] for name in ("clean", "fgsm", "pgd")}}
            for index, end in enumerate(ends)
        ],
    }


def _masks(work: Path, index: int) -> Path:
    return work / f"masks-{index}.safetensors"


def _read(work: Path, index: int) -> dict[str, Tensor]:
    path = _masks(work, index)
    if not path.is_file():
        raise InputError(f"the masks {path} are gone; delete the result of the row {work.name} and run it again")
    return {name: torch.from_numpy(value) for name, value in read_masks(path).items()}
