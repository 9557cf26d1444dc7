"""Reads an `nn.Module` into a graph with torch.fx; what the graph cannot represent is refused by the layer's name."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Shape
from vsparse.graph.execute import run
from vsparse.graph.operators import FUNCTIONS, LAYERS, METHODS
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.rows import rows_as_maps
from vsparse.graph.torch_context import TorchContext, TracedActivation, TracedConstant
from vsparse.graph.user_code import described
from vsparse.graph.validate import validate

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
    "ConvTranspose1d": "Conv1d",
    "Conv3d": "Conv2d",
    "conv1d": "an nn.Conv1d layer",
    "AdaptiveMaxPool1d": "MaxPool1d with its kernel written out",
    "InstanceNorm1d": "BatchNorm1d",
    "MultiheadAttention": "convolutions",
    "conv2d": "an nn.Conv2d layer",
    "linear": "an nn.Linear layer",
    "batch_norm": "an nn.BatchNorm2d layer",
    "stack": "cat",
    "matmul": "an nn.Linear layer",
    "exp": "sigmoid",
}
# Tracing replaces methods of nn.Module for the whole process: two traces at once, of a sweep's threads, would leave them replaced.
_TRACING = threading.RLock()
# In evaluation mode they change nothing.
LEFT_OUT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Returns the graph of a module that maps [batch, *input_shape] to logits.

    Parameter names are the module's dotted names, so `dict(module.named_parameters()) | dict(module.named_buffers())` can be
    passed as `params` to `run` and to bounds, and training then changes the module itself; constants that the forward
    computes (`x / self.std`) stand in `graph.params` only, so start from `graph.tensors()` where there are such, and where there is an
    nn.Conv1d, whose kernels [out, in, n] stand there as [out, in, 1, n].
    BatchNorm is kept; dropout and Identity are left out.
    Division by a constant becomes multiplication by its reciprocal, rounded once to float32.

    Raises InputError that names the layer, its type, the reason and a substitute for everything a graph cannot represent: other
    layers, control flow that depends on data, a layer used twice, tied weights, padding that is not zero, several inputs or
    outputs; and for an error inside the module's own forward, with its type, message and line.
    """
    tracer = fx.Tracer()
    if tracer.is_leaf_module(module, ""):
        raise InputError(f"{type(module).__name__} is a single layer, not a network; put it into nn.Sequential")
    _require_float32(module)
    shape = tuple(int(size) for size in input_shape)
    with _TRACING:
        try:
            traced = tracer.trace(module)
        except (Exception, SystemExit) as error:  # tracing runs the user's code, which may raise anything
            _execute(module, shape)  # an error of its own, which tracing did not cause, is told as that
            raise InputError(
                f"{type(module).__name__} cannot be traced, though it runs ({described(error)}); "
                "its forward must not branch or loop on the data"
            ) from error
        graph = validate(rows_as_maps(_Tracing(module, traced, shape).read()))
        _compare(module, graph, *_execute(module, shape))
    return graph


def _require_float32(module: nn.Module) -> None:
    """Refuses other number formats before anything is executed, where torch would complain about a matrix product."""
    for name, value in module.named_parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            layer, _, own = name.rpartition(".")
            holder = module.get_submodule(layer)
            raise InputError(
                f'the network cannot be used: layer "{layer}" ({type(holder).__name__}) has the parameter "{own}" of type {value.dtype}; '
                "float32 is wanted: call .float() on the module"
            )


def _execute(module: nn.Module, shape: Shape) -> tuple[Tensor, Any]:
    """Runs the module on one random batch in evaluation mode; what its own code raises is told as that."""
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            return x, module(x.to(device))
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"{type(module).__name__} fails on an input of shape {list(x.shape)}: {described(error)}") from error
    finally:
        for part, training in modes:
            part.training = training


def _compare(module: nn.Module, graph: Graph, x: Tensor, expected: Any) -> None:
    """Compares both on one random batch: what tracing does not see (in-place changes, hooks, a forward that replaces weights) ends here."""
    found = run(graph, graph.tensors(), x)
    expected = expected.cpu()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-6 + 1e-3 * float(expected.abs().max())):
        raise InputError(
            f"{type(module).__name__} computes something else than its traced graph; "
            "avoid in-place operations, hooks and randomness in its forward"
        )


class _Tracing:
    def __init__(self, module: nn.Module, traced: fx.Graph, input_shape: Shape) -> None:
        self.module, self.traced = module, traced
        self.modules = dict(module.named_modules())
        self.context = TorchContext(input_shape)
        self.values: dict[fx.Node, Any] = {}

    def read(self) -> Graph:
        inputs = [node for node in self.traced.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise InputError(f"{type(self.module).__name__} has {len(inputs)} inputs; a network with one input tensor is wanted")
        self.values[inputs[0]] = TracedActivation("input")
        for node in self.traced.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return self._output(node)
            self.context.name = str(node.target) if node.op == "call_module" else node.name
            try:
                self.values[node] = self._value(node)
            except UnsupportedOperator as refusal:
                raise InputError(f"the network cannot be used: {self._describe(node)} {refusal}") from None
            except InputError as error:
                raise InputError(f"the network cannot be used: {error}") from None
        raise InputError(f"{type(self.module).__name__} returns nothing")

    def _output(self, node: fx.Node) -> Graph:
        result = node.args[0]
        value = self.values.get(result) if isinstance(result, fx.Node) else None
        if not isinstance(value, TracedActivation):
            raise InputError(f"{type(self.module).__name__} must return one tensor that depends on its input")
        return self.context.builder.graph(value.name)

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f'layer "{node.target}" ({type(self.modules[str(node.target)]).__name__})'
        kind = _function_name(node)
        stack = node.meta.get("nn_module_stack")
        inside = next(reversed(stack)) if stack else ""
        return f'operation "{kind}"' + (f' in layer "{inside}"' if inside else "")

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args = fx.node.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.values[n])
        if node.op == "call_module":
            if kwargs or len(args) != 1 or not isinstance(args[0], TracedActivation):
                raise UnsupportedOperator("must be called with one activation")
            return self._layer(self.modules[str(node.target)], str(node.target), args[0])
        handler = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
        if handler is None:
            raise UnsupportedOperator(_substitute(_function_name(node)))
        try:
            return handler(self.context, *args, **kwargs)
        except TypeError as error:
            raise UnsupportedOperator(f"is called in a way that is not understood ({error})") from None

    def _attribute(self, target: str) -> TracedConstant:
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise UnsupportedOperator("is not a tensor")
        return TracedConstant(target, value.detach().cpu().to(torch.float64).numpy(), trainable=isinstance(value, nn.Parameter))

    def _layer(self, layer: nn.Module, path: str, x: TracedActivation) -> TracedActivation:
        if isinstance(layer, LEFT_OUT):
            return x
        if is_parametrized(layer):
            raise UnsupportedOperator(
                "has a parametrisation (weight norm, spectral norm), which a graph cannot say; "
                "call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
        if layer._forward_pre_hooks or layer._forward_hooks:
            raise UnsupportedOperator("has forward hooks (weight norm, pruning), which a graph cannot see; remove them first")
        trace = LAYERS.get(type(layer))
        if trace is None:
            raise UnsupportedOperator(_substitute(type(layer).__name__))
        return trace(self.context, layer, path, x)


def _function_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def _substitute(name: str) -> str:
    advice = SUBSTITUTES.get(name, "Conv2d, Linear, BatchNorm, ReLU, pooling and additions")
    return "has no bounds here; " + (advice if advice == LEAVE_OUT else f"use {advice}")
