"""Blocks of outputs × inputs of the weights, at each position of a convolution's kernel."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor
from torch.nn.functional import pad

from vsparse.errors import InputError
from vsparse.graph.ir import Graph
from vsparse.recipe import Train
from vsparse.stages.train.budgets import PrunableLayer
from vsparse.stages.train.granularity.allocated import Allocated
from vsparse.stages.train.masks import Masks
from vsparse.stages.train.measures import weights_of


class BlockPattern(Allocated):
    """An item is a block of train.sparse.block = rows × columns entries, of neighbouring outputs and inputs; a layer is a weight.

    Of a convolution's [out, in/groups, kh, kw] a block has one position of the kernel. Where a size does not divide, the last block
    is as if padded with zeros: it scores by what is there. As blocks at the edges have fewer entries, a count is charged for
    the fullest blocks there are, so that a budget holds whichever are chosen.
    """

    structured = False

    def __init__(self, graph: Graph, spec: Train) -> None:
        self.rows, self.columns = spec.sparse.block
        self._require_fit(graph)
        super().__init__(graph, spec)

    def _require_fit(self, graph: Graph) -> None:
        """Refuses blocks that are larger than every weight, of which a layer has one: removing that would remove the layer."""
        shapes = {name: cell.shape for name, cell in weights_of(graph).items()}
        for axis, (side, what) in enumerate(zip((self.rows, self.columns), ("outputs", "inputs"), strict=True)):
            name, most = max(((name, shape[axis]) for name, shape in shapes.items()), key=lambda one: one[1])
            if side > most:
                raise InputError(
                    f"train.sparse.block spans {side} {what}, and no weight has so many: the largest, {name}, has {most}; set it to "
                    f"[{min(self.rows, most) if axis == 0 else self.rows}, {min(self.columns, most) if axis else self.columns}] or less"
                )

    def make_layers(self, graph: Graph) -> list[PrunableLayer]:
        shapes = self.shapes()
        return [
            self.make_layer(name, cell.node, prod(shapes[name]), [cell.shape], self.sparsity_factor(cell))
            for name, cell in self.cells.items()
        ]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: (-(-cell.shape[0] // self.rows), -(-cell.shape[1] // self.columns), *cell.shape[2:]) for name, cell in self.cells.items()
        }

    def costs(self, counts: Mapping[str, int]) -> dict[str, float]:
        shapes = self.shapes()
        return {
            name: self.budget.measure.sparse(self.cells[name], self._entries(self.cells[name].shape, count), prod(shapes[name]))
            for name, count in counts.items()
        }

    def _entries(self, shape: tuple[int, ...], count: int) -> int:
        """Returns the entries of the `count` fullest blocks."""
        kernel = prod(shape[2:])
        (full_rows, rest_rows), (full_columns, rest_columns) = divmod(shape[0], self.rows), divmod(shape[1], self.columns)
        kinds = [
            (self.rows * self.columns, full_rows * full_columns * kernel),
            (self.rows * rest_columns, full_rows * kernel),
            (rest_rows * self.columns, full_columns * kernel),
            (rest_rows * rest_columns, kernel),
        ]
        entries = 0
        for size, there in sorted(kinds, reverse=True):
            taken = min(count, there) if size else 0
            entries, count = entries + taken * size, count - taken
        return entries

    def items(self, saliency: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {}
        for name, (down, across, *kernel) in self.shapes().items():
            value = saliency[name].detach()
            missing = (down * self.rows - value.shape[0], across * self.columns - value.shape[1])
            padded = pad(value, [0, 0] * len(kernel) + [0, missing[1], 0, missing[0]])
            scores[name] = padded.reshape(down, self.rows, across, self.columns, *kernel).square().sum((1, 3)).sqrt()
        return scores

    def masks(self, active: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> Masks:
        masks = Masks()
        for name, cell in self.cells.items():
            wide = active[name].to(params[name].device).repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
            masks.entries[name] = wide[: cell.shape[0], : cell.shape[1]].contiguous()
        return masks

    def active(self, masks: Masks) -> dict[str, Tensor]:
        return {name: masks.entries[name][:: self.rows, :: self.columns].contiguous() for name in self.weights}
