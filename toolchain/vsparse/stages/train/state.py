"""What is trained: a graph, its parameters, masks and optimiser; packed to what structured masks keep when these are final."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsparse.graph.ir import Affine, BatchNorm, Graph
from vsparse.recipe_train import Train
from vsparse.stages.train.masks import Masks, enforce
from vsparse.stages.train.optimiser import Moments, Optimiser
from vsparse.stages.train.own import Own
from vsparse.stages.train.packing import Packing, pack
from vsparse.stages.train.phases import Phase

SCORES = "scores/"


@dataclass
class TrainingState:
    """The mutable state of a training.

    `full` is the network at full size, `graph` the one that is trained now: the same, or packed to `masks`. `params` are its tensors
    (float32), `extras` whatever a sparsifier keeps beside them (initial weights, scores), at full size. `version` counts how often
    `graph` or `params` were replaced, so that holders of references can detect it; `own` are the module's own settings. A sparsifier that
    makes scores calls `begin` again.
    """

    spec: Train
    full: Graph
    params: dict[str, Tensor]
    phase: Phase
    masks: Masks = field(default_factory=Masks)
    extras: dict[str, Tensor] = field(default_factory=dict)
    packing: Packing | None = None
    fixed: bool = False
    version: int = 0
    own: Own = field(default_factory=Own)

    def __post_init__(self) -> None:
        self.graph = self.full if self.packing is None else self.packing.graph
        self.optimiser = Optimiser(self.spec, self.leaves())

    def leaves(self) -> dict[str, Tensor]:
        """Returns the tensors that the phase trains, by name: parameters without statistics and frozen ones, or scores."""
        if self.phase.trains == "scores":
            return {name: value for name, value in self.extras.items() if name.startswith(SCORES)}
        return {name: self.params[name] for name in trainable(self.graph) if name not in self.own.frozen}

    def begin(self, phase: Phase, moments: Moments | None = None, steps: int = 0) -> None:
        """Starts a phase, with a fresh optimiser or with one that has the given moments and steps."""
        for value in [*self.params.values(), *self.extras.values()]:
            value.requires_grad_(False)
            value.grad = None
        self.phase = phase
        self.optimiser = Optimiser(self.spec, self.leaves(), moments, steps)

    def assign(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites parameters by name, in place (rewinding); those of a packed network are given at full size."""
        with torch.no_grad():
            for name, value in values.items():
                self.params[name].copy_(value if self.packing is None else self.packing.pack(name, value))

    def assign_statistics(self, values: Mapping[str, Tensor]) -> None:
        """Overwrites the running statistics of batch norm, in place, by name; those that never move stay (a momentum of 0)."""
        with torch.no_grad():
            for node in self.graph.nodes:
                for name in (node.mean, node.variance) if isinstance(node, BatchNorm) else ():
                    if self.own.momenta.get(name) != 0:
                        self.params[name].copy_(values[name])

    def fix(self, masks: Masks, structured: bool) -> None:
        """Makes these the final masks, enforced after every step; a structured network is packed from here on: same function, less work."""
        self.masks, self.fixed = masks, True
        enforce(self.params, masks)
        if structured and self.packing is None:
            self._pack(pack(self.full, masks))

    def _pack(self, packing: Packing) -> None:
        moments, steps = self.optimiser.moments(), self.optimiser.steps
        scores = self.phase.trains == "scores"
        self.packing, self.graph = packing, packing.graph
        self.params = {name: packing.pack(name, value.detach()) for name, value in self.params.items()}
        packed = moments if scores else {kind: {name: packing.pack(name, v) for name, v in kept.items()} for kind, kept in moments.items()}
        self.version += 1
        self.begin(self.phase, packed, steps)

    def mask_gradients(self) -> None:
        """Sets the gradients of what the masks leave out to 0, so that clipping and moments see only what is trained."""
        if self.packing is None:
            for name, mask in self.masks.entries.items():
                leaf = self.optimiser.leaves.get(name)
                if leaf is not None and leaf.grad is not None:
                    leaf.grad.masked_fill_(~mask, 0)

    def enforce(self) -> None:
        """Sets to 0 what the final masks leave out; a packed network holds nothing of it."""
        if self.fixed and self.packing is None:
            enforce(self.params, self.masks)

    def unpacked(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensors of the network trained now at full size, removed entries 0 (variances of removed channels 1)."""
        if self.packing is None:
            return dict(params)
        full = {name: self.packing.unpack(name, value) for name, value in params.items()}
        for node in self.full.nodes:
            if isinstance(node, BatchNorm):  # a removed channel's variance is not used, but must stay positive
                full[node.variance] = full[node.variance].masked_fill(full[node.variance] == 0, 1)
        return full


def trainable(graph: Graph) -> list[str]:
    """Returns the names of the parameters that an optimiser moves: weights, biases, scales of batch norm; no statistics, no constants."""
    names: dict[str, None] = {}
    for node in graph.nodes:
        if isinstance(node, Affine):
            names[node.weight] = None
            if node.bias is not None:
                names[node.bias] = None
        elif isinstance(node, BatchNorm):
            names[node.scale] = names[node.bias] = None
    return list(names)


def weights(graph: Graph) -> list[str]:
    """Returns the names of the Conv and Gemm weights, once each."""
    return list(dict.fromkeys(node.weight for node in graph.nodes if isinstance(node, Affine)))
