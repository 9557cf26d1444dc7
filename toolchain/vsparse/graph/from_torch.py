"""Reads an `nn.Module` into a graph with torch.fx; what the graph cannot say is refused by the layer's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from vsparse.errors import InputError
from vsparse.graph.builder import Builder
from vsparse.graph.execute import run
from vsparse.graph.ir import BatchNorm, Conv, Gemm, Graph, Shape
from vsparse.graph.torch_ops import FUNCTIONS, METHODS, TorchOps, no_way_to_say, pair
from vsparse.graph.torch_values import Activation, Constant, Refused
from vsparse.graph.validate import validate


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Returns the graph of a module that maps [batch, *input_shape] to logits.

    Parameter names are the module's dotted names, so `dict(module.named_parameters()) | dict(module.named_buffers())` can be
    passed as `params` to `run` and to bounds, and training then changes the module itself; constants that the forward
    computes (`x / self.std`) stand in `graph.params` only, so start from `graph.tensors()` where there are such.
    BatchNorm is kept; dropout and Identity are left out.
    Division by a constant becomes multiplication by its reciprocal, rounded once to float32.

    Raises InputError that names the layer, its type, the reason and a substitute for everything a graph cannot say: other
    layers, control flow that depends on data, a layer used twice, padding that is not zero, several inputs or outputs.
    """
    tracer = fx.Tracer()
    if tracer.is_leaf_module(module, ""):
        raise InputError(f"{type(module).__name__} is a single layer, not a network; put it into nn.Sequential")
    try:
        traced = tracer.trace(module)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{type(module).__name__} cannot be traced: {reason}; its forward must not branch or loop on the data") from error
    graph = validate(_Reader(module, traced, tuple(int(size) for size in input_shape)).read())
    _compare(module, graph)
    return graph


def _compare(module: nn.Module, graph: Graph) -> None:
    """Runs both on one random batch: what tracing does not see (in-place changes, hooks, a forward that replaces weights) ends here."""
    x = torch.rand(2, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            expected = module(x.to(device)).cpu()
    except Exception as error:  # the user's code may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{type(module).__name__} fails on an input of shape {list(x.shape)}: {reason}") from error
    finally:
        for part, training in modes:
            part.training = training
    found = run(graph, graph.tensors(), x)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-6 + 1e-3 * float(expected.abs().max())):
        raise InputError(
            f"{type(module).__name__} computes something else than its traced graph; "
            "avoid in-place operations, hooks and randomness in its forward"
        )


class _Reader(TorchOps):
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
            except Refused as refusal:
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
            if kwargs or len(args) != 1 or not isinstance(args[0], Activation):
                raise Refused("must be called with one activation")
            return self._layer(self.modules[str(node.target)], str(node.target), args[0])
        handler = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
        if handler is None:
            raise Refused(no_way_to_say(_function_name(node)))
        try:
            return handler(self, *args, **kwargs)
        except TypeError as error:
            raise Refused(f"is called in a way that is not understood ({error})") from None

    def _attribute(self, target: str) -> Constant:
        value: Any = self.module
        for part in target.split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise Refused("is not a tensor")
        return Constant(target, value.detach().cpu().to(torch.float64).numpy(), trainable=isinstance(value, nn.Parameter))

    def tensor(self, name: str, value: Tensor) -> str:
        """Stores a parameter of the module under its dotted name."""
        if name in self.used:
            raise Refused(f'shares the parameter "{name}" with another layer; give each layer its own')
        self.used[name] = name
        if value.dtype != torch.float32:
            raise Refused(f'has the parameter "{name}" of type {value.dtype}; float32 is wanted')
        return self.builder.param(name, value.detach().cpu().numpy().copy())

    # Layers -----------------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module, path: str, x: Activation) -> Activation:
        if isinstance(
            layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
        ):
            return x
        if layer._forward_pre_hooks or layer._forward_hooks:
            raise Refused("has forward hooks (weight norm, pruning), which a graph cannot see; remove them first")
        if type(layer) is nn.ReLU:
            return self.relu(x)
        if type(layer) is nn.LeakyReLU:
            return self.leaky_relu(x, layer.negative_slope)
        if type(layer) in (nn.Hardtanh, nn.ReLU6):
            return self.clip(x, layer.min_val, layer.max_val)
        if type(layer) is nn.Sigmoid:
            return self.sigmoid(x)
        if type(layer) is nn.Tanh:
            return self.tanh(x)
        if type(layer) in (nn.ZeroPad2d, nn.ConstantPad2d):
            return self.pad(x, layer.padding, value=layer.value)
        if type(layer) is nn.Flatten:
            return self.flatten(x, layer.start_dim, layer.end_dim)
        if type(layer) is nn.Unflatten:
            raise Refused("cannot be said; use x.view(batch, …) instead")
        if type(layer) is nn.MaxPool2d:
            return self.max_pool(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices)
        if type(layer) is nn.AvgPool2d:
            return self.average_pool(
                x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad, layer.divisor_override
            )
        if type(layer) is nn.AdaptiveAvgPool2d:
            return self.adaptive(x, layer.output_size)
        if type(layer) not in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d):
            raise Refused(no_way_to_say(type(layer).__name__))
        if path in self.builder.shapes:
            raise Refused("is used twice; make two layers, one for each use")
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
            raise Refused(f'pads with "{layer.padding_mode}"; use padding_mode="zeros"')
        kernel, stride, dilation = pair(layer.kernel_size), pair(layer.stride), pair(layer.dilation)
        if layer.padding == "same":
            extra = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = (extra[0] // 2, extra[1] // 2, extra[0] - extra[0] // 2, extra[1] - extra[1] // 2)
        else:
            height, width = (0, 0) if layer.padding == "valid" else pair(layer.padding)
            pads = (height, width, height, width)
        weight, bias = self._weights(layer, path)
        source, further = self.builder.unpadded(x.name)
        top, left, bottom, right = (own + more for own, more in zip(pads, further, strict=True))
        return Activation(
            self.builder.add(
                Conv(
                    name=self.fresh(),
                    inputs=(source,),
                    shape=(),
                    weight=weight,
                    bias=bias,
                    stride=stride,
                    pads=(top, left, bottom, right),
                    dilation=dilation,
                    groups=layer.groups,
                )
            )
        )

    def _batch_norm(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, path: str, x: Activation) -> Activation:
        if not layer.affine or layer.running_mean is None or layer.running_var is None:
            raise Refused("needs affine=True and track_running_stats=True")
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


def _function_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
