"""One region under search: the network relaxed over it, its bounds, and what executions contradict.

Everything that is proved here is decided in float64 under the contract; float32 only chooses slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds.ball import Box, nearest_float32
from vsparse.bounds.crown import crown
from vsparse.bounds.executions import Executions
from vsparse.bounds.proof import leaf_bounds, slope_choices
from vsparse.bounds.region import Region, box_of, centre_of
from vsparse.bounds.rounding import Rounding
from vsparse.compute_device import to_host
from vsparse.graph.ir import Graph
from vsparse.search.alpha import Effort, optimise, quantise, relax
from vsparse.search.result import Limits
from vsparse.search.tightened_bounds import empty_proof, tightened_bounds
from vsparse.search.tree import Growing, Leaf, assemble

# A float32 bound must exceed the threshold by this fraction of the size of the numbers involved before a leaf is believed.
MARGIN = 2e-6
ROOT_EFFORT = Effort(steps=20)


class RelaxedRegion:
    """State shared by all rows of a region: relaxed network, tightened bounds, and what has been proved so far.

    `box` (a box or another region) and `boxes` (the refined CROWN enclosure) are float64 [1, …]. `executions` are of points of `box`
    (default: its centre); SoundnessError where one contradicts what is proved.
    """

    def __init__(
        self,
        graph: Graph,
        rounding: Rounding,
        box: Box | Region,
        boxes: Mapping[str, Box],
        limits: Limits,
        executions: Executions | None = None,
    ) -> None:
        self.graph, self.rounding, self.box, self.limits = graph, rounding, box, limits
        self.params32 = {name: value.to(torch.float32) for name, value in rounding.params.items()}
        self.root: dict[str, Box] = dict(boxes)
        self.boxes = self.root
        self.net = relax(graph, rounding, self.params32, box, boxes)
        self.base = empty_proof(self.net.units)
        self.has_tightened_bounds = False
        self.deadline = inf if limits.seconds is None else perf_counter() + limits.seconds
        self.lower32, self.upper32 = nearest_float32(box_of(box))
        self.pool = ThreadPoolExecutor(max(1, limits.jobs))  # its threads start when they are first needed
        self.given = self.executions = executions or Executions.of(graph, rounding.params, centre_of(box))
        self.executions.check(self.root, "boxes that a search starts from")

    def visit(self, points: list[Tensor]) -> None:
        """Executes points [*input_shape] of the box, and checks what is proved against them; in other regions they need not be members."""
        if isinstance(self.box, Region) or not points:
            return
        visited = Executions.of(self.graph, self.rounding.params, torch.stack(points)).placed(self.box)
        visited.check(self.boxes, "boxes of a search")
        self.executions = self.given + visited

    def tighten(self) -> None:
        """Tightens the bounds of pre-activations with optimised slopes, once."""
        if not self.has_tightened_bounds:
            self.base, self.boxes, self.net = tightened_bounds(
                self.graph,
                self.rounding,
                self.params32,
                self.box,
                self.root,
                self.net,
                ROOT_EFFORT,
                self.limits.memory_bytes,
                self.executions,
            )
            self.has_tightened_bounds = True

    def plain(self, rows: Tensor) -> Tensor:
        """Returns the float64 bounds [R] of CROWN, without any search, for rows [R, outputs]."""
        bounds = crown(self.graph, self.rounding.params, self.box, rows, self.root, self.rounding, None, None, self.limits.memory_bytes)
        self.executions.check_rows(rows, bounds, "crown")
        return bounds[0]

    def slopes(self, rows: Tensor, threshold: float) -> tuple[Tensor, list[Growing]]:
        """Returns (float64 bounds [R], a tree of one leaf for each) of rows [R, outputs] with optimised slopes, on the processor."""
        wanted = threshold + float32_margins(rows, threshold)
        _, choice = optimise(self.net, self.net.form(rows), self.net.choice(len(rows)), wanted, ROOT_EFFORT)
        stored = to_host(quantise(choice.slopes)).numpy()
        chosen = slope_choices(self.graph, self.boxes, self.net.units, stored, np.arange(len(rows), dtype=np.int32))
        args = (self.boxes, self.rounding, chosen, None, self.limits.memory_bytes)
        bounds = crown(self.graph, self.rounding.params, self.box, rows, *args)
        self.executions.check_rows(rows, bounds, "optimised slopes")
        return to_host(bounds[0]), [Growing(leaves={0: Leaf(one, np.zeros(0, np.float32))}) for one in stored]

    def leaves(self, tree: Growing, row: Tensor) -> Tensor:
        """Returns the float64 bounds of the leaves of a tree, in preorder, on the processor."""
        proof = assemble(self.base, self.net.units, {0: tree})
        args = (self.boxes, proof, proof.trees[0], row, self.limits.memory_bytes, self.executions)
        return leaf_bounds(self.graph, self.rounding, self.box, *args)


def float32_margins(rows: Tensor, threshold: float) -> Tensor:
    """Returns by how much a float32 bound of each row [R, outputs] must exceed the threshold to be believed, [R]."""
    return (MARGIN * (10 * rows.abs().sum(dim=1) + abs(threshold))).float()
