"""Translates torch functions that move elements, and functions of one number, into nodes of the graph."""

from __future__ import annotations

from math import inf, isnan
from typing import Any

import numpy as np

from vsparse.graph.ir import Clip, Concat, LeakyRelu, Pad, Sigmoid, Slice, Tanh, Transpose
from vsparse.graph.torch_values import Activation, Refused, TorchValues


def _float32(value: Any) -> float:
    """Returns a number as float32 holds it, which is what torch computes with."""
    if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value):
        raise Refused("needs numbers for its constants")
    with np.errstate(over="ignore"):
        return float(np.float32(value))


class TorchMoves(TorchValues):
    """Each method takes what torch's function takes, and returns its result as an activation."""

    # Functions of one number ------------------------------------------------------------------------------------------

    def leaky_relu(self, x: Any, negative_slope: Any = 0.01, inplace: bool = False) -> Activation:
        slope = _float32(negative_slope)
        if not 0 <= slope <= 1:
            raise Refused(f"has the slope {negative_slope}; one from 0 to 1 is wanted")
        return Activation(self.builder.add(LeakyRelu(name=self.fresh(), inputs=(self.activation(x).name,), shape=(), slope=slope)))

    def clip(self, x: Any, min: Any = None, max: Any = None) -> Activation:
        lowest, highest = -inf if min is None else _float32(min), inf if max is None else _float32(max)
        if not lowest <= highest or lowest == inf or highest == -inf:
            raise Refused(f"clips to [{lowest}, {highest}]; numbers in order are wanted")
        source = self.activation(x)
        if (lowest, highest) == (-inf, inf):
            return source
        return Activation(self.builder.add(Clip(name=self.fresh(), inputs=(source.name,), shape=(), lowest=lowest, highest=highest)))

    def hardtanh(self, x: Any, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Activation:
        return self.clip(x, min_val, max_val)

    def relu6(self, x: Any, inplace: bool = False) -> Activation:
        return self.clip(x, 0, 6)

    def sigmoid(self, x: Any) -> Activation:
        return Activation(self.builder.add(Sigmoid(name=self.fresh(), inputs=(self.activation(x).name,), shape=())))

    def tanh(self, x: Any) -> Activation:
        return Activation(self.builder.add(Tanh(name=self.fresh(), inputs=(self.activation(x).name,), shape=())))

    # Moves ------------------------------------------------------------------------------------------------------------

    def _axis(self, dim: Any, rank: int) -> int:
        """Returns a dimension of a tensor of so many dimensions, batch included, as one of a sample's shape."""
        if not isinstance(dim, int) or not -rank <= dim < rank:
            raise Refused(f"has the dimension {dim}, which its input does not have")
        if dim % rank == 0:
            raise Refused("works along the batch; samples must stay apart")
        return dim % rank - 1

    def permute(self, x: Any, *dims: Any) -> Activation:
        x = self.activation(x)
        dims = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
        rank = len(self.shape(x)) + 1
        if sorted(d % rank for d in dims if isinstance(d, int)) != list(range(rank)) or dims[0] % rank != 0:
            raise Refused("must keep the batch first")
        return self._permuted(x, tuple(d % rank - 1 for d in dims[1:]))

    def transpose(self, x: Any, dim0: Any, dim1: Any) -> Activation:
        x = self.activation(x)
        rank = len(self.shape(x)) + 1
        order = list(range(rank - 1))
        one, other = self._axis(dim0, rank), self._axis(dim1, rank)
        order[one], order[other] = order[other], order[one]
        return self._permuted(x, tuple(order))

    def _permuted(self, x: Activation, order: tuple[int, ...]) -> Activation:
        shape = self.shape(x)
        moved = [i for i in order if shape[i] != 1]
        if moved == sorted(moved):  # dimensions of size 1 pass through others without moving an element
            return self.to_shape(x, tuple(shape[i] for i in order))
        return Activation(self.builder.add(Transpose(name=self.fresh(), inputs=(x.name,), shape=(), order=order)))

    def cat(self, tensors: Any, dim: Any = 0) -> Activation:
        if not isinstance(tensors, tuple | list) or not tensors or not all(isinstance(x, Activation) for x in tensors):
            raise Refused("joins something that is no activation; use F.pad where it is one number")
        axis = self._axis(dim, len(self.shape(tensors[0])) + 1)
        if len(tensors) == 1:
            return self.activation(tensors[0])
        return Activation(self.builder.add(Concat(name=self.fresh(), inputs=tuple(x.name for x in tensors), shape=(), axis=axis)))

    def slice(self, x: Activation, index: Any) -> Activation:
        """Reads x[:, a:b, i, ...]: slices with steps from 1, and single places, whose dimension goes."""
        places, shape = list(index) if isinstance(index, tuple) else [index], self.shape(x)
        if places.count(Ellipsis) > 1 or not all(isinstance(place, slice | int) or place is Ellipsis for place in places):
            raise Refused("is indexed by something other than slices and numbers")
        if Ellipsis in places:
            at = places.index(Ellipsis)
            places[at : at + 1] = [slice(None)] * (len(shape) + 2 - len(places))
        if len(places) > len(shape) + 1 or places[0] != slice(None):
            raise Refused("must keep the batch first and whole; write x[:, …]")
        places += [slice(None)] * (len(shape) + 1 - len(places))
        cut, target = [], []
        for place, size in zip(places[1:], shape, strict=True):
            if isinstance(place, int):
                if not -size <= place < size:
                    raise Refused(f"picks the place {place} of {size}")
                cut.append((place % size, place % size + 1, 1))
                continue
            if not all(part is None or isinstance(part, int) for part in (place.start, place.stop, place.step)):
                raise Refused("is sliced by something other than numbers")
            if place.step is not None and place.step < 1:
                raise Refused("has a step below 1")
            cut.append(place.indices(size))
            target.append(len(range(*cut[-1])))
        if cut != [(0, size, 1) for size in shape]:
            starts, stops, steps = zip(*cut, strict=True)
            x = Activation(self.builder.add(Slice(name=self.fresh(), inputs=(x.name,), shape=(), starts=starts, stops=stops, steps=steps)))
        if not target:
            raise Refused("leaves a number for each sample; keep one dimension")
        return self.to_shape(x, tuple(target))

    def chunk(self, x: Any, chunks: Any, dim: Any = 0) -> tuple[Activation, ...]:
        x = self.activation(x)
        axis = self._axis(dim, len(self.shape(x)) + 1)
        size = self.shape(x)[axis]
        if not isinstance(chunks, int) or chunks < 1:
            raise Refused("must be cut into a fixed number of parts")
        each = -(-size // chunks)
        return tuple(self.slice(x, (slice(None),) * (axis + 1) + (slice(i, i + each),)) for i in range(0, size, each))

    def pad(self, x: Any, pad: Any, mode: str = "constant", value: Any = None) -> Activation:
        source = self.activation(x)
        shape = self.shape(source)
        if mode != "constant":
            raise Refused(f'pads in the mode "{mode}"; use "constant"')
        if not isinstance(pad, tuple | list) or len(pad) % 2 or len(pad) > 2 * len(shape) or not all(isinstance(p, int) for p in pad):
            raise Refused("must pad a sample's own dimensions by fixed numbers")
        # torch counts from the last dimension.
        first, last = ([0] * (len(shape) - len(pad) // 2) + list(reversed(pad[i::2])) for i in (0, 1))
        if not any(pad):
            return source
        filled = _float32(0.0 if value is None else value)
        node = Pad(name=self.fresh(), inputs=(source.name,), shape=(), before=tuple(first), after=tuple(last), value=filled)
        return Activation(self.builder.add(node))

    def squeeze(self, x: Any, dim: Any = None) -> Activation:
        x = self.activation(x)
        if not isinstance(dim, int):
            raise Refused("must name one dimension to remove; without it, a batch of one would go too")
        axis, shape = self._axis(dim, len(self.shape(x)) + 1), self.shape(x)
        return x if shape[axis] != 1 else self.to_shape(x, (*shape[:axis], *shape[axis + 1 :]))

    def unsqueeze(self, x: Any, dim: Any) -> Activation:
        x = self.activation(x)
        axis, shape = self._axis(dim, len(self.shape(x)) + 2), self.shape(x)
        return self.to_shape(x, (*shape[:axis], 1, *shape[axis:]))
