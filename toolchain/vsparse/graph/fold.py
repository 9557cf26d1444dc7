"""Folds batch normalisation into the affine layer before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine, BatchNorm
from vsparse.graph.operators.arithmetic import AddConstant, MulConstant
from vsparse.graph.shapes import show
from vsparse.graph.validate import validate

_Array = NDArray[np.float64]


def fold_batch_norm(graph: Graph, constants: bool = False) -> Graph:
    """Returns a graph without BatchNorm that computes the same function up to one rounding of each parameter to float32.

    A BatchNorm right after a Conv or Gemm that nobody else reads goes into its weight and bias: W' = scale · W and
    b' = scale · b + shift, with scale = γ / √(variance + epsilon) and shift = β − mean · scale, all in float64. Any other becomes
    MulConstant and AddConstant, without a factor that is 1 and a term that is 0 everywhere, which runtimes leave out. The affine node
    keeps its name and its weight's name; a new bias is called `<name>.bias`.
    With `constants`, a MulConstant or AddConstant with one number for each channel, right after a Conv or Gemm that nobody else reads, is
    folded too: runtimes do it when they load a file.
    Raises InputError when a folded parameter does not fit into float32.
    """
    consumers = graph.consumers()
    params = dict(graph.params)
    made: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    shared: set[str] = set()  # left out, and read beside what they read
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        found = _scale_and_shift(node, graph, constants)
        if found is None:
            made[node.name] = node
            continue
        scale, shift = found
        source = made.get(node.inputs[0])
        original = graph.node(node.name).inputs[0]
        alone = len(consumers[original]) == 1 and original != graph.output and original not in shared
        if not isinstance(node, BatchNorm) and not (isinstance(source, Affine) and alone):
            made[node.name] = node
            continue
        if isinstance(source, Affine) and alone:
            made[source.name] = _into_affine(source, scale, shift, params, graph)
            renamed[node.name] = source.name
        else:
            channels = (len(scale), *(1 for _ in node.shape[1:]))
            factor, term = (_rounded(node.name, value).reshape(channels) for value in (scale, shift))
            if (factor == 1).all() and not term.any() and node.name != graph.output:
                renamed[node.name] = node.inputs[0]
                shared.add(node.name)
                continue
            inputs = node.inputs
            if (factor != 1).any():
                name = _free(f"{node.name}.mul", made, params) if term.any() else node.name
                made[name] = MulConstant(name=name, inputs=inputs, shape=node.shape, constant=_store(f"{node.name}.scale", factor, params))
                inputs = (name,)
            if term.any() or node.name not in made:
                made[node.name] = AddConstant(
                    name=node.name, inputs=inputs, shape=node.shape, constant=_store(f"{node.name}.shift", term, params)
                )
    nodes = tuple(made.values())
    used = {name for node in nodes for name in node.params}
    params = {name: value for name, value in params.items() if name in used}
    return validate(Graph(graph.input, graph.input_shape, nodes, renamed.get(graph.output, graph.output), params))


def _scale_and_shift(node: Node, graph: Graph, constants: bool) -> tuple[_Array, _Array] | None:
    """Returns the map x · scale + shift of each channel, None for a node that is none or is not to be folded."""
    if constants and isinstance(node, MulConstant | AddConstant):
        values = np.broadcast_to(graph.params[node.constant].astype(np.float64), node.shape).reshape(node.shape[0], -1)
        if (values != values[:, :1]).any():
            return None
        one = np.ones(node.shape[0])
        return (values[:, 0], 0 * one) if isinstance(node, MulConstant) else (one, values[:, 0])
    if not isinstance(node, BatchNorm):
        return None
    gamma, beta, mean, variance = (graph.params[name].astype(np.float64) for name in node.params)
    scale: _Array = gamma / np.sqrt(variance + node.epsilon)
    return scale, beta - mean * scale


def _into_affine(node: Affine, scale: _Array, shift: _Array, params: dict[str, NDArray[np.float32]], graph: Graph) -> Affine:
    weight = params[node.weight].astype(np.float64)
    bias = np.zeros(len(scale)) if node.bias is None else params[node.bias].astype(np.float64)
    folded = weight * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    weight_name, bias_name = node.weight, node.bias or f"{node.name}.bias"
    # A parameter that another node reads too must keep its value there.
    if sum(node.weight in other.params for other in graph.nodes) > 1:
        weight_name = _free(f"{node.name}.weight", params)
    if node.bias is None or sum(node.bias in other.params for other in graph.nodes) > 1:
        bias_name = _free(f"{node.name}.bias", params)
    params[weight_name] = _rounded(weight_name, folded)
    params[bias_name] = _rounded(bias_name, scale * bias + shift)
    return replace(node, weight=weight_name, bias=bias_name)


def _store(name: str, value: NDArray[np.float32], params: dict[str, NDArray[np.float32]]) -> str:
    name = _free(name, params)
    params[name] = value
    return name


def _rounded(name: str, value: _Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = value.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise InputError(f'folding batch normalisation makes "{show(name)}" too large for float32; its variance is too small')
    return rounded


def _free(name: str, *taken: dict[str, Node] | dict[str, NDArray[np.float32]]) -> str:
    candidate, count = name, 1
    while any(candidate in names for names in taken):
        count += 1
        candidate = f"{name}_{count}"
    return candidate
