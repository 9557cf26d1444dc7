"""Translates ONNX operators, one method each, into nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph.builder import Builder
from vsparse.graph.ir import Add, AddConstant, AveragePool, BatchNorm, Conv, Gemm, MaxPool, MulConstant, Node, Relu, Reshape, Shape
from vsparse.graph.onnx_file import attributes, read_tensor
from vsparse.graph.shapes import show

BATCH = "batch"
# No tensor here has more dimensions; joined shapes are kept as short, so that repeated joining cannot grow without bound.
MAX_RANK = 16

SUBSTITUTES = {
    "LeakyRelu": "Relu",
    "PRelu": "Relu",
    "Elu": "Relu",
    "Selu": "Relu",
    "Clip": "Relu",
    "Sigmoid": "Relu",
    "Tanh": "Relu",
    "Gelu": "Relu",
    "HardSwish": "Relu",
    "Softplus": "Relu",
    "Erf": "Relu",
    "Softmax": "the network without it, so that it ends with its logits",
    "LogSoftmax": "the network without it, so that it ends with its logits",
    "LayerNormalization": "batch normalisation",
    "InstanceNormalization": "batch normalisation",
    "Pad": "the pads of the next Conv",
    "ConstantOfShape": "an initializer",
    "QuantizeLinear": "the float32 model",
    "DequantizeLinear": "the float32 model",
    "Cast": "float32 throughout",
    "Concat": "a residual Add",
    "ConvTranspose": "Conv",
    "ReduceSum": "ReduceMean or a Gemm",
    "Neg": "Mul by a constant",
}


@dataclass(frozen=True)
class Activation:
    """A tensor that depends on the network's input, by the name of the node that makes it."""

    name: str


# A tensor's shape as a program value (`x.view(x.size(0), -1)` exports as Shape, Gather, Concat, Reshape); BATCH stands for the batch.
Sizes = tuple[int | str, ...]


class Refused(Exception):
    """An operator cannot be read; carries the reason, the caller adds node and operator."""


