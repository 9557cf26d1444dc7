"""Reads an `nn.Module` into a graph with torch.fx; what the graph cannot say is refused by the layer's name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from vsparse.errors import InputError
from vsparse.graph.builder import Builder
from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    BatchNorm,
    Conv,
    Gemm,
    Graph,
    MaxPool,
    MulConstant,
    Relu,
    Reshape,
    Shape,
)
from vsparse.graph.shapes import window_output
from vsparse.graph.validate import validate

SUBSTITUTES = {
    "GELU": "ReLU",
    "SiLU": "ReLU",
    "ELU": "ReLU",
    "SELU": "ReLU",
    "LeakyReLU": "ReLU",
    "PReLU": "ReLU",
    "ReLU6": "ReLU",
    "Hardswish": "ReLU",
    "Sigmoid": "ReLU",
    "Tanh": "ReLU",
    "gelu": "relu",
    "silu": "relu",
    "leaky_relu": "relu",
    "sigmoid": "relu",
    "tanh": "relu",
    "LayerNorm": "BatchNorm2d",
    "GroupNorm": "BatchNorm2d",
    "InstanceNorm2d": "BatchNorm2d",
    "Softmax": "no softmax: the network ends with its logits",
    "LogSoftmax": "no softmax: the network ends with its logits",
    "softmax": "no softmax: the network ends with its logits",
    "log_softmax": "no softmax: the network ends with its logits",
    "AdaptiveMaxPool2d": "MaxPool2d with its kernel written out",
    "ConvTranspose2d": "Conv2d",
    "Conv1d": "Conv2d on a map of height 1",
    "Upsample": "a network without upsampling",
    "MultiheadAttention": "convolutions",
    "cat": "a residual addition",
}


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


class _Refused(Exception):
    """A layer cannot be read; carries the reason, the interpreter adds the layer's name."""


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__(param_shapes_constant=False)


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Returns the graph of a module that maps [batch, *input_shape] to logits.

    Parameter names are the module's dotted names, so `dict(module.named_parameters()) | dict(module.named_buffers())` can be
    passed as `params` to `run` and to bounds, and training then changes the module itself. BatchNorm is kept; dropout and
    Identity are left out. Division by a constant becomes multiplication by its reciprocal, rounded once to float32.
    Raises InputError that names the layer, its type, the reason and a substitute for everything a graph cannot say: other
    layers, control flow that depends on data, a layer used twice, padding that is not zero, several inputs or outputs.
    """
    try:
        traced = _Tracer().trace(module)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{type(module).__name__} cannot be traced: {reason}; its forward must not branch or loop on the data") from error
    return validate(_Reader(module, traced, tuple(int(size) for size in input_shape)).read())


class _Reader:
    def __init__(self, module: nn.Module, traced: fx.Graph, input_shape: Shape) -> None:
        self.module, self.traced, self.input_shape = module, traced, input_shape
        self.modules = dict(module.named_modules())
        self.used: dict[str, str] = {}
        self.values: dict[fx.Node, Any] = {}

    def read(self) -> Graph:
        inputs = [node for node in self.traced.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise InputError(f"{type(self.module).__name__} has {len(inputs)} inputs; a network with one input tensor is wanted")
        self.builder = Builder("input", self.input_shape)
        self.values[inputs[0]] = Activation("input")
        for node in self.traced.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return self._output(node)
            self.name = str(node.target) if node.op == "call_module" else node.name
            try:
                self.values[node] = self._value(node)
            except _Refused as refusal:
                raise InputError(f"the network cannot be used: {self._describe(node)} {refusal}") from None
            except InputError as error:
                raise InputError(f"the network cannot be used: {error}") from None
        raise InputError(f"{type(self.module).__name__} returns nothing")

    def _output(self, node: fx.Node) -> Graph:
        result = node.args[0]
        value = self.values.get(result) if isinstance(result, fx.Node) else None
        if not isinstance(value, Activation):
            raise InputError(f"{type(self.module).__name__} must return one tensor that depends on its input")
        return self.builder.graph(value.name)

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f'layer "{node.target}" ({type(self.modules[str(node.target)]).__name__})'
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        stack = node.meta.get("nn_module_stack")
        inside = next(reversed(stack)) if stack else ""
        return f'operation "{kind}"' + (f' in layer "{inside}"' if inside else "")

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args = fx.node.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.values[n])
        if node.op == "call_module":
            if kwargs or len(args) != 1 or not isinstance(args[0], Activation):
                raise _Refused("must be called with one activation")
            return self._layer(self.modules[str(node.target)], str(node.target), args[0])
        name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        name = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}.get(name.strip("_"), name.strip("_"))
        handler = FUNCTIONS.get(name)
        if handler is None:
            raise _Refused(_no_way_to_say(name))
        try:
            return handler(self, *args, **kwargs)
        except TypeError as error:
            raise _Refused(f"is called in a way that is not understood ({error})") from None

    def _attribute(self, target: str) -> Constant:
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise _Refused("is not a tensor")
        return Constant(target, value.detach().cpu().to(torch.float64).numpy())

    def tensor(self, name: str, value: Tensor) -> str:
        """Stores a parameter of the module under its dotted name."""
        if name in self.used:
            raise _Refused(f'shares the parameter "{name}" with another layer; give each layer its own')
        self.used[name] = name
        if value.dtype != torch.float32:
            raise _Refused(f'has the parameter "{name}" of type {value.dtype}; float32 is wanted')
        return self.builder.param(name, value.detach().cpu().numpy().copy())

    def shape(self, x: Activation) -> Shape:
        return self.builder.shapes[x.name]

    def fresh(self) -> str:
        return self.builder.unique(self.name)

    # Layers -----------------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module, path: str, x: Activation) -> Activation:
        if isinstance(
            layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
        ):
            return x
        if type(layer) is nn.ReLU:
            return self.relu(x)
        if type(layer) is nn.Flatten:
            return self.flatten(x, layer.start_dim, layer.end_dim)
        if type(layer) is nn.Unflatten:
            raise _Refused("cannot be said; use x.view(batch, …) instead")
        if type(layer) is nn.MaxPool2d:
            return self.max_pool(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices)
        if type(layer) is nn.AvgPool2d:
            return self.average_pool(
                x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override
            )
        if type(layer) is nn.AdaptiveAvgPool2d:
            return self.adaptive(x, layer.output_size)
        if type(layer) not in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d):
            raise _Refused(_no_way_to_say(type(layer).__name__))
        if path in self.builder.shapes:
            raise _Refused("is used twice; make two layers, one for each use")
        if isinstance(layer, nn.Conv2d):
            return self._conv(layer, path, x)
        if isinstance(layer, nn.Linear):
            weight, bias = self._weights(layer, path)
            return Activation(self.builder.add(Gemm(name=self.fresh(), inputs=(x.name,), shape=(), weight=weight, bias=bias)))
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        return self._batch_norm(layer, path, x)

    def _weights(self, layer: nn.Conv2d | nn.Linear, path: str) -> tuple[str, str | None]:
        prefix = f"{path}." if path else ""
        return self.tensor(f"{prefix}weight", layer.weight), None if layer.bias is None else self.tensor(f"{prefix}bias", layer.bias)

    def _conv(self, layer: nn.Conv2d, path: str, x: Activation) -> Activation:
        if layer.padding_mode != "zeros":
            raise _Refused(f'pads with "{layer.padding_mode}"; use padding_mode="zeros"')
        kernel, stride, dilation = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
        if layer.padding == "same":
            extra = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = (extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2)
        else:
            height, width = (0, 0) if layer.padding == "valid" else _pair(layer.padding)
            pads = (height, width, height, width)
        weight, bias = self._weights(layer, path)
        return Activation(
            self.builder.add(
                Conv(
                    name=self.fresh(),
                    inputs=(x.name,),
                    shape=(),
                    weight=weight,
                    bias=bias,
                    stride=stride,
                    pads=pads,
                    dilation=dilation,
                    groups=layer.groups,
                )
            )
        )

    def _batch_norm(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, path: str, x: Activation) -> Activation:
        if not layer.affine or layer.running_mean is None or layer.running_var is None:
            raise _Refused("needs affine=True and track_running_stats=True")
        prefix = f"{path}." if path else ""
        names = [
            self.tensor(prefix + name, value)
            for name, value in (
                ("weight", layer.weight),
                ("bias", layer.bias),
                ("running_mean", layer.running_mean),
                ("running_var", layer.running_var),
            )
        ]
        return Activation(
            self.builder.add(
                BatchNorm(
                    name=self.fresh(),
                    inputs=(x.name,),
                    shape=(),
                    scale=names[0],
                    bias=names[1],
                    mean=names[2],
                    variance=names[3],
                    epsilon=float(layer.eps),
                )
            )
        )

    # Functions and methods --------------------------------------------------------------------------------------------

    def relu(self, x: Any, inplace: bool = False) -> Activation:
        return Activation(self.builder.add(Relu(name=self.fresh(), inputs=(self.activation(x).name,), shape=())))

    def activation(self, x: Any) -> Activation:
        if not isinstance(x, Activation):
            raise _Refused("is applied to something that is not an activation")
        return x

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
            raise _Refused("must keep the batch first; write x.view(x.size(0), -1) or x.flatten(1)")
        rest = sizes[1:]
        if rest.count(-1) > 1 or not all(isinstance(size, int) and (size == -1 or size > 0) for size in rest):
            raise _Refused(f"has the shape {rest}, which is not understood")
        known = prod(size for size in rest if size != -1)
        if total % known:
            raise _Refused(f"cannot turn {total} elements into shape {rest}")
        target = tuple(total // known if size == -1 else size for size in rest)
        return self._reshape(x, target)

    def _reshape(self, x: Activation, target: Shape) -> Activation:
        if target == self.shape(x):
            return x
        return Activation(self.builder.add(Reshape(name=self.fresh(), inputs=(x.name,), shape=target)))

    def flatten(self, x: Any, start_dim: int = 0, end_dim: int = -1) -> Activation:
        x = self.activation(x)
        shape = self.shape(x)
        rank = len(shape) + 1
        start, end = start_dim % rank, end_dim % rank
        if start == 0:
            raise _Refused("must keep the batch first; write flatten(1)")
        return self._reshape(x, (*shape[: start - 1], prod(shape[start - 1 : end]), *shape[end:]))

    def size(self, x: Any, dim: int | None = None) -> Any:
        full = (BATCH, *self.shape(self.activation(x)))
        return full if dim is None else full[dim]

    def attribute(self, x: Any, name: str) -> Any:
        if name != "shape":
            raise _Refused(f'reads "{name}" of a tensor, which a graph cannot say')
        return self.size(x)

    def item(self, x: Any, index: Any) -> Any:
        if not isinstance(x, tuple):
            raise _Refused("slices an activation; a graph cannot say that")
        return x[index]

    def add(self, a: Any, b: Any, alpha: Any = 1) -> Any:
        if alpha != 1:
            raise _Refused("adds with alpha; write the multiplication out")
        if isinstance(a, Activation) and isinstance(b, Activation):
            return Activation(self.builder.add(Add(name=self.fresh(), inputs=(a.name, b.name), shape=())))
        return self._arithmetic(operator.add, a, b, lambda x, c: self._constant(AddConstant, x, c))

    def sub(self, a: Any, b: Any) -> Any:
        if isinstance(b, Activation):
            raise _Refused("subtracts an activation; a graph can only add them")
        return self._arithmetic(operator.sub, a, b, lambda x, c: self._constant(AddConstant, x, Constant("", -c.value)))

    def mul(self, a: Any, b: Any) -> Any:
        if isinstance(a, Activation) and isinstance(b, Activation):
            raise _Refused("multiplies two activations; a graph can only multiply by constants")
        return self._arithmetic(operator.mul, a, b, lambda x, c: self._constant(MulConstant, x, c))

    def div(self, a: Any, b: Any) -> Any:
        if isinstance(b, Activation):
            raise _Refused("divides by an activation")
        return self._arithmetic(operator.truediv, a, b, lambda x, c: self._constant(MulConstant, x, Constant("", 1 / c.value)))

    def neg(self, x: Any) -> Any:
        if isinstance(x, Constant):
            return Constant("", -x.value)
        raise _Refused("negates an activation; write x * -1")

    def _arithmetic(self, op: Callable[[Any, Any], Any], a: Any, b: Any, make: Callable[[Activation, Constant], Activation]) -> Any:
        if isinstance(a, Activation) or isinstance(b, Activation):
            x, c = (a, b) if isinstance(a, Activation) else (b, a)
            with np.errstate(all="ignore"):
                return make(x, _as_constant(c))
        if isinstance(a, Constant) or isinstance(b, Constant):
            with np.errstate(all="ignore"):
                return Constant("", np.asarray(op(_as_constant(a).value, _as_constant(b).value)))
        if isinstance(a, int) and isinstance(b, int):
            return op(a, b)
        raise _Refused("combines values that are not understood")

    def _constant(self, kind: type[AddConstant] | type[MulConstant], x: Activation, c: Constant) -> Activation:
        value = c.value.astype(np.float32)
        while value.ndim > len(self.shape(x)):
            if value.shape[0] != 1:
                raise _Refused(f"combines the activation with a constant of shape {c.value.shape}, which differs from sample to sample")
            value = value[0]
        if c.name:
            self.used.setdefault(c.name, c.name)
        known = c.name and c.name in self.builder.params
        name = c.name if known else self.builder.param(c.name or f"{self.fresh()}.constant", value)
        if c.name and name != c.name:
            raise _Refused(f'has a name that clashes with the buffer "{c.name}"; rename the buffer')
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
        if _pair(dilation) != (1, 1) or return_indices:
            raise _Refused("must have dilation=1 and return_indices=False")
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
            raise _Refused("must have padding=0 and no divisor_override")
        return Activation(self.builder.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride)))

    def _window(
        self, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool
    ) -> tuple[Activation, tuple[int, int], tuple[int, int], tuple[int, int]]:
        x, kernel = self.activation(x), _pair(kernel_size)
        strides, pads = _pair(stride) if stride is not None and stride != [] else kernel, _pair(padding)
        for size, k, s, p in zip(self.shape(x)[1:], kernel, strides, pads, strict=False):
            if ceil_mode and window_output(size, k, s, p, p) * s + k - s != size + 2 * p:
                raise _Refused("must have ceil_mode=False")
        return x, kernel, strides, pads

    def adaptive(self, x: Any, output_size: Any) -> Activation:
        x = self.activation(x)
        shape = self.shape(x)
        if len(shape) != 3 or (output_size if isinstance(output_size, tuple | list) else (output_size, output_size)) not in (
            (1, 1),
            [1, 1],
        ):
            raise _Refused("must have output size 1; use AvgPool2d with its kernel written out")
        return Activation(
            self.builder.add(
                AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=(shape[1], shape[2]), stride=(shape[1], shape[2]))
            )
        )

    def mean(self, x: Any, dim: Any = None, keepdim: bool = False) -> Activation:
        x = self.activation(x)
        dims = sorted(d % 4 for d in dim) if isinstance(dim, tuple | list) else None
        if dims != [2, 3] or len(self.shape(x)) != 3:
            raise _Refused("must be the mean over the map, x.mean((2, 3))")
        pooled = self.adaptive(x, 1)
        return pooled if keepdim else self._reshape(pooled, (self.shape(x)[0],))


def _pair(value: Any) -> tuple[int, int]:
    a, b = value if isinstance(value, tuple | list) else (value, value)
    return int(a), int(b)


def _as_constant(value: Any) -> Constant:
    if isinstance(value, Constant):
        return value
    if isinstance(value, int | float):
        return Constant("", np.asarray(value, np.float64))
    raise _Refused("combines an activation with something that is no buffer and no number")


def _no_way_to_say(name: str) -> str:
    substitute = SUBSTITUTES.get(name)
    return "has no bounds here; " + (f"use {substitute}" if substitute else "use Conv2d, Linear, BatchNorm, ReLU, pooling and additions")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": _Reader.relu,
    "dropout": _Reader.dropped,
    "dropout2d": _Reader.dropped,
    "contiguous": _Reader.dropped,
    "view": _Reader.reshape,
    "reshape": _Reader.reshape,
    "flatten": _Reader.flatten,
    "size": _Reader.size,
    "getattr": _Reader.attribute,
    "getitem": _Reader.item,
    "add": _Reader.add,
    "radd": _Reader.add,
    "sub": _Reader.sub,
    "mul": _Reader.mul,
    "truediv": _Reader.div,
    "div": _Reader.div,
    "neg": _Reader.neg,
    "max_pool2d": _Reader.max_pool,
    "avg_pool2d": _Reader.average_pool,
    "adaptive_avg_pool2d": _Reader.adaptive,
    "mean": _Reader.mean,
}
# torch wraps these, so their names differ from what is written in a forward.
FUNCTIONS |= {getattr(F.max_pool2d, "__name__", "boolean_dispatch"): _Reader.max_pool}
