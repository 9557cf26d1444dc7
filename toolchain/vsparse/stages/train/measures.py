"""What a budget counts: weights, multiply-adds, bytes or nominal time of a network of which only some entries are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from vsparse.graph.ir import Affine, Conv, Graph
from vsparse.recipe import Train

UNIT = {"weights": "weights", "macs": "multiply-adds", "bytes": "bytes", "latency": "units of nominal time"}
FLOAT = 4


@dataclass(frozen=True)
class Weight:
    """A weight of Conv or Gemm nodes: `node` is the first that uses it, `positions` how often all uses multiply each entry.

    `is_conv_or_last`: whether a convolution or the last layer uses it.
    """

    name: str
    node: str
    shape: tuple[int, ...]
    positions: int
    is_conv_or_last: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


def weights_of(graph: Graph) -> dict[str, Weight]:
    """Returns the weights of a graph by name, in order of execution.

    The shape is that of the parameter, so a grouped convolution counts as [out, in/groups, kh, kw].
    """
    found: dict[str, Weight] = {}
    for node in graph.nodes:
        if not isinstance(node, Affine):
            continue
        positions = prod(node.shape[1:]) if isinstance(node, Conv) else 1
        before = found.get(node.weight)
        is_conv_or_last = isinstance(node, Conv) or node.name == graph.output or (before is not None and before.is_conv_or_last)
        if before is None:
            shape = tuple(int(size) for size in graph.params[node.weight].shape)
            found[node.weight] = Weight(node.weight, node.name, shape, positions, is_conv_or_last)
        else:
            found[node.weight] = replace(before, positions=before.positions + positions, is_conv_or_last=is_conv_or_last)
    return found


@dataclass(frozen=True)
class Measure:
    """One of the four measures of `train.budget`; biases and norms are left out of all of them.

    With k of a weight's n entries kept, each used at p positions of the output:

    - weights: k.
    - macs: k · p.
    - bytes, float32: 4 · k when what is left is stored dense (channels, packed); else the cheaper of dense storage and of the values
      with a bitmap, min(4 · n, 4 · k + ⌈bits / 8⌉), with a bit for each entry (element, 2:4) or each block.
    - latency: max(k · p / macs_per_byte, bytes), summed over the weights: the roofline (Williams, Waterman, Patterson, CACM 2009)
      of each layer at batch 1, where weights are read once a sample and layers run one after the other. The unit is the time
      in which one byte is read. Activations and the overhead of sparse formats are left out, since training cannot depend on a device.
    """

    name: str
    macs_per_byte: float

    @staticmethod
    def of(spec: Train) -> Measure:
        """Returns the measure that a recipe asks for."""
        return Measure(spec.budget, spec.macs_per_byte)

    @property
    def unit(self) -> str:
        """What it counts, for messages."""
        return UNIT[self.name]

    def packed(self, weight: Weight, entries: int) -> float:
        """Returns the cost of a weight with `entries` left, stored dense."""
        return self._cost(weight, entries, FLOAT * entries)

    def sparse(self, weight: Weight, entries: int, bits: int) -> float:
        """Returns the cost of a weight with `entries` nonzero and a bitmap of so many bits."""
        return self._cost(weight, entries, min(FLOAT * weight.size, FLOAT * entries + -(-bits // 8)))

    def _cost(self, weight: Weight, entries: int, size: int) -> float:
        match self.name:
            case "weights":
                return entries
            case "macs":
                return entries * weight.positions
            case "bytes":
                return size
            case _:
                return max(entries * weight.positions / self.macs_per_byte, size)
