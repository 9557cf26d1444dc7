"""Mixed precision: which layers of an int8 network stay in float32, so that no more certified accuracy is lost than a recipe allows.

What is compared are margins on validation samples that CROWN proves in plain float64 arithmetic; certificates rest on none of this, as they
are about the file that is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import inf, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import Box, Region, crown, interval, last_layer_folding, margin_rows, refine, region, samples_of
from vsparse.bounds.refine import relaxed_inputs
from vsparse.data import Dataset
from vsparse.errors import InputError
from vsparse.graph import Graph, macs
from vsparse.graph.cost import layer_table
from vsparse.graph.ir import Affine
from vsparse.graph.shapes import show
from vsparse.perturbation import PerturbationSet, WrittenFraction
from vsparse.recipe import AUTO
from vsparse.stages.export.fit import BATCH, Fitted

# The loss is counted at the property's radius and at a larger one: few samples lie near the boundary at one radius, others at the next.
SCALES = (Fraction(1), Fraction(5, 4))
# Samples are at most this many, and fewer where all networks that may be judged would take more multiply-adds than `WORK`. Where that
# leaves too few, intermediate bounds are intervals, as refined ones cost a backward pass for each unit.
SAMPLES, FEWEST, WORK = 256, 64, 2.0**42

QuantiseWith = Callable[[Graph, Mapping[str, float], frozenset[str]], Graph]
# What hears how many layers stay, in words, and whether that misses the limit.
Tell = Callable[[str, bool], None]


@dataclass(frozen=True)
class MixedPrecision:
    """What finds the layers: the limit as a fraction of the samples, the samples that are asked, and who is told what was found."""

    limit: float
    validation: Dataset
    tell: Tell | None = None

    def float_layers(
        self,
        graph: Graph,
        start: Fitted,
        perturbation: PerturbationSet,
        quantise: QuantiseWith,
        named: frozenset[str] = frozenset(),
        names: Mapping[str, str] | None = None,
    ) -> frozenset[str]:
        """Returns the affine nodes that stay in float32, those of `named` among them, and at least one that does not.

        `start` is the float32 `graph` with all others quantised, and `quantise(graph, shares, floats)` quantises with layers in float32.
        From float32 on, the layers are put on integers one after the other, the one with the most multiply-adds first, wherever at most
        the limit is lost; where no one layer can, the one stays there that loses least. No clock decides. `names` are those by which a
        person knows the layers (default: the graph's own). Raises InputError where there are no validation samples.
        """
        costs = {row.name: row.macs for row in layer_table(graph)}
        layers = sorted((node.name for node in graph.nodes if isinstance(node, Affine) and node.name not in named), key=lambda n: -costs[n])
        judge = LostSamples(graph, self.validation, perturbation, len(layers) + 1)
        allowed = judge.allowed(self.limit)
        lost = judge(start.quantised, allowed if len(layers) > 1 else inf)
        if lost <= allowed or len(layers) < 2:
            self._told(graph, named, names, lost, judge)
            return named
        floats, best, least = named.union(layers), named, inf
        for layer in layers:
            tried = floats - {layer}
            if tried == named:
                continue
            try:
                made = quantise(start.source, start.shares, tried)
            except InputError:  # no form of integers
                continue
            lost = judge(made, allowed if least <= allowed else max(allowed, least - 1))
            if lost <= allowed:
                floats, best, least = tried, tried, lost
            elif lost < least:
                best, least = tried, lost
        self._told(graph, best, names, lost if best == named else least, judge)
        return best

    def _told(self, graph: Graph, floats: frozenset[str], names: Mapping[str, str] | None, lost: float, judge: LostSamples) -> None:
        if self.tell is None:
            return
        costs = {row.name: row.macs for row in layer_table(graph)}
        layers = [node.name for node in graph.nodes if isinstance(node, Affine)]
        shown = {
            there: ", ".join(show((names or {}).get(one, one)) for one in layers if (one in floats) == there) for there in (True, False)
        }
        count, allowed = len(judge), judge.allowed(self.limit)
        size = f"{sum(costs[name] for name in floats):,} of {macs(graph):,} multiply-adds"
        text = (
            f"int8 keeps {shown[True]} in float32 ({size}), and {shown[False]} on integers"
            if floats
            else "int8 has every layer on integers"
        )
        text += f": of {count} validation samples it loses {lost:g}, and choose.certified_loss allows {allowed}"
        missed = lost > allowed
        way_out = (
            "; no choice of float32 layers that was tried loses fewer: raise choose.certified_loss, or leave int8 out of export.precisions"
        )
        self.tell(text + (way_out if missed else ""), missed)


class LostSamples:
    """Counts the samples that CROWN proves of a float32 network and not of a quantised one: the larger count of the two radii.

    `tried` is how many networks will be judged at most. Samples are evenly spaced over the split.
    """

    def __init__(self, graph: Graph, validation: Dataset, perturbation: PerturbationSet, tried: int) -> None:
        if not len(validation):
            raise InputError(f'export.float_layers = ["{AUTO}"] is decided on validation samples, and there are none; name the layers')
        each = _work(graph) * len(SCALES) * tried
        self.refines = each[0] * FEWEST <= WORK
        count = int(min(SAMPLES, max(FEWEST, WORK // each[0 if self.refines else 1])))
        index = np.unique(np.linspace(0, len(validation) - 1, min(count, len(validation))).round().astype(np.int64))
        self.count = len(index)
        samples = torch.from_numpy(validation.inputs(index).reshape(len(index), *graph.input_shape))
        rows = margin_rows(torch.from_numpy(validation.labels[index]), graph.shape_of(graph.output)[0])
        # Of each radius the regions and rows of the samples that the float32 network proves, in batches.
        self.asked: list[tuple[Fraction, Box | Region, Tensor]] = []
        params = graph.tensors(torch.float64)
        for scale in SCALES:
            around = region(samples, _scaled(perturbation, scale))
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                proved = self._proved(graph, params, samples_of(around, part), rows[part]).nonzero().flatten() + start
                if len(proved):
                    self.asked.append((scale, samples_of(around, proved), rows[proved]))

    def __len__(self) -> int:
        return self.count

    def allowed(self, limit: float) -> int:
        """Returns how many samples may be lost where a fraction of them may."""
        return int(limit * self.count + 1e-9)

    def __call__(self, graph: Graph, enough: float = inf) -> int:
        """Returns how many samples a network loses; where these are more than `enough`, at least so many."""
        params = graph.tensors(torch.float64)
        lost = dict.fromkeys(SCALES, 0)
        for scale, around, rows in self.asked:
            lost[scale] += len(rows) - int(self._proved(graph, params, around, rows).sum())
            if lost[scale] > enough:
                break
        return max(lost.values())

    @torch.no_grad()
    def _proved(self, graph: Graph, params: Mapping[str, Tensor], around: Box | Region, rows: Tensor) -> Tensor:
        boxes = interval(graph, params, around)
        lower = last_layer_folding(graph, params, rows, boxes)
        if self.refines:
            boxes = refine(graph, params, around, boxes)
        lower = torch.fmax(lower, crown(graph, params, around, rows, boxes))
        return torch.nan_to_num(lower.amin(1), nan=-inf) > 0


def _scaled(perturbation: PerturbationSet, scale: Fraction) -> PerturbationSet:
    grown = {name: WrittenFraction(getattr(perturbation, name) * scale) for name in ("epsilon", "brightness", "contrast")}
    return perturbation.model_copy(update=grown)


def _work(graph: Graph) -> NDArray[np.float64]:
    """Returns about how many multiply-adds bounding one sample takes: with refined intermediate bounds, and with intervals."""
    classes = graph.shape_of(graph.output)[0]
    units = sum(prod(graph.shape_of(name)) for name in relaxed_inputs(graph))
    return 2.0 * max(1, macs(graph)) * np.array([classes + units, classes])
