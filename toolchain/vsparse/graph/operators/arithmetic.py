"""Arithmetic element by element: Add, Sub, Neg, and the same, products and quotients with constants."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node, Shape, Unary
from vsparse.graph.onnx_context import Activation, OnnxContext, reads
from vsparse.graph.operators.reshape import to_whole
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rules import NodeModule, apply, check_values, torch_layer
from vsparse.graph.shapes import require, shape_rule, show
from vsparse.graph.torch_context import TorchContext, TracedActivation, TracedConstant, traces

__all__ = ["Add", "AddConstant", "DivConstant", "MulConstant", "Neg", "Sub"]


@dataclass(frozen=True, kw_only=True)
class Add(Node):
    """Residual addition of two activations of one shape."""

    arity = 2
    onnx = "Add"
    on_quantised = "computes"


@dataclass(frozen=True, kw_only=True)
class Sub(Node):
    """Difference of two activations of one shape, the first less the second."""

    arity = 2
    onnx = "Sub"
    on_quantised = "computes"


@dataclass(frozen=True, kw_only=True)
class Neg(Unary):
    """−x, exact."""

    onnx = "Neg"


@dataclass(frozen=True, kw_only=True)
class WithConstant(Node):
    """A node that computes with one constant, broadcast against the activation's shape."""

    constant: str

    @property
    def params(self) -> tuple[str, ...]:
        return (self.constant,)


@dataclass(frozen=True, kw_only=True)
class AddConstant(WithConstant):
    """y = x + c, with c broadcast against the activation's shape."""

    onnx = "Add"
    on_quantised = "computes"


@dataclass(frozen=True, kw_only=True)
class MulConstant(WithConstant):
    """y = x · c, with c broadcast against the activation's shape."""

    onnx = "Mul"


@dataclass(frozen=True, kw_only=True)
class DivConstant(WithConstant):
    """y = x / c, one division, with c broadcast against the activation's shape and nowhere zero."""

    onnx = "Div"


# Shapes and checks ----------------------------------------------------------------------------------------------------


