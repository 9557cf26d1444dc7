"""Sigmoidal functions of one number: Sigmoid, Tanh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsparse.graph.core import Graph, Unary
from vsparse.graph.onnx_context import Activation, OnnxContext, reads
from vsparse.graph.rules import apply, torch_layer
from vsparse.graph.torch_context import TorchContext, TracedActivation, traces, traces_layer

__all__ = ["Sigmoid", "Tanh"]


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Unary):
    """1 / (1 + e^−x)."""

    onnx = "Sigmoid"


@dataclass(frozen=True, kw_only=True)
class Tanh(Unary):
    """Hyperbolic tangent."""

    onnx = "Tanh"


# Execution ------------------------------------------------------------------------------------------------------------


@apply.register
def _(node: Sigmoid, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@apply.register
def _(node: Tanh, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x)


# ONNX -----------------------------------------------------------------------------------------------------------------


@reads("Sigmoid", 1, 1, only="function")
def read_sigmoid(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return c.unary(Sigmoid, values[0])


@reads("Tanh", 1, 1, only="function")
def read_tanh(c: OnnxContext, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
    return c.unary(Tanh, values[0])


# torch ----------------------------------------------------------------------------------------------------------------


@torch_layer.register
def _(node: Sigmoid, graph: Graph) -> nn.Module:
    return nn.Sigmoid()


@torch_layer.register
def _(node: Tanh, graph: Graph) -> nn.Module:
    return nn.Tanh()


@traces(torch.sigmoid, F.sigmoid, "sigmoid")
def trace_sigmoid(t: TorchContext, x: Any) -> TracedActivation:
    return t.add(Sigmoid, x)


@traces(torch.tanh, F.tanh, "tanh")
def trace_tanh(t: TorchContext, x: Any) -> TracedActivation:
    return t.add(Tanh, x)


@traces_layer(nn.Sigmoid)
def _(t: TorchContext, layer: nn.Sigmoid, path: str, x: TracedActivation) -> TracedActivation:
    return t.add(Sigmoid, x)


@traces_layer(nn.Tanh)
def _(t: TorchContext, layer: nn.Tanh, path: str, x: TracedActivation) -> TracedActivation:
    return t.add(Tanh, x)
