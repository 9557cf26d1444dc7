"""Executions checked against bounds: whatever is bounded is also executed, and no execution may lie outside its bound.

A float64 execution of the network, at a point of the region, is one of those that the bounds speak about: each of its operators errs by
less than the error term E that the bounds grant it, so that nothing is added to a box before a value is compared with it
(docs/numerics.md, section 4.4). One value outside voids everything that was bounded in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from vsparse.bounds.ball import Box
from vsparse.bounds.float64 import TINY, gamma64
from vsparse.bounds.rules import Params
from vsparse.compute_device import reading_back, to_host
from vsparse.errors import SoundnessError
from vsparse.graph.execute import run
from vsparse.graph.ir import Graph


@dataclass(frozen=True)
class Executions:
    """Executed points: `values` float64 [n, *shape] of every activation, the input included.

    `samples` int64 [n] says to which row of a batch of boxes each point belongs; None: point i to row i. Boxes of batch 1 are those of
    every point. `names` [n] are what messages call the points.
    """

    graph: Graph
    values: Mapping[str, Tensor]
    samples: Tensor | None = None
    names: Sequence[str] | None = None

    @classmethod
    def of(
        cls, graph: Graph, params: Params, points: Tensor, samples: Tensor | None = None, names: Sequence[str] | None = None
    ) -> Executions:
        """Executes points [n, *input_shape], of any floating dtype, in float64; `params` are the deployed ones in float64."""
        with torch.no_grad():
            values = run(graph, params, points.detach().to(torch.float64), keep=True)
        return cls(graph, values, samples, names)

    def __len__(self) -> int:
        return len(self.values[self.graph.input])

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values[self.graph.input].device

    def __getitem__(self, index: Tensor) -> Executions:
        """Returns some of the points, by position [m]."""
        return replace(
            self,
            values={name: value[index] for name, value in self.values.items()},
            samples=index if self.samples is None else self.samples[index],
            names=None if self.names is None else [self.names[i] for i in to_host(index).tolist()],
        )

    def __add__(self, other: Executions) -> Executions:
        """Returns the points of both; those of `other` belong to the rows that it says."""
        rows = [torch.arange(len(one), device=one.device) if one.samples is None else one.samples for one in (self, other)]
        names = [[f"point {i}" for i in range(len(one))] if one.names is None else list(one.names) for one in (self, other)]
        values = {name: torch.cat([value, other.values[name]]) for name, value in self.values.items()}
        return replace(self, values=values, samples=torch.cat(rows), names=names[0] + names[1])

    def placed(self, box: Box) -> Executions:
        """Returns the points anew, once for each box [batch, *input_shape] that holds them, as points of that row."""
        x = self.values[self.graph.input].flatten(1)
        lower, upper = (end.detach().to(torch.float64).flatten(1) for end in box)
        held = ((x.unsqueeze(1) >= lower) & (x.unsqueeze(1) <= upper)).all(2)
        with reading_back("which points lie in a box"):
            points, rows = held.nonzero(as_tuple=True)
        return replace(self[points], samples=rows)

    def check(self, boxes: Mapping[str, Box], bound: str, *, empty_may_be: bool = False) -> None:
        """Raises SoundnessError for the first activation, in the order of the graph, that lies outside of its box or whose box is empty.

        `boxes` float64 [batch, *shape] by activation must hold for the executions; `bound` says in the message what made them. Rows
        that no point belongs to are looked at for emptiness alone, unless `empty_may_be` says that a part may hold no point at all.
        """
        names = [name for name in (self.graph.input, *(node.name for node in self.graph.nodes)) if name in boxes]
        fits = [self._fits(name, boxes[name], empty_may_be) for name in names]
        if not fits or bool(to_host(torch.stack(fits).all())):
            return
        with reading_back("what contradicts a bound"):
            for name in names:
                value, (lower, upper) = self.values[name], self._rows_of(boxes[name])
                held = (value >= lower) & (value <= upper)
                # A value that is not a number lies outside of every box but the one without ends.
                outside = ~held & (torch.isfinite(lower) | torch.isfinite(upper))
                if bool(outside.any()):
                    self._outside(name, outside, value, lower, upper, bound)
                empty = boxes[name][0] > boxes[name][1]
                if not empty_may_be and bool(empty.any()):
                    self._empty(name, empty, *boxes[name], bound)

    def _fits(self, name: str, box: Box, empty_may_be: bool) -> Tensor:
        """Returns whether all values of an activation lie in their boxes, and no box is empty: a bool on their device."""
        value, (lower, upper) = self.values[name], self._rows_of(box)
        held = ((value >= lower) & (value <= upper)).all()
        return held if empty_may_be else held & ~(box[0] > box[1]).any()

    def check_rows(self, rows: Tensor, lower: Tensor, bound: str, target: str | None = None) -> None:
        """Raises SoundnessError where a proved lower bound exceeds the row's value at a point.

        `rows` float64 [R, K] or [batch, R, K] of an activation (default: the output), `lower` [batch, R]. Only the sum row · value is
        rounded here, by at most γ64 of its terms.
        """
        target = self.graph.output if target is None else target
        value = self.values[target].flatten(1)
        mine = rows if rows.dim() == 2 else self._part(rows)
        found = (mine @ value.unsqueeze(2)).squeeze(2)
        size = (mine.abs() @ value.abs().unsqueeze(2)).squeeze(2)
        most = found + size * gamma64(value.shape[1] + 4, value.device) + TINY
        low = self._part(lower).expand_as(most)
        wrong = to_host(low > most)
        if bool(wrong.any()):
            point, row = wrong.nonzero()[0].tolist()
            values = to_host(found[point, row]), to_host(low[point, row])
            self._raise(
                f'{bound}: row {row} over "{target}" is {float(values[0])!r} {self._at(point)}, '
                f"below its proved lower bound {float(values[1])!r}"
            )

    def _part(self, x: Tensor) -> Tensor:
        """Returns the rows of x [batch, …] that the points belong to, [n, …] or [1, …]."""
        if len(x) == 1 or (self.samples is None and len(x) == len(self)):
            return x
        return x[: len(self)] if self.samples is None else x[self.samples]

    def _rows_of(self, box: Box) -> Box:
        return self._part(box[0]), self._part(box[1])

    def _at(self, point: int) -> str:
        return "in an execution of " + (f"point {point}" if self.names is None else self.names[point])

    def _outside(self, name: str, outside: Tensor, value: Tensor, lower: Tensor, upper: Tensor, bound: str) -> NoReturn:
        point, unit = outside.flatten(1).nonzero()[0].tolist()
        ends = [float(end.expand_as(value).flatten(1)[point, unit]) for end in (lower, upper)]
        self._raise(
            f'{bound}: unit {unit} of "{name}" is {float(value.flatten(1)[point, unit])!r} {self._at(point)}, outside of its box '
            f"[{ends[0]!r}, {ends[1]!r}]"
        )

    def _empty(self, name: str, empty: Tensor, lower: Tensor, upper: Tensor, bound: str) -> NoReturn:
        row, unit = empty.flatten(1).nonzero()[0].tolist()
        ends = [float(end.flatten(1)[row, unit]) for end in (lower, upper)]
        self._raise(f'{bound}: unit {unit} of "{name}" has the box {ends} in row {row}, whose lower end is above the upper one')

    def _raise(self, what: str) -> NoReturn:
        raise SoundnessError(
            f"a bound is wrong. {what}. This is a bug in vsparse: nothing of this run is certified; report it with the model file"
        )