class Reader:
    """Holds every value seen so far: activations, constant arrays, and shapes that programs compute with."""

    def __init__(self, input_name: str, shape: Shape, batch: int | None, opset: int) -> None:
        self.builder = Builder(input_name, shape)
        self.batch, self.opset = batch, opset
        self.values: dict[str, Activation | NDArray[Any] | Sizes] = {input_name: Activation(input_name)}
        self.known: dict[int, str] = {}

    def read(self, node: onnx.NodeProto) -> None:
        """Adds one node; raises Refused or InputError."""
        if node.domain not in ("", "ai.onnx"):
            raise Refused(f'comes from the operator set "{show(node.domain)}"; only the standard one is read')
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            substitute = SUBSTITUTES.get(node.op_type)
            raise Refused("has no bounds here" + (f"; use {substitute}" if substitute else ""))
        if not node.output or not node.output[0] or (any(node.output[1:]) and node.op_type != "Dropout"):
            raise Refused("must have one output")
        if node.output[0] in self.values:
            raise Refused(f'makes "{show(node.output[0])}", which exists already')
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if not operator.least <= len(inputs) <= operator.most:
            raise Refused(f"has {len(inputs)} inputs; {operator.least} to {operator.most} are wanted")
        for name in inputs:
            if name and name not in self.values:
                raise Refused(f'reads "{show(name)}", which no earlier node makes; the graph has a cycle, a gap, or unsorted nodes')
        found = attributes(node, operator.attributes, "it")
        self.output = node.output[0]
        self.values[self.output] = operator.method(self, [self.values[name] if name else None for name in inputs], inputs, found)

    # What the operators below are made of -----------------------------------------------------------------------------

    def add(self, node: Node) -> Activation:
        return Activation(self.builder.add(node))

    def fresh(self) -> str:
        return self.builder.unique(self.output)

    def shape(self, x: Activation) -> Shape:
        return self.builder.shapes[x.name]

    def activation(self, value: Any) -> Activation:
        if not isinstance(value, Activation):
            raise Refused("is applied to a constant; fold constants when exporting")
        return value

    def weight(self, value: Any, name: str) -> NDArray[np.float32]:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise Refused(f'needs a constant float32 tensor, and "{show(name)}" is none')
        return value

    def integers(self, value: Any, name: str) -> Sizes:
        if isinstance(value, tuple):
            return value
        if not isinstance(value, np.ndarray) or value.dtype != np.int64 or value.ndim > 1 or value.size > MAX_RANK:
            raise Refused(f'needs a constant list of integers, and "{show(name)}" is none')
        return tuple(int(v) for v in value.reshape(-1))

    def constant_integers(self, value: Any, name: str) -> list[int]:
        sizes = self.integers(value, name)
        if any(isinstance(size, str) for size in sizes):
            raise Refused("depends on the batch size")
        return [int(size) for size in sizes]

    def store(self, name: str, value: NDArray[np.float32]) -> str:
        return self.builder.param(name, np.ascontiguousarray(value))

    # Affine operators -------------------------------------------------------------------------------------------------

    def conv(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, weight = self.activation(values[0]), self.weight(values[1], names[1])
        if weight.ndim != 4 or len(self.shape(x)) != 3:
            raise Refused("is not two-dimensional; only 2-D convolution is read")
        kernel = (weight.shape[2], weight.shape[3])
        if tuple(a.get("kernel_shape", kernel)) != kernel:
            raise Refused("has a kernel_shape that differs from its weight's")
        stride, dilation = _pair(a, "strides"), _pair(a, "dilations")
        pads = self._pads(a, x, kernel, stride, dilation)
        bias = self.weight(values[2], names[2]) if len(values) > 2 else None
        group = a.get("group", 1)
        if not isinstance(group, int) or group < 1:
            raise Refused("has a group count below 1")
        return self.add(
            Conv(
                name=self.fresh(),
                inputs=(x.name,),
                shape=(),
                weight=self.store(names[1], weight),
                bias=None if bias is None else self.store(names[2], bias),
                stride=stride,
                pads=pads,
                dilation=dilation,
                groups=group,
            )
        )

    def _pads(
        self, a: dict[str, Any], x: Activation, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        pads = a.get("pads", [0, 0, 0, 0])
        if not isinstance(pads, list) or len(pads) != 4 or not all(isinstance(p, int) and 0 <= p < 2**20 for p in pads):
            raise Refused(f"has pads {show(pads)}; four numbers from 0 are wanted")
        auto = a.get("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if any(pads):
                raise Refused("has both pads and auto_pad")
            before, after = [], []
            for size, k, s, d in zip(self.shape(x)[1:], kernel, stride, dilation, strict=True):
                total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
                small, large = total // 2, total - total // 2
                before.append(small if auto == "SAME_UPPER" else large)
                after.append(large if auto == "SAME_UPPER" else small)
            pads = before + after
        elif auto not in ("NOTSET", "VALID") or (auto == "VALID" and any(pads)):
            raise Refused(f'has auto_pad "{show(auto)}", which is not understood')
        return (pads[0], pads[1], pads[2], pads[3])

    def gemm(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, weight = self.activation(values[0]), self.weight(values[1], names[1])
        if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
            raise Refused("must have alpha = 1, beta = 1 and transA = 0")
        if weight.ndim != 2:
            raise Refused("has a weight that is no matrix")
        weight = weight if a.get("transB", 0) else weight.T
        bias = None
        if len(values) > 2:
            bias = self.weight(values[2], names[2])
            if bias.shape not in ((weight.shape[0],), (1, weight.shape[0]), (1,), (), (1, 1)):
                raise Refused(f"has a bias of shape {bias.shape} for {weight.shape[0]} outputs")
            bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
        return self.add(
            Gemm(
                name=self.fresh(),
                inputs=(x.name,),
                shape=(),
                weight=self.store(names[1], weight),
                bias=None if bias is None else self.store(names[2], bias),
            )
        )

    def matmul(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if not isinstance(values[0], Activation):
            raise Refused("multiplies a constant from the left; export it as Gemm")
        return self.gemm(values, names, {})

    def batch_norm(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        if a.get("training_mode", 0) or not a.get("spatial", 1):
            raise Refused("is in training mode; export the network in eval mode")
        epsilon = float(a.get("epsilon", 1e-5))
        stored = [self.store(name, self.weight(value, name)) for value, name in zip(values[1:], names[1:], strict=True)]
        scale, bias, mean, variance = stored
        return self.add(
            BatchNorm(name=self.fresh(), inputs=(x.name,), shape=(), scale=scale, bias=bias, mean=mean, variance=variance, epsilon=epsilon)
        )

    # Element by element -----------------------------------------------------------------------------------------------

    def relu(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self.add(Relu(name=self.fresh(), inputs=(self.activation(values[0]).name,), shape=()))

    def plus(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            return self.add(Add(name=self.fresh(), inputs=(values[0].name, values[1].name), shape=()))
        i = 0 if isinstance(values[0], Activation) else 1
        return self._constant(AddConstant, self.activation(values[i]), self.weight(values[1 - i], names[1 - i]), names[1 - i])

    def minus(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            raise Refused("subtracts two activations; use Mul by -1 and Add")
        if isinstance(values[0], Activation):
            return self._constant(AddConstant, values[0], -self.weight(values[1], names[1]), names[1])
        # c - x = (-1)·x + c: the multiplication is exact, so only the addition rounds, as in the file.
        negated = self._constant(MulConstant, self.activation(values[1]), np.array(-1, np.float32), f"{self.output}.minus")
        return self._constant(AddConstant, negated, self.weight(values[0], names[0]), names[0])

    def times(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            raise Refused("multiplies two activations; only multiplication by a constant is read")
        i = 0 if isinstance(values[0], Activation) else 1
        return self._constant(MulConstant, self.activation(values[i]), self.weight(values[1 - i], names[1 - i]), names[1 - i])

    def divide(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, c = self.activation(values[0]), self.weight(values[1], names[1])
        mantissa, exponent = np.frexp(c)
        # Only then is x/c the same number as x·(1/c), rounding and all.
        if not (np.isfinite(c).all() and (np.abs(mantissa) == 0.5).all() and (np.abs(exponent) < 120).all()):
            raise Refused("divides by something that is no power of two; use Mul by the reciprocal")
        return self._constant(MulConstant, x, np.float32(1) / c, names[1])

    def _constant(self, kind: type[AddConstant] | type[MulConstant], x: Activation, c: NDArray[np.float32], name: str) -> Activation:
        original = c.shape
        while c.ndim > len(self.shape(x)):
            if c.shape[0] != 1:
                raise Refused(f"has a constant of shape {original}, which does not broadcast to shape {[BATCH, *self.shape(x)]}")
            c = c[0]
        return self.add(kind(name=self.fresh(), inputs=(x.name,), shape=(), constant=self.store(name, c)))

    # Pooling ----------------------------------------------------------------------------------------------------------

    def _window(self, a: dict[str, Any], x: Activation) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        if len(self.shape(x)) != 3:
            raise Refused("is not two-dimensional; only 2-D pooling is read")
        kernel, stride = _pair(a, "kernel_shape"), _pair(a, "strides")
        if "kernel_shape" not in a or _pair(a, "dilations") != (1, 1) or a.get("storage_order", 0):
            raise Refused("must have a kernel_shape, and neither dilations nor storage_order")
        pads = self._pads(a, x, kernel, stride, (1, 1))
        for axis, size in enumerate(self.shape(x)[1:]):
            if a.get("ceil_mode", 0) and (size + pads[axis] + pads[axis + 2] - kernel[axis]) % stride[axis]:
                raise Refused("must have ceil_mode = 0")
        return kernel, stride, pads

    def max_pool(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        kernel, stride, pads = self._window(a, x)
        return self.add(MaxPool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride, pads=pads))

    def average_pool(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        kernel, stride, pads = self._window(a, x)
        if any(pads):
            raise Refused("must have no padding")
        return self.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride))

    def global_average(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        shape = self.shape(x)
        if len(shape) != 3:
            raise Refused("is not two-dimensional; only 2-D pooling is read")
        window = (shape[1], shape[2])
        return self.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=window, stride=window))

    def mean(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3] or len(self.shape(x)) != 3:
            raise Refused("must be the mean over height and width; use GlobalAveragePool")
        pooled = self.global_average(values[:1], names[:1], {})
        return pooled if a.get("keepdims", 1) else self._to(pooled, (self.shape(x)[0],))

    # Shapes -----------------------------------------------------------------------------------------------------------

    def _to(self, x: Activation, shape: Shape) -> Activation:
        if shape == self.shape(x):
            return x
        if not shape or any(size < 1 for size in shape) or prod(shape) != prod(self.shape(x)):
            raise Refused(f"cannot turn shape {self.shape(x)} into {show(shape)} for each sample; the batch must stay first")
        return self.add(Reshape(name=self.fresh(), inputs=(x.name,), shape=shape))

    def flatten(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        shape = self.shape(x)
        axis = a.get("axis", 1)
        axis = axis + len(shape) + 1 if axis < 0 else axis
        if not 0 <= axis <= len(shape) or prod(shape[: max(axis - 1, 0)]) != 1 or (axis == 0 and self.batch != 1):
            raise Refused("must keep the batch first; use axis = 1")
        return self._to(x, (prod(shape),))

    def reshape(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if len(values) == 1 and "shape" in a:  # opset below 5 is refused, so this is damage
            raise Refused("has its shape as an attribute")
        target = list(self.integers(values[1], names[1]))
        if isinstance(values[0], np.ndarray):
            return values[0].reshape(self.constant_integers(values[1], names[1]))
        if isinstance(values[0], tuple):
            return values[0]
        x = self.activation(values[0])
        full: Sizes = (BATCH, *self.shape(x))
        if not a.get("allowzero", 0):
            target = [full[i] if size == 0 and i < len(full) else size for i, size in enumerate(target)]
        rest, total = target[1:], prod(self.shape(x))
        if len(target) < 2 or any(isinstance(size, str) for size in rest) or rest.count(-1) > 1:
            raise Refused("must keep the batch first and flatten the rest")
        known = prod(int(size) for size in rest if size != -1)
        if known < 1 or total % known:
            raise Refused(f"cannot turn shape {self.shape(x)} into {show(target)}")
        shape = tuple(total // known if size == -1 else int(size) for size in rest)
        batch_stays = target[0] == BATCH or (target[0] == -1 and -1 not in rest) or (target[0] == 1 and self.batch == 1)
        if not batch_stays or prod(shape) != total:
            raise Refused(f"must keep the batch first; its shape is {show(target)}")
        return self._to(x, shape)

    def squeeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if not isinstance(values[0], Activation):
            return values[0] if isinstance(values[0], tuple) else self._constant_value(values[0]).squeeze()
        x = values[0]
        full = (0, *self.shape(x))
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        wanted = {axis % len(full) for axis in axes} if axes is not None else {i for i, size in enumerate(full) if size == 1}
        if 0 in wanted or any(full[i] != 1 for i in wanted):
            raise Refused("must remove dimensions of size 1 other than the batch")
        return self._to(x, tuple(size for i, size in enumerate(full) if i not in wanted and i > 0))

    def unsqueeze(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        axes = a.get("axes") if len(values) < 2 else self.constant_integers(values[1], names[1])
        if isinstance(values[0], tuple):
            return values[0]
        if not axes or len(axes) > 8:
            raise Refused("must say which axes it adds")
        if not isinstance(values[0], Activation):
            return np.expand_dims(self._constant_value(values[0]), tuple(axes))
        x = values[0]
        rank = len(self.shape(x)) + 1 + len(axes)
        places = {axis % rank for axis in axes}
        if 0 in places or len(places) != len(axes):
            raise Refused("must keep the batch first")
        sizes = iter(self.shape(x))
        return self._to(x, tuple(1 if i in places else next(sizes) for i in range(1, rank)))

    def transpose(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        rank = len(self.shape(values[0])) + 1 if isinstance(values[0], Activation) else self._constant_value(values[0]).ndim
        order = a.get("perm", list(reversed(range(rank))))
        if sorted(order) != list(range(rank)):
            raise Refused(f"has the impossible perm {show(order)}")
        if not isinstance(values[0], Activation):
            return self._constant_value(values[0]).transpose(order)
        full = (0, *self.shape(values[0]))
        moved = [i for i in order if full[i] != 1]
        if order[0] != 0 or moved != sorted(moved):
            raise Refused("moves elements; only transposes of dimensions of size 1 are read")
        return self._to(values[0], tuple(full[i] for i in order[1:]))

    def _constant_value(self, value: Any) -> NDArray[Any]:
        if not isinstance(value, np.ndarray):
            raise Refused("is applied to something that is not understood")
        return value

    # Values that programs compute with --------------------------------------------------------------------------------

    def identity(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        return values[0]

    def dropout(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Any:
        if len(values) > 2 and not (isinstance(values[2], np.ndarray) and not values[2].any()):
            raise Refused("is in training mode; export the network in eval mode")
        return values[0]

    def constant(self, values: list[Any], names: list[str], a: dict[str, Any]) -> NDArray[Any]:
        if len(a) != 1:
            raise Refused("must have one value")
        name, value = next(iter(a.items()))
        if name == "value":
            if not isinstance(value, onnx.TensorProto):
                raise Refused("has a value that is no tensor")
            return read_tensor(value, "its value")
        return np.array(value, dtype=np.float32 if name.startswith("value_float") else np.int64)

    def shape_of(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Sizes:
        full: Sizes = (BATCH, *self.shape(self.activation(values[0])))
        return full[a.get("start", 0) : a.get("end", len(full))]

    def gather(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Sizes:
        if not isinstance(values[0], tuple):
            raise Refused("picks elements of a tensor; only sizes can be picked")
        return tuple(values[0][i] for i in self.constant_integers(values[1], names[1]))

    def concat(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Sizes:
        if any(isinstance(value, Activation) or (isinstance(value, np.ndarray) and value.dtype != np.int64) for value in values):
            raise Refused("joins activations, which has no bounds here; use a residual Add")
        joined = tuple(size for value, name in zip(values, names, strict=True) for size in self.integers(value, name))
        if len(joined) > MAX_RANK:
            raise Refused(f"makes a shape of {len(joined)} sizes; at most {MAX_RANK} are read")
        return joined


@dataclass(frozen=True)
class Operator:
    """How one ONNX operator is read: the method, how many inputs it may have, and the attributes it may carry."""

    method: Callable[[Reader, list[Any], list[str], dict[str, Any]], Any]
    least: int
    most: int
    attributes: set[str]
    window: ClassVar[set[str]] = {"kernel_shape", "strides", "pads", "dilations", "auto_pad"}


OPERATORS: dict[str, Operator] = {
    "Conv": Operator(Reader.conv, 2, 3, Operator.window | {"group"}),
    "Gemm": Operator(Reader.gemm, 2, 3, {"alpha", "beta", "transA", "transB"}),
    "MatMul": Operator(Reader.matmul, 2, 2, set()),
    "BatchNormalization": Operator(Reader.batch_norm, 5, 5, {"epsilon", "momentum", "training_mode", "spatial"}),
    "Relu": Operator(Reader.relu, 1, 1, set()),
    "Add": Operator(Reader.plus, 2, 2, set()),
    "Sub": Operator(Reader.minus, 2, 2, set()),
    "Mul": Operator(Reader.times, 2, 2, set()),
    "Div": Operator(Reader.divide, 2, 2, set()),
    "MaxPool": Operator(Reader.max_pool, 1, 1, Operator.window | {"ceil_mode", "storage_order"}),
    "AveragePool": Operator(Reader.average_pool, 1, 1, Operator.window | {"ceil_mode", "count_include_pad"}),
    "GlobalAveragePool": Operator(Reader.global_average, 1, 1, set()),
    "ReduceMean": Operator(Reader.mean, 1, 2, {"axes", "keepdims", "noop_with_empty_axes"}),
    "Flatten": Operator(Reader.flatten, 1, 1, {"axis"}),
    "Reshape": Operator(Reader.reshape, 2, 2, {"allowzero"}),
    "Squeeze": Operator(Reader.squeeze, 1, 2, {"axes"}),
    "Unsqueeze": Operator(Reader.unsqueeze, 1, 2, {"axes"}),
    "Transpose": Operator(Reader.transpose, 1, 1, {"perm"}),
    "Identity": Operator(Reader.identity, 1, 1, set()),
    "Dropout": Operator(Reader.dropout, 1, 3, {"ratio", "seed"}),
    "Constant": Operator(Reader.constant, 0, 0, {"value", "value_float", "value_floats", "value_int", "value_ints"}),
    "Shape": Operator(Reader.shape_of, 1, 1, {"start", "end"}),
    "Gather": Operator(Reader.gather, 2, 2, {"axis"}),
    "Concat": Operator(Reader.concat, 1, 64, {"axis"}),
}


def _pair(a: dict[str, Any], name: str) -> tuple[int, int]:
    value = a.get(name, [1, 1])
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, int) and 1 <= v < 2**20 for v in value):
        raise Refused(f"has {name} {show(value)}; two numbers from 1 are wanted")
    return (value[0], value[1])
