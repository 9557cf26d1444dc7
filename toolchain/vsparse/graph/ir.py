"""The small IR that training, bounds, compression and export share: a list of typed nodes in topological order.

Every activation has the name of the node that makes it; shapes leave the batch dimension out. Weights live beside the
nodes, by name, so that one graph serves numpy (deployed float32), torch float32 (training, differentiable) and torch
float64 (verification). A node type holds what defines the operator and nothing that can be derived.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator: its name (also that of its output), the names of its inputs, and its output shape without the batch."""

    name: str
    inputs: tuple[str, ...]
    shape: Shape

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters this node uses."""
        return ()

    @property
    def size(self) -> int:
        """Number of output elements for one sample."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Affine(Node):
    """A node with a weight and an optional bias: `Conv` and `Gemm`."""

    weight: str
    bias: str | None

    @property
    def params(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


@dataclass(frozen=True, kw_only=True)
class Conv(Affine):
    """2-D cross-correlation; weight [out, in/groups, kh, kw], bias [out]; zero padding `pads` = (top, left, bottom, right)."""

    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class Gemm(Affine):
    """Fully connected layer y = W·x + b on a flat input; weight [out, in], bias [out]."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Node):
    """Per-channel normalisation with running statistics; only while training, folded before anything is exported."""

    scale: str
    bias: str
    mean: str
    variance: str
    epsilon: float

    @property
    def params(self) -> tuple[str, ...]:
        return (self.scale, self.bias, self.mean, self.variance)


@dataclass(frozen=True, kw_only=True)
class AddConstant(Node):
    """y = x + c, with c broadcast against the activation's shape."""

    constant: str

    @property
    def params(self) -> tuple[str, ...]:
        return (self.constant,)


@dataclass(frozen=True, kw_only=True)
class MulConstant(Node):
    """y = x · c, with c broadcast against the activation's shape."""

    constant: str

    @property
    def params(self) -> tuple[str, ...]:
        return (self.constant,)


@dataclass(frozen=True, kw_only=True)
class Add(Node):
    """Residual addition of two activations of one shape."""


@dataclass(frozen=True, kw_only=True)
class Relu(Node):
    """max(x, 0)."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Node):
    """Maximum over windows; padded positions never win."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class AveragePool(Node):
    """Mean over windows without padding; a global average pool is the window of the whole map."""

    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Reshape(Node):
    """Same elements in the same (row-major) order, another shape; flatten is its common case."""


@dataclass(frozen=True, kw_only=True)
class DivConstant(Node):
    """y = x / c, one division, with c broadcast against the activation's shape and nowhere zero."""

    constant: str

    @property
    def params(self) -> tuple[str, ...]:
        return (self.constant,)


@dataclass(frozen=True, kw_only=True)
class Sub(Node):
    """Difference of two activations of one shape, the first less the second."""


@dataclass(frozen=True, kw_only=True)
class Neg(Node):
    """−x, exact."""


@dataclass(frozen=True, kw_only=True)
class LeakyRelu(Node):
    """x where x >= 0, else slope · x; 0 <= slope <= 1, a float32 number."""

    slope: float


@dataclass(frozen=True, kw_only=True)
class Clip(Node):
    """min(max(x, lowest), highest), lowest <= highest; −inf and inf stand for no bound, the others are float32 numbers."""

    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Node):
    """1 / (1 + e^−x)."""


@dataclass(frozen=True, kw_only=True)
class Tanh(Node):
    """Hyperbolic tangent."""


@dataclass(frozen=True, kw_only=True)
class Transpose(Node):
    """Dimension i of the output is dimension order[i] of the input; dimensions are counted without the batch, here and below."""

    order: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Concat(Node):
    """The inputs, one or more, one after the other along dimension `axis`."""

    axis: int


@dataclass(frozen=True, kw_only=True)
class Slice(Node):
    """Elements starts[i], starts[i] + steps[i], … below stops[i] of every dimension i; 0 <= start < stop <= size, step >= 1."""

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pad(Node):
    """`value` put around the input: before[i] >= 0 of it in front of dimension i, after[i] >= 0 behind."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FakeQuant(Node):
    """Quantised and dequantised: scale · (q − zero_point) with q = clamp(round half even(x / scale) + zero_point, lowest, highest).

    `scale` is a positive float32 number; the product is exact here (docs/numerics.md, section 7.1).
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @property
    def steps(self) -> tuple[int, int]:
        """The least and the greatest value of q − zero_point."""
        return self.lowest - self.zero_point, self.highest - self.zero_point


@dataclass(frozen=True)
class Integers:
    """A parameter as a file of quantised weights stores it: values int8 or int32, scale float32, a scalar or [out]."""

    values: NDArray[np.int8] | NDArray[np.int32]
    scale: NDArray[np.float32]

    def floats(self) -> NDArray[np.float32]:
        """Returns fl(scale · values) in float32, as DequantizeLinear makes it."""
        scale = self.scale.reshape(-1, *[1] * (self.values.ndim - 1)) if self.scale.ndim else self.scale
        return np.asarray(self.values.astype(np.float32) * scale, dtype=np.float32)


@dataclass(frozen=True)
class Graph:
    """A network with one input and one output.

    `nodes` are in topological order; `params` maps names to float32 arrays. `input` is the name of the input
    activation, `output` that of the node whose value is the result (the logits). `integers` holds those parameters that
    the file stores as integers, `storage` the format of the file's floating-point tensors.
    """

    input: str
    input_shape: Shape
    nodes: tuple[Node, ...]
    output: str
    params: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    integers: dict[str, Integers] = field(default_factory=dict)
    storage: Literal["fp32", "fp16"] = "fp32"

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def node(self, name: str) -> Node:
        """Returns the node of that name; KeyError when there is none."""
        return self._by_name[name]

    def shape_of(self, name: str) -> Shape:
        """Returns the shape of an activation, the input included, without the batch dimension."""
        return self.input_shape if name == self.input else self.node(name).shape

    def consumers(self) -> dict[str, list[Node]]:
        """Returns for each activation the nodes that read it."""
        readers: dict[str, list[Node]] = {name: [] for name in [self.input, *(node.name for node in self.nodes)]}
        for node in self.nodes:
            for name in node.inputs:
                readers[name].append(node)
        return readers

    def with_params(self, params: dict[str, NDArray[np.float32]]) -> Graph:
        """Returns the same nodes with other parameters, all of them float32."""
        return replace(self, params=params, integers={})

    def tensors(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Returns the parameters as torch tensors of `dtype` (float32 by default); copies, so that changing them leaves the graph alone."""
        import torch

        return {name: torch.tensor(np.asarray(value), dtype=dtype or torch.float32, device=device) for name, value in self.params.items()}
