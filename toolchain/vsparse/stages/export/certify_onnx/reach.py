"""How large any value of the network, and of what bounds it, can become within the data range: refused where that comes near overflow."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf

import numpy as np
import torch
from torch import Tensor

from vsparse.bounds import Rounding, interval
from vsparse.bounds.linear import forward
from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.execute import apply
from vsparse.graph.ir import Add, AddConstant, Affine, AveragePool, Clip, DivConstant, FakeQuant, MulConstant, Sigmoid, Sub, Tanh
from vsparse.graph.operators.move import Move
from vsparse.graph.quantised import LARGEST_RATIO
from vsparse.graph.shapes import show
from vsparse.stages.export.certify_onnx.charges import Charges

# All that is computed on the way to an activation is at most 16 times its reach, so that nothing overflows.
LARGEST_REACH = 2.0**110
# Covers roundings of network and bounds in one operator, as γ is at most 2⁻⁶.
ROUNDINGS = 1 + 2.0**-4


def require_reach(charges: Charges, clip: tuple[float, float]) -> None:
    """Raises InputError, which names the node, where magnitudes may come near the largest number of a format for inputs within `clip`.

    The reach of an activation is the sum of the magnitudes of all its terms, which bounds partial sums too, in every order: none of the
    bounds may leave float32. The network itself may not leave its own formats, by its interval over the whole data range.
    """
    graph, params = charges.graph, charges.rounding.params
    if charges.storage is not None:
        _require_storable(graph, charges.rounding, clip)
    most = max(abs(clip[0]), abs(clip[1]))
    reach = {graph.input: torch.full((1, *graph.input_shape), most + 1, dtype=torch.float64)}
    floor = 2.0**-60 if charges.storage is None else 4 * charges.storage.floor
    for node in graph.nodes:
        with torch.no_grad():
            if isinstance(node, FakeQuant) and not bool((reach[node.inputs[0]] < LARGEST_RATIO * node.scale).all()):
                raise InputError(
                    f'"{show(node.inputs[0])}" may be too many steps of its quantisation for int32 within the data range; '
                    "rescale the network, or leave deploy.live out"
                )
            found = _reach(node, params, [reach[name] for name in node.inputs])
            if charges.storage is not None:
                found = found + _charged(node, charges, [reach[name] for name in node.inputs])
            found = found * ROUNDINGS + floor
        if not bool((found < LARGEST_REACH).all()):
            raise InputError(
                f'the terms of "{show(node.name)}" ({type(node).__name__}) may reach {float(found.max()):.3g} within the data range, too '
                "large for bounds in float32; rescale the network, or leave deploy.live out"
            )
        reach[node.name] = found


def _require_storable(graph: Graph, rounding: Rounding, clip: tuple[float, float]) -> None:
    """Raises InputError, which names the node, where an activation may overflow for some input of the data range."""
    ends = (torch.full((1, *graph.input_shape), end, dtype=torch.float64) for end in clip)
    with torch.no_grad():
        boxes = interval(graph, rounding.params, tuple(ends), rounding)  # type: ignore[arg-type]
    for name, box in boxes.items():
        if not bool(torch.isfinite(box[1]).all()):
            raise InputError(
                f'"{show(name)}" may overflow in {graph.storage} for some input of the data range, so that no bound holds for all; rescale '
                "the network, or certify the float32 network live"
            )


def _charged(node: Node, charges: Charges, m: list[Tensor]) -> Tensor:
    """Returns what the charges of a node that stores in half precision may add to its reach."""
    if isinstance(node, Affine):
        one = charges.sum_of(node)
        return forward(node, torch.from_numpy(one.slope), m[0], torch.from_numpy(one.constant))
    if isinstance(node, MulConstant | DivConstant):
        factor = charges.rounding.params[node.constant].abs()
        floor = charges.rounding.storage_floor
        factor = factor if isinstance(node, MulConstant) else 1 / factor
        return 2 * floor * (m[0] + factor + 2)
    if isinstance(node, AveragePool):
        kernels = charges.rounding.sums[node.name]
        return forward(node, kernels.error, m[0], kernels.error_constant)
    return torch.zeros(())


def _reach(node: Node, params: Mapping[str, Tensor], m: list[Tensor]) -> Tensor:
    """Returns the reach [1, *shape] of a node from those of its inputs."""
    if isinstance(node, Affine):
        bias = None if node.bias is None else params[node.bias].abs()
        return forward(node, params[node.weight].abs(), m[0], bias)
    if isinstance(node, Add | Sub):
        return m[0] + m[1]
    if isinstance(node, FakeQuant):
        return torch.full_like(m[0], node.scale * max(abs(end) for end in node.steps))
    if isinstance(node, AddConstant):
        return m[0] + params[node.constant].abs()
    if isinstance(node, MulConstant):
        return m[0] * params[node.constant].abs()
    if isinstance(node, DivConstant):
        return m[0] / params[node.constant].abs()
    if isinstance(node, Clip):
        ends = [abs(end) for end in (node.lowest, node.highest) if not isinf(end)]
        return torch.maximum(m[0], torch.tensor(max(ends, default=0.0), dtype=torch.float64))
    if isinstance(node, Sigmoid | Tanh):
        return torch.ones_like(m[0])
    moved = apply(node, {}, *m)  # of magnitudes: what moves, pools and ReLU make of them
    return moved.abs() if isinstance(node, Move) else moved.clamp(min=float(np.finfo(np.float32).tiny))
