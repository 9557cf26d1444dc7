"""Between a training and its checkpoint: everything that the next epoch depends on, checked when it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vsparse.errors import InputError
from vsparse.stages.train.checkpoint import NAME, Checkpoint
from vsparse.stages.train.masks import UNITS, Masks
from vsparse.stages.train.plan import moment
from vsparse.stages.train.shrink import pack
from vsparse.stages.train.units import groups_of

if TYPE_CHECKING:
    from vsparse.stages.train.trainer import Trainer


def checkpoint_of(trainer: Trainer) -> Checkpoint:
    """Returns the checkpoint of a training between two epochs."""
    state = trainer.state
    tensors = {"param": state.params, "mask": state.masks, "extra": state.extras, "best": trainer.best_params}
    tensors |= {f"moment.{kind}": values for kind, values in state.optimiser.moments().items()}
    average = trainer.average
    if average is not None:
        tensors["average"] = average.values
    return Checkpoint(
        fingerprint=trainer.fingerprint,
        epoch=trainer.epoch,
        steps=state.optimiser.steps,
        seconds=trainer.seconds,
        history=trainer.history,
        best=trainer.best,
        fixed=state.fixed,
        packed=state.packing is not None,
        average={} if average is None else average.scalars(),
        tensors=tensors,
    )


def restore(trainer: Trainer, found: Checkpoint) -> None:
    """Puts a training where its checkpoint left it; InputError for one that cannot come from it."""
    state = trainer.state
    tensors = found.tensors
    try:
        _check(trainer, found)
        state.masks, state.fixed = tensors.get("mask", {}), found.fixed
        if found.packed:
            state.packing = pack(state.full, state.masks)
            state.graph = state.packing.graph
        state.params = _like(tensors["param"], state.graph.params, "param")
        at = moment(trainer.phases, found.epoch - 1)
        state.extras = _like(tensors.get("extra", {}), trainer.sparsifier.kept(state, at), "extra")
        state.phase = at.phase
        moments = {kind: tensors.get(f"moment.{kind}", {}) for kind in state.optimiser.kinds}
        for kind, values in moments.items():
            _like(values, state.leaves(), kind)
        state.version += 1
        state.begin(at.phase, moments, found.steps)
        trainer.epoch, trainer.seconds = found.epoch, found.seconds
        trainer.history, trainer.best = found.history, found.best
        if found.best:
            trainer.best_params = _like(tensors["best"], state.graph.params, "best")
        if trainer.average is not None:
            values = _like(tensors["average"], state.graph.params, "average") if found.average.get("count") else {}
            trainer.average.restore(found.average, values)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"the checkpoint {trainer.directory / NAME} is damaged ({error}); remove it to train from the start") from error


def _like(values: dict[str, Tensor], wanted: object, what: str) -> dict[str, Tensor]:
    """Returns the tensors where their names, shapes and types are those of `wanted`; raises ValueError else."""
    assert isinstance(wanted, dict)
    if set(values) != set(wanted):
        raise ValueError(f"{what} holds other tensors than the network")
    for name, value in values.items():
        if tuple(value.shape) != tuple(wanted[name].shape) or value.dtype != torch.float32:
            raise ValueError(f"{what} {name} has the wrong shape or type")
    return values


def _check(trainer: Trainer, found: Checkpoint) -> None:
    """Raises ValueError for a checkpoint whose counts and masks cannot come from this training."""
    if not 0 < found.epoch <= trainer.epochs or len(found.history) != found.epoch or found.steps < 1:
        raise ValueError("its epochs do not fit the recipe")
    if any(trainer.ready(moment(trainer.phases, epoch)) for epoch in range(found.epoch)) != bool(found.best):
        raise ValueError("its best epoch does not fit the recipe")
    state = trainer.state
    shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in state.full.params.items()}
    shapes |= {f"{UNITS}{group.name}": (group.count,) for group in groups_of(state.full)}
    masks: Masks = found.tensors.get("mask", {})
    if (found.fixed or found.packed) and not masks:
        raise ValueError("its masks are missing")
    if any(name not in shapes or tuple(mask.shape) != shapes[name] or mask.dtype != torch.bool for name, mask in masks.items()):
        raise ValueError("its masks do not fit the network")
