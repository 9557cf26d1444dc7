"""The small IR that training, bounds, compression and export share: a list of typed nodes in topological order.

Every activation has the name of the node that makes it; shapes leave the batch dimension out. Weights live beside the
nodes, by name, so that one graph serves numpy (deployed float32), torch float32 (training, differentiable) and torch
float64 (verification). A node type holds what defines the operator and nothing that can be derived; the node types
themselves, with all that the graph knows of each, stand in `graph/operators`, one module for each family.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

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

    # How many inputs the operator has; None: one or more.
    arity: ClassVar[int | None] = 1
    # The ONNX operator that it is where that takes the same inputs and parameters and needs no attributes.
    onnx: ClassVar[str] = ""
    # What becomes of quantised values that it reads (graph/quantised.py): it moves them and leaves them on their grid ("moves"), its
    # results round nothing ("exact"), it computes with them in integers ("computes"), or no contract has kernels for it (None).
    on_quantised: ClassVar[Literal["moves", "exact", "computes"] | None] = None

    @property
    def params(self) -> tuple[str, ...]:
        """Names of the parameters this node uses."""
        return ()

    @property
    def size(self) -> int:
        """Number of output elements for one sample."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Unary(Node):
    """A function of one number, applied to each element."""


@dataclass(frozen=True)
class QuantisedParameter:
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
    the file stores as integers, `storage` the format of the file's floating-point tensors. With `wide_sums` a float16 file
    itself types its sums of products as float32, between casts; `unrounded` are then those of the input and of the sum that ends the
    network that it never rounds to float16 (docs/numerics.md, section 8.3).
    """

    input: str
    input_shape: Shape
    nodes: tuple[Node, ...]
    output: str
    params: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    integers: dict[str, QuantisedParameter] = field(default_factory=dict)
    storage: Literal["fp32", "fp16"] = "fp32"
    wide_sums: bool = False
    unrounded: frozenset[str] = frozenset()

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
