"""Eight-bit networks: ranges from calibration; where and how values are rounded stands in `graph/grids.py`.

See docs/numerics.md, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph import Graph, run, validate
from vsparse.graph.grids import STYLES, Range, integer_affine, named_layers, unused, with_grids
from vsparse.graph.ir import Affine, Node, QuantisedParameter
from vsparse.graph.quantised import FLOAT_BIASES, check_integer_execution, is_quantised
from vsparse.recipe import AUTO

BATCH = 64
FLOAT_LAYERS = "export.float_layers"


def quantise(
    graph: Graph,
    samples: NDArray[np.float32],
    contract: str = "int8",
    *,
    shares: Mapping[str, float] | None = None,
    floats: frozenset[str] = frozenset(),
) -> Graph:
    """Returns the graph with its affine operators, additions and averages on quantised inputs, and the logits in float32.

    `samples` float32 [n, *input_shape] calibrate: each activation's range is that of its values on them, zero included. Weights that are
    zero stay zero. `contract` says in which runtime's style (`vsparse.graph.grids.STYLES`). `shares`, by activation, says how much of its
    range a grid covers (default: all), and the affine nodes `floats` stay in float32. Raises InputError for a graph that is quantised
    already, has an infinite activation, or that integers cannot execute.
    """
    if is_quantised(graph) or graph.storage != "fp32":
        raise InputError("the network is quantised or in half precision already; quantise the float32 one")
    ranges = _ranges(graph, samples)
    return _quantised(graph, ranges, contract, floats, shares or {})


def require_quantisable(graph: Graph, contract: str, float_layers: Sequence[str] = ()) -> None:
    """Raises InputError, with the node's name, where the operators of a float32 graph cannot be quantised whatever is calibrated.

    `float_layers` are those of the recipe's export.float_layers, refused where there is no such layer or they leave none on integers.
    """
    names = [graph.input, *(node.name for node in graph.nodes)]
    _quantised(graph, dict.fromkeys(names, (0.0, 1.0)), contract, named_layers(graph, named_by(float_layers), FLOAT_LAYERS), {})


def layers_in_float(graph: Graph, float_layers: Sequence[str], names: Mapping[str, str] | None = None) -> frozenset[str]:
    """Returns the affine nodes of a packed graph that export.float_layers names; one that compression has merged away is left out.

    `names` are those of the layer table, by node (`layer_names`; default: the nodes' own).
    """
    nodes = {(names or {}).get(node.name, node.name): node.name for node in graph.nodes}
    wanted = [nodes.get(name, name) for name in named_by(float_layers)]
    return named_layers(graph, [name for name in wanted if name in ("first", "last") or name in nodes.values()], FLOAT_LAYERS)


def layer_names(graph: Graph, packed: Graph) -> dict[str, str]:
    """Returns the name in the layer table, that of the packed network, for each affine node of the graph that a file has of it.

    Files for TensorRT have convolutions in place of fully connected layers, under names of their own.
    """
    found = [[node.name for node in one.nodes if isinstance(node, Affine)] for one in (graph, packed)]
    return dict(zip(*found, strict=True)) if len(found[0]) == len(found[1]) else {}


def named_by(float_layers: Sequence[str]) -> list[str]:
    """Returns what export.float_layers names, without the word that leaves layers to be found."""
    return [name for name in float_layers if name != AUTO]


def _quantised(graph: Graph, ranges: Mapping[str, Range], contract: str, floats: frozenset[str], shares: Mapping[str, float]) -> Graph:
    style = STYLES[contract]
    found = with_grids(graph, ranges, style=style, floats=floats, shares=shares)
    if floats and not found.grids:
        raise InputError(f"{FLOAT_LAYERS} leaves no layer on integers; name fewer layers, or deploy the float32 file alone")
    stored = _Parameters(graph, floats)
    nodes: list[Node] = []
    for node in found.nodes:
        if node.name in found.grids and isinstance(node, Affine):
            weight, bias = graph.params[node.weight], None if node.bias is None else graph.params[node.bias]
            counted = None if bias is None or style.symmetric else torch.tensor(bias)
            made = integer_affine(torch.tensor(weight), counted, found.grids[node.name], style.largest_weight)
            node = replace(node, weight=stored.add(node.weight, made.weight.numpy().astype(np.int8), made.weight_scale))
            if node.bias is not None and made.bias is not None:
                node = replace(node, bias=stored.add(node.bias, made.bias.numpy().astype(np.int32), made.bias_scale))
            elif node.bias is not None and bias is not None:
                stored.params[node.bias] = np.where(np.abs(bias) < FLOAT_BIASES[0], np.float32(0), bias)
        nodes.append(node)
    used = {name for node in nodes for name in node.params}
    params = {name: value for name, value in stored.params.items() if name in used}
    quantised = validate(replace(graph, nodes=tuple(nodes), params=params, integers=stored.integers))
    check_integer_execution(quantised, contract)
    return quantised


def _ranges(graph: Graph, samples: NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    """Returns the least and the greatest value of each activation on the samples."""
    params = graph.tensors()
    found: dict[str, tuple[float, float]] = {}
    with torch.no_grad():
        for start in range(0, len(samples), BATCH):
            for name, value in run(graph, params, torch.from_numpy(samples[start : start + BATCH]), keep=True).items():
                least, most = float(value.min()), float(value.max())
                before = found.get(name, (least, most))
                found[name] = min(before[0], least), max(before[1], most)
    if not found or not all(np.isfinite(ends).all() for ends in found.values()):
        raise InputError("calibration needs samples, on which every activation is finite; give training samples")
    return found


class _Parameters:
    """The parameters of a graph, those that become integers beside the others."""

    def __init__(self, graph: Graph, floats: frozenset[str]) -> None:
        self.params = dict(graph.params)
        self.integers: dict[str, QuantisedParameter] = {}
        self.constants = {name for node in graph.nodes if not isinstance(node, Affine) or node.name in floats for name in node.params}

    def add(self, name: str, values: NDArray[np.int8] | NDArray[np.int32], scale: torch.Tensor) -> str:
        """Stores integers under a name like `name` and returns it."""
        # A parameter that several nodes read is quantised for each of them, as their inputs have different scales.
        free = unused(name, lambda one: one in self.integers or one in self.constants)
        self.integers[free] = QuantisedParameter(values, scale.numpy())
        self.params[free] = self.integers[free].floats()
        return free
