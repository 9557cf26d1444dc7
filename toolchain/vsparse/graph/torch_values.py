"""What the readers of torch operations share: the values they handle, and the graph that is being built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.builder import Builder
from vsparse.graph.ir import Reshape, Shape


class Batch:
    """Stands for the batch size while shapes are followed through `x.view(x.size(0), -1)`."""


BATCH = Batch()


@dataclass(frozen=True)
class Activation:
    """The value of a node of the graph."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A buffer, or what constants were combined to; `name` is that of the buffer, empty for a computed one."""

    name: str
    value: NDArray[np.float64]
    trainable: bool = False


class Refused(Exception):
    """A layer cannot be read; carries the reason, the interpreter adds the layer's name."""


class TorchValues:
    """Holds the graph that is being built, and says what may be asked of a value."""

    name: str
    builder: Builder

    def shape(self, x: Activation) -> Shape:
        """Returns the shape of an activation without the batch."""
        return self.builder.shapes[x.name]

    def fresh(self) -> str:
        """Returns an unused name for the operation that is read now."""
        return self.builder.unique(self.name)

    def activation(self, x: Any) -> Activation:
        """Returns x, which must be an activation."""
        if not isinstance(x, Activation):
            raise Refused("is applied to something that is not an activation")
        return x

    def to_shape(self, x: Activation, target: Shape) -> Activation:
        """Returns the activation reshaped for each sample."""
        if target == self.shape(x):
            return x
        return Activation(self.builder.add(Reshape(name=self.fresh(), inputs=(x.name,), shape=target)))
