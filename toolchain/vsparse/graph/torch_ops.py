"""Translates torch functions and tensor methods, one method each, into nodes of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vsparse.graph.ir import Add, AddConstant, AveragePool, MaxPool, MulConstant, Neg, Relu, Sub
from vsparse.graph.shapes import window_output
from vsparse.graph.torch_moves import TorchMoves
from vsparse.graph.torch_values import BATCH, Activation, Constant, Refused

LEAVE_OUT = "leave it out, since the network ends with its logits"
SUBSTITUTES = {
    "GELU": "ReLU",
    "SiLU": "ReLU",
    "ELU": "ReLU",
    "SELU": "ReLU",
    "PReLU": "LeakyReLU, whose slope is fixed",
    "RReLU": "LeakyReLU",
    "Softplus": "ReLU",
    "Mish": "ReLU",
    "Hardswish": "ReLU",
    "Hardsigmoid": "Hardtanh",
    "gelu": "relu",
    "silu": "relu",
    "elu": "relu",
    "hardswish": "relu",
    "LayerNorm": "BatchNorm2d",
    "GroupNorm": "BatchNorm2d",
    "InstanceNorm2d": "BatchNorm2d",
    "Softmax": LEAVE_OUT,
    "LogSoftmax": LEAVE_OUT,
    "softmax": LEAVE_OUT,
    "log_softmax": LEAVE_OUT,
    "AdaptiveMaxPool2d": "MaxPool2d with its kernel written out",
    "ConvTranspose2d": "Conv2d",
    "Conv1d": "Conv2d on a map of height 1",
    "MultiheadAttention": "convolutions",
    "conv2d": "an nn.Conv2d layer",
    "linear": "an nn.Linear layer",
    "batch_norm": "an nn.BatchNorm2d layer",
    "stack": "cat",
    "matmul": "an nn.Linear layer",
    "exp": "sigmoid",
}


class TorchOps(TorchMoves):
    """The operations on activations; the reader of modules builds on it."""

    # Functions and methods --------------------------------------------------------------------------------------------

    def relu(self, x: Any, inplace: bool = False) -> Activation:
        return Activation(self.builder.add(Relu(name=self.fresh(), inputs=(self.activation(x).name,), shape=())))

    def dropped(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x

    def reshape(self, x: Any, *shape: Any) -> Activation:
        x = self.activation(x)
        sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else list(shape)
        total = prod(self.shape(x))
        if (
            len(sizes) >= 2
            and sizes[0] == -1
            and all(isinstance(size, int) and size > 0 for size in sizes[1:])
            and prod(sizes[1:]) == total
        ):
            sizes[0] = BATCH
        if len(sizes) < 2 or sizes[0] is not BATCH:
            raise Refused("must keep the batch first; write x.view(x.size(0), -1) or x.flatten(1)")
        rest = sizes[1:]
        if rest.count(-1) > 1 or not all(isinstance(size, int) and (size == -1 or size > 0) for size in rest):
            raise Refused(f"has the shape {rest}, which is not understood")
        known = prod(size for size in rest if size != -1)
        if total % known:
            raise Refused(f"cannot turn {total} elements into shape {rest}")
        target = tuple(total // known if size == -1 else size for size in rest)
        return self.to_shape(x, target)

    def flatten(self, x: Any, start_dim: int = 0, end_dim: int = -1) -> Activation:
        x = self.activation(x)
        shape = self.shape(x)
        rank = len(shape) + 1
        start, end = start_dim % rank, end_dim % rank
        if start == 0:
            raise Refused("must keep the batch first; write flatten(1)")
        return self.to_shape(x, (*shape[: start - 1], prod(shape[start - 1 : end]), *shape[end:]))

    def size(self, x: Any, dim: int | None = None) -> Any:
        full = (BATCH, *self.shape(self.activation(x)))
        return full if dim is None else full[dim]

    def attribute(self, x: Any, name: str) -> Any:
        if name != "shape":
            raise Refused(f'reads "{name}" of a tensor, which a graph cannot say')
        return self.size(x)

    def item(self, x: Any, index: Any) -> Any:
        return self.slice(x, index) if isinstance(x, Activation) else x[index]

    def add(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            raise Refused("adds with alpha; write the multiplication out")
        if isinstance(a, Activation) and isinstance(b, Activation):
            return Activation(self.builder.add(Add(name=self.fresh(), inputs=(a.name, b.name), shape=())))
        return self._arithmetic(operator.add, a, b, lambda x, c: self._constant(AddConstant, x, c))

    def sub(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            raise Refused("must have alpha=1")
        if isinstance(b, Activation):
            if isinstance(a, Activation):
                return Activation(self.builder.add(Sub(name=self.fresh(), inputs=(a.name, b.name), shape=())))
            return self.add(a, self.neg(b))  # the negation is exact, so only the addition rounds
        return self._arithmetic(operator.sub, a, b, lambda x, c: self._constant(AddConstant, x, Constant("", -c.value, c.trainable)))

    def mul(self, a: Any, b: Any) -> Any:
        if isinstance(a, Activation) and isinstance(b, Activation):
            raise Refused("multiplies two activations; a graph can only multiply by constants")
        return self._arithmetic(operator.mul, a, b, lambda x, c: self._constant(MulConstant, x, c))

    def div(self, a: Any, b: Any) -> Any:
        if isinstance(b, Activation):
            raise Refused("divides by an activation")
        return self._arithmetic(operator.truediv, a, b, lambda x, c: self._constant(MulConstant, x, Constant("", 1 / c.value, c.trainable)))

    def neg(self, x: Any) -> Any:
        if isinstance(x, Constant):
            return Constant("", -x.value, x.trainable)
        return Activation(self.builder.add(Neg(name=self.fresh(), inputs=(self.activation(x).name,), shape=())))

    def _arithmetic(self, op: Callable[[Any, Any], Any], a: Any, b: Any, make: Callable[[Activation, Constant], Activation]) -> Any:
        if isinstance(a, Activation) or isinstance(b, Activation):
            x, c = (a, b) if isinstance(a, Activation) else (b, a)
            with np.errstate(all="ignore"):
                return make(x, _as_constant(c))
        if isinstance(a, Constant) or isinstance(b, Constant):
            first, second = _as_constant(a), _as_constant(b)
            with np.errstate(all="ignore"):
                return Constant("", np.asarray(op(first.value, second.value)), first.trainable or second.trainable)
        if isinstance(a, int) and isinstance(b, int):
            return op(a, b)
        raise Refused("combines values that are not understood")

    def _constant(self, kind: type[AddConstant] | type[MulConstant], x: Activation, c: Constant) -> Activation:
        if c.trainable and not c.name:
            raise Refused("computes with a trainable parameter before using it; register it as a buffer, or add or multiply by it directly")
        with np.errstate(over="ignore"):
            value = c.value.astype(np.float32)
        while value.ndim > len(self.shape(x)):
            if value.shape[0] != 1:
                raise Refused(f"combines the activation with a constant of shape {c.value.shape}, which differs from sample to sample")
            value = value[0]
        name = c.name
        if not name or name not in self.builder.params:
            name = self.builder.param(c.name or f"{self.fresh()}.constant", value)
        if c.name and name != c.name:
            raise Refused(f'uses the buffer "{c.name}", which has the name of an operation; rename it')
        return Activation(self.builder.add(kind(name=self.fresh(), inputs=(x.name,), shape=(), constant=name)))

    def max_pool(
        self,
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Activation:
        x, kernel, stride, (height, width) = self._window(x, kernel_size, stride, padding, ceil_mode)
        if pair(dilation) != (1, 1) or return_indices:
            raise Refused("must have dilation=1 and return_indices=False")
        return Activation(
            self.builder.add(
                MaxPool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride, pads=(height, width, height, width))
            )
        )

    def average_pool(
        self,
        x: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Activation:
        x, kernel, stride, pads = self._window(x, kernel_size, stride, padding, ceil_mode)
        if pads != (0, 0) or divisor_override is not None:
            raise Refused("must have padding=0 and no divisor_override")
        return Activation(self.builder.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride)))

    def _window(
        self, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
    ) -> tuple[Activation, tuple[int, int], tuple[int, int], tuple[int, int]]:
        x, kernel = self.activation(x), pair(kernel_size)
        strides, pads = pair(stride) if stride is not None and stride != [] else kernel, pair(padding)
        for size, k, s, p in zip(self.shape(x)[1:], kernel, strides, pads, strict=False):
            if ceil_mode and window_output(size, k, s, p, p) * s + k - s != size + 2 * p:
                raise Refused("must have ceil_mode=False")
        return x, kernel, strides, pads

    def adaptive(self, x: Any, output_size: Any) -> Activation:
        x = self.activation(x)
        shape = self.shape(x)
        if len(shape) != 3 or (output_size if isinstance(output_size, tuple | list) else (output_size, output_size)) not in (
            (1, 1),
            [1, 1],
        ):
            raise Refused("must have output size 1; use AvgPool2d with its kernel written out")
        return Activation(
            self.builder.add(
                AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=(shape[1], shape[2]), stride=(shape[1], shape[2]))
            )
        )

    def mean(self, x: Any, dim: Any = None, keepdim: bool = False) -> Activation:
        x = self.activation(x)
        dims = sorted(d % 4 for d in dim) if isinstance(dim, tuple | list) else None
        if dims != [2, 3] or len(self.shape(x)) != 3:
            raise Refused("must be the mean over the map, x.mean((2, 3))")
        pooled = self.adaptive(x, 1)
        return pooled if keepdim else self.to_shape(pooled, (self.shape(x)[0],))


def pair(value: Any) -> tuple[int, int]:
    a, b = value if isinstance(value, tuple | list) else (value, value)
    return int(a), int(b)


def _as_constant(value: Any) -> Constant:
    if isinstance(value, Constant):
        return value
    if isinstance(value, int | float):
        return Constant("", np.asarray(value, np.float64))
    raise Refused("combines an activation with something that is no buffer and no number")


def no_way_to_say(name: str) -> str:
    advice = SUBSTITUTES.get(name, "Conv2d, Linear, BatchNorm, ReLU, pooling and additions")
    return "has no bounds here; " + (advice if advice == LEAVE_OUT else f"use {advice}")


METHODS: dict[str, Callable[..., Any]] = {
    "relu": TorchOps.relu,
    "relu_": TorchOps.relu,
    "contiguous": TorchOps.dropped,
    "view": TorchOps.reshape,
    "reshape": TorchOps.reshape,
    "flatten": TorchOps.flatten,
    "size": TorchOps.size,
    "add": TorchOps.add,
    "add_": TorchOps.add,
    "sub": TorchOps.sub,
    "mul": TorchOps.mul,
    "div": TorchOps.div,
    "neg": TorchOps.neg,
    "mean": TorchOps.mean,
    "sigmoid": TorchOps.sigmoid,
    "tanh": TorchOps.tanh,
    "clamp": TorchOps.clip,
    "clip": TorchOps.clip,
    "permute": TorchOps.permute,
    "transpose": TorchOps.transpose,
    "squeeze": TorchOps.squeeze,
    "unsqueeze": TorchOps.unsqueeze,
    "chunk": TorchOps.chunk,
}

# Keyed by the function itself: some of torch's wrappers share one name.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.relu: TorchOps.relu,
    torch.relu: TorchOps.relu,
    F.dropout: TorchOps.dropped,
    F.dropout2d: TorchOps.dropped,
    torch.reshape: TorchOps.reshape,
    torch.flatten: TorchOps.flatten,
    getattr: TorchOps.attribute,
    operator.getitem: TorchOps.item,
    operator.add: TorchOps.add,
    operator.iadd: TorchOps.add,
    torch.add: TorchOps.add,
    operator.sub: TorchOps.sub,
    operator.isub: TorchOps.sub,
    torch.sub: TorchOps.sub,
    operator.mul: TorchOps.mul,
    operator.imul: TorchOps.mul,
    torch.mul: TorchOps.mul,
    operator.truediv: TorchOps.div,
    operator.itruediv: TorchOps.div,
    torch.div: TorchOps.div,
    operator.neg: TorchOps.neg,
    torch.neg: TorchOps.neg,
    F.max_pool2d: TorchOps.max_pool,
    F.avg_pool2d: TorchOps.average_pool,
    F.adaptive_avg_pool2d: TorchOps.adaptive,
    torch.mean: TorchOps.mean,
    F.leaky_relu: TorchOps.leaky_relu,
    F.hardtanh: TorchOps.hardtanh,
    F.relu6: TorchOps.relu6,
    F.sigmoid: TorchOps.sigmoid,
    F.tanh: TorchOps.tanh,
    F.pad: TorchOps.pad,
    torch.sigmoid: TorchOps.sigmoid,
    torch.tanh: TorchOps.tanh,
    torch.clamp: TorchOps.clip,
    torch.clip: TorchOps.clip,
    torch.permute: TorchOps.permute,
    torch.transpose: TorchOps.transpose,
    torch.squeeze: TorchOps.squeeze,
    torch.unsqueeze: TorchOps.unsqueeze,
    torch.cat: TorchOps.cat,
    torch.concat: TorchOps.cat,
    torch.chunk: TorchOps.chunk,
}
