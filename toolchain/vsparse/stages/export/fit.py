"""Scales of an int8 network that certify most: a search over channels and clipping ranges, one after the other, against margins.

What is compared are proved margins in plain float64 arithmetic over the perturbation set around calibration samples; certificates rest on
none of this, as they are about the file that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import Box, crown, interval, last_layer_folding, margin_rows, region
from vsparse.bounds.region import Region, samples_of
from vsparse.errors import InputError
from vsparse.graph import Graph, run
from vsparse.graph.ir import Conv, FakeQuant, Gemm
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export.equalise import ChannelPair, equalised, pairs, reaches

# Strengths of equalisation and shares of calibrated ranges that are tried; the first is what no search gives.
STRENGTHS = (0.0, 1.0, 0.75, 0.5)
SHARES = (1.0, 0.95, 0.9, 0.8)
# Samples whose margins are compared: at most this many, and fewer where all that is tried would take more multiply-adds than `WORK`.
SAMPLES, FEWEST, WORK = 256, 16, 2.0**41
# The same where networks are counted by.
COUNTED = 1024
BATCH = 32

Quantise = Callable[[Graph, Mapping[str, float]], Graph]


@dataclass(frozen=True)
class ScaleChoice:
    """A choice: the strength of each pair's equalisation, and the share of its calibrated range that each activation's grid covers."""

    strengths: Mapping[ChannelPair, float]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Fitted:
    """A quantised network, the float32 one it was made from, its channels equalised, and the shares of ranges that its grids cover."""

    quantised: Graph
    source: Graph
    shares: Mapping[str, float]


def fitted(graph: Graph, samples: NDArray[np.float32], perturbation: PerturbationSet, quantise: Quantise) -> Fitted:
    """Returns `quantise` of the graph as it certifies most on samples [n, *input_shape], by a search whose length depends on no clock.

    `quantise(graph, shares)` quantises a float32 graph with grids over shares of the calibrated ranges. What is raised of the plain
    choice is raised; a choice that cannot be quantised is passed over. Labels are the network's own.
    """
    plain = quantise(graph, {})
    if not has_classes(graph):
        return Fitted(plain, graph, {})
    between = pairs(graph)
    # Their names: those of the activations that the plain choice has grids on.
    grids = [node.inputs[0] for node in plain.nodes if isinstance(node, FakeQuant) and node.inputs[0] != graph.input]
    tried = 1 + (len(STRENGTHS) - 1) * len(between) + (len(SHARES) - 1) * len(grids)
    values = run(graph, graph.tensors(), torch.from_numpy(samples), keep=True)
    found = {pair: reaches(graph, pair, values[pair.between].numpy()) for pair in between}
    judge = MarginLoss(graph, samples, perturbation, tried)
    best, choice, kept = judge(plain), ScaleChoice({}, {}), Fitted(plain, graph, {})

    def attempt(other: ScaleChoice) -> None:
        nonlocal best, choice, kept
        source = equalised(graph, found, other.strengths)
        try:
            made = quantise(source, other.shares)
        except InputError:
            return
        loss = judge(made)
        if loss < best:
            best, choice, kept = loss, other, Fitted(made, source, other.shares)

    for pair in between:
        for strength in STRENGTHS[1:]:
            attempt(ScaleChoice({**choice.strengths, pair: strength}, choice.shares))
    for name in grids:
        for share in SHARES[1:]:
            attempt(ScaleChoice(choice.strengths, {**choice.shares, name: share}))
    return kept


def has_classes(graph: Graph) -> bool:
    """Returns whether the output is one number for each of at least two classes, between which margins lie."""
    return len(graph.shape_of(graph.output)) == 1 and graph.shape_of(graph.output)[0] >= 2


class MarginLoss:
    """What a quantised network is compared by: the mean of softplus(−margin), of margins that bounds prove, over some samples.

    `labels` int64 [n] are the classes of the samples (default: those that `graph` gives), and `tried` is how many networks will be judged.
    `counts` makes it the mean of sigmoid(−margin) over more samples, a count of what is not proved without its jumps: for networks that
    differ in more than scales, of which the softplus would punish one for larger logits.
    """

    def __init__(
        self,
        graph: Graph,
        samples: NDArray[np.float32],
        perturbation: PerturbationSet,
        tried: int,
        labels: NDArray[np.int64] | None = None,
        counts: bool = False,
    ) -> None:
        classes = graph.shape_of(graph.output)[0]
        products = sum(
            graph.params[node.weight].size * (prod(node.shape[1:]) if isinstance(node, Conv) else 1)
            for node in graph.nodes
            if isinstance(node, Conv | Gemm)
        )
        self.counts = counts
        count = int(min(COUNTED if counts else SAMPLES, max(FEWEST, WORK // (2 * tried * classes * max(1, products)))))
        index = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(np.int64))
        some = samples[index]
        logits = run(graph, graph.tensors(), torch.from_numpy(some)).double()
        # Margins count by the size of those that the float32 network has: so far from 0 that none of them is lost count alike.
        second = logits.topk(2, dim=1).values
        self.unit = float((second[:, 0] - second[:, 1]).mean().clamp(min=1e-6)) / 8
        self.rows = margin_rows(logits.argmax(1) if labels is None else torch.from_numpy(labels[index]), classes)
        self.region: Box | Region = region(torch.from_numpy(some), perturbation)

    @torch.no_grad()
    def __call__(self, graph: Graph) -> float:
        """Returns the loss of a network; infinite where no margin is a number."""
        params = graph.tensors(torch.float64)
        margins = [self._margins(graph, params, slice(i, i + BATCH)) for i in range(0, len(self.rows), BATCH)]
        lost = -torch.cat(margins) / self.unit
        loss = float((torch.sigmoid(lost) if self.counts else torch.nn.functional.softplus(lost)).mean())
        return loss if np.isfinite(loss) else float("inf")

    def _margins(self, graph: Graph, params: Mapping[str, Tensor], index: slice) -> Tensor:
        some = samples_of(self.region, index)
        boxes = interval(graph, params, some)
        rows = self.rows[index]
        lower = torch.maximum(last_layer_folding(graph, params, rows, boxes), crown(graph, params, some, rows, boxes))
        return torch.nan_to_num(lower.amin(1), nan=-torch.inf, neginf=-torch.inf).clamp(min=-1e6)
