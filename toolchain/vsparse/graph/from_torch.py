"""Reads an `nn.Module` into a graph with torch.fx; what the graph cannot say is refused by the layer's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from vsparse.errors import InputError
from vsparse.graph.builder import Builder
from vsparse.graph.execute import run
from vsparse.graph.ir import BatchNorm, Conv, Gemm, Graph, Shape
from vsparse.graph.torch_ops import FUNCTIONS, METHODS, TorchOps, no_way_to_say, pair
from vsparse.graph.torch_values import Activation, Constant, Refused
from vsparse.graph.user_code import described
from vsparse.graph.validate import validate


def from_torch(module: nn.Module, input_shape: Shape) -> Graph:
    """Returns the graph of a module that maps [batch, *input_shape] to logits.

    Parameter names are the module's dotted names, so `dict(module.named_parameters()) | dict(module.named_buffers())` can be
    passed as `params` to `run` and to bounds, and training then changes the module itself; constants that the forward
    computes (`x / self.std`) stand in `graph.params` only, so start from `graph.tensors()` where there are such.
    BatchNorm is kept; dropout and Identity are left out.
    Division by a constant becomes multiplication by its reciprocal, rounded once to float32.

    Raises InputError that names the layer, its type, the reason and a substitute for everything a graph cannot say: other
    layers, control flow that depends on data, a layer used twice, tied weights, padding that is not zero, several inputs or
    outputs; and for an error inside the module's own forward, with its type, message and line.
    """
    tracer = fx.Tracer()
    if tracer.is_leaf_module(module, ""):
        raise InputError(f"{type(module).__name__} is a single layer, not a network; put it into nn.Sequential")
    _require_float32(module)
    shape = tuple(int(size) for size in input_shape)
    try:
        traced = tracer.trace(module)
    except Exception as error:  # tracing runs the user's code, which may raise anything
        _execute(module, shape)  # an error of its own, which tracing did not cause, is told as that
        raise InputError(
            f"{type(module).__name__} cannot be traced, though it runs ({described(error)}); "
            "its forward must not branch or loop on the data"
        ) from error
    graph = validate(_Reader(module, traced, shape).read())
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
    except Exception as error:  # the user's code may raise anything
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


class _Reader(TorchOps):
    def __init__(self, module: nn.Module, traced: fx.Graph, input_shape: Shape) -> None:
        self.module, self.traced, self.input_shape = module, traced, input_shape
        self.modules = dict(module.named_modules())
        self.used: dict[str, Tensor] = {}
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
        """Stores a parameter of the module under its dotted name; refuses one whose memory another one has too (tied weights)."""
        if name in self.used:
            raise Refused(f'shares the parameter "{name}" with another layer; give each layer its own')
        if value.dtype != torch.float32:  # a statistic of batch norm
            raise Refused(f'has the parameter "{name}" of type {value.dtype}; float32 is wanted')
        other = next((known for known, tensor in self.used.items() if _share_memory(tensor, value)), None)
        if other is not None:
            layer, _, own = name.rpartition(".")
            raise Refused(
                f'is tied: "{name}" and "{other}" are one tensor, and training, packing and export treat each layer alone; untie them '
                f"with {layer or 'layer'}.{own} = torch.nn.Parameter({layer or 'layer'}.{own}.detach().clone())"
            )
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise Refused(f'has the parameter "{name}", whose entries share memory (expand); give it memory of its own with .clone()')
        self.used[name] = value
        return self.builder.param(name, value.detach().cpu().numpy().copy())

    # Layers -----------------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module, path: str, x: Activation) -> Activation:
        if isinstance(
            layer, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
        ):
            return x
        if is_parametrized(layer):
            raise Refused(
                "has a parametrisation (weight norm, spectral norm), which a graph cannot say; "
                "call torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
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


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have bytes in common."""
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or not one.numel() or not other.numel():
        return False
    spans = []
    for tensor in (one, other):
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((tensor.storage_offset(), tensor.storage_offset() + last))
    return spans[0][0] <= spans[1][1] and spans[1][0] <= spans[0][1]


def _function_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))