@shape_rule.register
def _(node: Add | Sub, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    verb = "adds" if isinstance(node, Add) else "subtracts"
    require(inputs[0] == inputs[1], node, f"{verb} activations of shapes {inputs[0]} and {inputs[1]}; they must be the same")
    return inputs[0]


@shape_rule.register
def _(node: WithConstant, inputs: Sequence[Shape], params: Mapping[str, Shape]) -> Shape:
    constant, x = params[node.constant], inputs[0]
    fits = len(constant) <= len(x) and all(c in (1, size) for c, size in zip(reversed(constant), reversed(x), strict=False))
    require(fits, node, f"has a constant of shape {constant} that does not broadcast to its input's shape {x}")
    return x


@check_values.register
def _(node: DivConstant, params: Mapping[str, NDArray[np.float32]]) -> None:
    if not params[node.constant].all():
        raise InputError(f'DivConstant "{show(node.name)}" divides by zero')


# Execution ------------------------------------------------------------------------------------------------------------


@apply.register
def _(node: Add, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x + y


@apply.register
def _(node: Sub, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return x - y


@apply.register
def _(node: Neg, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return -x


@apply.register
def _(node: AddConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x + params[node.constant]


@apply.register
def _(node: MulConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x * params[node.constant]


@apply.register
def _(node: DivConstant, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return x / params[node.constant]


# ONNX -----------------------------------------------------------------------------------------------------------------


def _both(c: OnnxContext, kind: type[Add] | type[Sub], x: Activation, y: Activation) -> Activation:
    return c.add(kind(name=c.fresh(), inputs=(x.name, y.name), shape=()), x.batched or y.batched)


@reads("Add", 2, 2)
def read_add(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    if isinstance(values[0], Activation) and isinstance(values[1], Activation):
        return _both(c, Add, values[0], values[1])
    i = 0 if isinstance(values[0], Activation) else 1
    return with_constant(c, AddConstant, c.activation(values[i]), c.weight(values[1 - i], names[1 - i]), names[1 - i])


@reads("Sub", 2, 2)
def read_sub(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    if isinstance(values[0], Activation) and isinstance(values[1], Activation):
        return _both(c, Sub, values[0], values[1])
    if isinstance(values[0], Activation):
        return with_constant(c, AddConstant, values[0], -c.weight(values[1], names[1]), names[1])
    # c - x = -x + c: the negation is exact, so only the addition rounds, as in the file.
    return with_constant(c, AddConstant, c.unary(Neg, values[1]), c.weight(values[0], names[0]), names[0])


@reads("Mul", 2, 2)
def read_mul(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    if isinstance(values[0], Activation) and isinstance(values[1], Activation):
        raise UnsupportedOperator("multiplies two activations; only multiplication by a constant is read")
    i = 0 if isinstance(values[0], Activation) else 1
    return with_constant(c, MulConstant, c.activation(values[i]), c.weight(values[1 - i], names[1 - i]), names[1 - i])


@reads("Div", 2, 2)
def read_div(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    x, divisor = c.activation(values[0]), c.weight(values[1], names[1])
    mantissa, exponent = np.frexp(divisor)
    if not divisor.all():
        raise UnsupportedOperator("divides by zero")
    # Only for powers of two is x/c the same number as x·(1/c), rounding and all.
    if (np.abs(mantissa) == 0.5).all() and (np.abs(exponent) < (14 if c.format == "fp16" else 120)).all():
        return with_constant(c, MulConstant, x, np.float32(1) / divisor, names[1])
    return with_constant(c, DivConstant, x, divisor, names[1])


@reads("Neg", 1, 1)
def read_neg(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return c.unary(Neg, values[0])


def with_constant(c: OnnxContext, kind: type[WithConstant], x: Activation, value: NDArray[np.float32], name: str) -> Activation:
    """Returns an activation with a constant of the file's name `name`, which must broadcast to it."""
    whole = c.whole(x)
    if value.ndim > len(whole):  # the result then has more dimensions than x
        front = value.shape[: value.ndim - len(whole)]
        if c.batch != 1 or any(size != 1 for size in front):
            raise UnsupportedOperator(
                f"has a constant of shape {value.shape}, of more dimensions than {list(whole)}; the batch must stay first"
            )
        return to_whole(c, with_constant(c, kind, x, value.reshape(value.shape[len(front) :]), name), (*front, *whole))
    if x.batched and value.ndim == len(whole):
        if value.shape[0] != 1:
            raise UnsupportedOperator(f"has a constant of shape {value.shape}, which does not broadcast to shape {list(whole)}")
        value = value[0]
    return c.add(kind(name=c.fresh(), inputs=(x.name,), shape=(), constant=c.store(name, value)), x.batched)


# torch ----------------------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Residual addition."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns a + b."""
        return a + b


class BufferOperator(nn.Module):
    """Computes with a constant buffer [1, *shape]: adds it, multiplies or divides by it."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is computed of x and the buffer."""
        return self.compute(x, self.get_buffer("value"))


@torch_layer.register
def _(node: Add, graph: Graph) -> nn.Module:
    return Sum()


@torch_layer.register
def _(node: Sub, graph: Graph) -> nn.Module:
    return NodeModule(node)


_COMPUTE: dict[type[Node], Callable[[Tensor, Tensor], Tensor]] = {
    AddConstant: operator.add,
    MulConstant: operator.mul,
    DivConstant: operator.truediv,
}


@torch_layer.register
def _(node: WithConstant, graph: Graph) -> nn.Module:
    value = torch.from_numpy(graph.params[node.constant].copy())
    value = value.reshape(1, *(1 for _ in range(len(node.shape) - value.dim())), *value.shape)
    return BufferOperator(_COMPUTE[type(node)], value)


@traces(operator.add, operator.iadd, torch.add, "add", "add_")
def trace_add(t: TorchContext, a: Any, b: Any, alpha: Any = 1) -> Any:
    if alpha != 1:
        raise UnsupportedOperator("adds with alpha; write the multiplication out")
    if isinstance(a, TracedActivation) and isinstance(b, TracedActivation):
        return t.add(Add, a, b)
    return _arithmetic(operator.add, a, b, lambda x, c: _traced_constant(t, AddConstant, x, c))


@traces(operator.sub, operator.isub, torch.sub, "sub")
def trace_sub(t: TorchContext, a: Any, b: Any, alpha: Any = 1) -> Any:
    if alpha != 1:
        raise UnsupportedOperator("must have alpha=1")
    if isinstance(b, TracedActivation):
        if isinstance(a, TracedActivation):
            return t.add(Sub, a, b)
        return trace_add(t, a, trace_neg(t, b))  # the negation is exact, so only the addition rounds
    return _arithmetic(operator.sub, a, b, lambda x, c: _traced_constant(t, AddConstant, x, TracedConstant("", -c.value, c.trainable)))


@traces(operator.mul, operator.imul, torch.mul, "mul")
def trace_mul(t: TorchContext, a: Any, b: Any) -> Any:
    if isinstance(a, TracedActivation) and isinstance(b, TracedActivation):
        raise UnsupportedOperator("multiplies two activations; a graph can only multiply by constants")
    return _arithmetic(operator.mul, a, b, lambda x, c: _traced_constant(t, MulConstant, x, c))


@traces(operator.truediv, operator.itruediv, torch.div, "div")
def trace_div(t: TorchContext, a: Any, b: Any) -> Any:
    if isinstance(b, TracedActivation):
        raise UnsupportedOperator("divides by an activation")
    return _arithmetic(
        operator.truediv, a, b, lambda x, c: _traced_constant(t, MulConstant, x, TracedConstant("", 1 / c.value, c.trainable))
    )


@traces(operator.neg, torch.neg, "neg")
def trace_neg(t: TorchContext, x: Any) -> Any:
    return TracedConstant("", -x.value, x.trainable) if isinstance(x, TracedConstant) else t.add(Neg, x)


Make = Callable[[TracedActivation, TracedConstant], TracedActivation]


def _arithmetic(compute: Callable[[Any, Any], Any], a: Any, b: Any, make: Make) -> Any:
    if isinstance(a, TracedActivation) or isinstance(b, TracedActivation):
        x, c = (a, b) if isinstance(a, TracedActivation) else (b, a)
        with np.errstate(all="ignore"):
            return make(x, _as_constant(c))
    if isinstance(a, TracedConstant) or isinstance(b, TracedConstant):
        first, second = _as_constant(a), _as_constant(b)
        with np.errstate(all="ignore"):
            return TracedConstant("", np.asarray(compute(first.value, second.value)), first.trainable or second.trainable)
    if isinstance(a, int) and isinstance(b, int):
        return compute(a, b)
    raise UnsupportedOperator("combines values that are not understood")


def _as_constant(value: Any) -> TracedConstant:
    if isinstance(value, TracedConstant):
        return value
    if isinstance(value, int | float):
        return TracedConstant("", np.asarray(value, np.float64))
    raise UnsupportedOperator("combines an activation with something that is no buffer and no number")


def _traced_constant(t: TorchContext, kind: type[WithConstant], x: TracedActivation, c: TracedConstant) -> TracedActivation:
    if c.trainable and not c.name:
        raise UnsupportedOperator(
            "computes with a trainable parameter before using it; register it as a buffer, or add or multiply by it directly"
        )
    with np.errstate(over="ignore"):
        value = c.value.astype(np.float32)
    while value.ndim > len(t.shape(x)):
        if value.shape[0] != 1:
            raise UnsupportedOperator(
                f"combines the activation with a constant of shape {c.value.shape}, which differs from sample to sample"
            )
        value = value[0]
    name = c.name
    if not name or name not in t.builder.params:
        name = t.builder.param(c.name or f"{t.fresh()}.constant", value)
    if c.name and name != c.name:
        raise UnsupportedOperator(f'uses the buffer "{c.name}", which has the name of an operation; rename it')
    return t.add(kind, x, constant=name)
