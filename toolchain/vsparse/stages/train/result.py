"""The results of training: a report for each epoch, and the trained graph with its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vsparse.compute_device import to_host
from vsparse.graph import fold_batch_norm
from vsparse.graph.ir import Affine, Graph


@dataclass(frozen=True)
class EpochReport:
    """One epoch: counts from 1, mean loss, fractions of the validation split, fraction of weights kept, radius, and times in seconds.

    `certified` is the fraction that is robust by `measure`: interval or crown bounds, or an attack that fails.
    """

    epoch: int
    epochs: int
    loss: float
    clean: float
    certified: float
    measure: str
    phase: str
    density: float
    epsilon: float
    learning_rate: float
    seconds: float
    eta_s: float


@dataclass(frozen=True)
class BatchReport:
    """Where in an epoch a training is: counts from 1, the radius of the moment, and about how many seconds are left."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    phase: str
    epsilon: float
    eta_s: float


@dataclass(frozen=True)
class StepsReport:
    """The steps of one epoch: the number of the first (from 1, over the whole training), and of each its loss, norm of gradient, radius."""

    epoch: int
    epochs: int
    phase: str
    first: int
    learning_rate: float
    loss: list[float]
    gradient_norm: list[float]
    epsilon: list[float]


@dataclass(frozen=True)
class TrainResult:
    """The trained network: float32, batch norm folded, masked weights exactly 0; `masks` has a bool array for each Affine weight.

    It is that of `epoch` (from 1), whose robustness was measured on `robust_samples` validation samples.
    """

    graph: Graph
    masks: dict[str, NDArray[np.bool_]]
    history: list[dict[str, Any]]
    seconds: float
    epoch: int
    robust_samples: int


def finish(graph: Graph, params: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[Graph, dict[str, NDArray[np.bool_]]]:
    """Returns the deployed graph (batch norm folded, masks applied) and the mask of every weight, all True where nothing was masked.

    Factors and summands of channels behind an affine layer are folded too: a runtime would do it, in float32, when it loads the file.
    """
    trained = graph.with_params({name: to_host(params[name]).numpy().astype(np.float32) for name in graph.params})
    folded = fold_batch_norm(trained, constants=True)
    arrays = dict(folded.params)
    chosen: dict[str, NDArray[np.bool_]] = {}
    for node in folded.nodes:
        if not isinstance(node, Affine):
            continue
        mask = masks.get(node.weight)
        chosen[node.weight] = np.ones(arrays[node.weight].shape, dtype=bool) if mask is None else to_host(mask).numpy().copy()
        arrays[node.weight] = np.where(chosen[node.weight], arrays[node.weight], np.float32(0))
    return folded.with_params(arrays), chosen
