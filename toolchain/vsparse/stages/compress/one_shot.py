"""One-shot pruning with calibration: weights are removed layer by layer, and what is left makes up for them by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vsparse.errors import InputError
from vsparse.graph.ir import Affine, Conv, Graph
from vsparse.graph.rules import apply
from vsparse.stages.train.budgets import kernel_density

# Samples of one pass; columns whose weights are chosen together; inputs of one output above which no matrix of them is inverted.
BATCH, BLOCK, MOST_INPUTS = 32, 128, 8192
# Added to the diagonal of the inputs' second moments, as a fraction of its mean.
DAMPING = 0.01


@dataclass(frozen=True)
class PrunedLayer:
    """A layer after pruning: weights before and kept, and the squared error of its outputs on the calibration samples over their square."""

    name: str
    weights: int
    kept: int
    error: float


def prune(graph: Graph, samples: NDArray[np.float32], sparsity: float) -> tuple[Graph, list[PrunedLayer]]:
    """Returns the network with `sparsity` of the weights of its affine layers set to zero, and what became of each layer.

    `graph` has no batch normalisation, `samples` [n, *input_shape] are those it is calibrated on. How many weights a layer keeps is by
    its Erdos-Renyi-kernel density (Evci et al. 2020, section 3). From the first layer on, each is fitted by least squares to the outputs
    of the original on what the pruned layers before it deliver; weights go by the error that this leaves, w² / (H⁻¹)ᵢᵢ, and the others,
    the bias among them, take it up (Frantar and Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1). Layers of more than 8,192 inputs an
    output lose those of least |w|·‖x‖₂ (Sun et al., Wanda, arXiv 2306.11695), and the bias takes up the mean.

    Raises InputError for a sparsity outside of (0, 1) and where a layer would lose every weight.
    """
    layers = [node for node in graph.nodes if isinstance(node, Affine)]
    if not 0 < sparsity < 1:
        raise InputError(f"--sparsity {sparsity:g} is no fraction between 0 and 1, both left out; 0.9 removes nine weights of ten")
    shared = len(layers) - len({node.weight for node in layers})
    if shared:
        raise InputError(f"{shared} layers of the network read a weight that another one reads too; give each its own before pruning")
    kept = allotted([graph.params[node.weight].shape for node in layers], sparsity)
    params = dict(graph.params)
    before: dict[str, Tensor] = {graph.input: torch.from_numpy(samples)}
    after = dict(before)
    last = {name: index for index, node in enumerate(graph.nodes) for name in node.inputs}
    account: list[PrunedLayer] = []
    original = graph.tensors()
    for index, node in enumerate(graph.nodes):
        before[node.name] = _applied(graph, node.name, original, before)
        if isinstance(node, Affine):
            count = kept[len(account)]
            weight, bias = _fitted(node, original, after[node.inputs[0]], before[node.name], count)
            params[node.weight] = weight
            name = node.bias
            if name is None and bias.any():
                name = f"{node.name}.bias"
            graph = _with_bias(graph, node, name) if name is not None and node.bias is None else graph
            if name is not None:
                params[name] = bias
        tensors = {name: torch.from_numpy(np.ascontiguousarray(params[name])) for name in graph.node(node.name).params}
        after[node.name] = _applied(graph, node.name, tensors, after)
        if isinstance(node, Affine):
            lost = float((after[node.name].double() - before[node.name].double()).square().sum())
            whole = float(before[node.name].double().square().sum())
            weights = params[node.weight]
            account.append(PrunedLayer(node.name, weights.size, int(np.count_nonzero(weights)), lost / whole if whole else 0.0))
        for name in node.inputs:
            if last[name] == index and name != graph.output:
                before.pop(name, None)
                after.pop(name, None)
    return graph.with_params(params), account


def allotted(shapes: Sequence[tuple[int, ...]], sparsity: float) -> list[int]:
    """Returns how many weights each layer keeps, together at most 1 − sparsity of all: min(1, scale · density) of each, at least one."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    densities = [kernel_density(shape) for shape in shapes]
    most = floor((1 - sparsity) * sum(sizes) + 1e-9)
    if most < len(sizes):
        raise InputError(f"--sparsity {sparsity:g} leaves {most} weights to {len(sizes)} layers; lower it")

    def counts(scale: float) -> list[int]:
        return [min(size, max(1, floor(size * min(1.0, scale * density)))) for size, density in zip(sizes, densities, strict=True)]

    low, high = 0.0, 1 / min(densities)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle)) <= most else (low, middle)
    return counts(low)


def _applied(graph: Graph, name: str, params: dict[str, Tensor], values: dict[str, Tensor]) -> Tensor:
    node = graph.node(name)
    inputs = [values[source] for source in node.inputs]
    with torch.no_grad():
        parts = [apply(node, params, *(one[i : i + BATCH] for one in inputs)) for i in range(0, len(inputs[0]), BATCH)]
    return torch.cat(parts)


def _with_bias(graph: Graph, node: Affine, name: str) -> Graph:
    return replace(graph, nodes=tuple(replace(one, bias=name) if one.name == node.name else one for one in graph.nodes))  # type: ignore[call-arg]


def _columns(node: Affine, weight: Tensor, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields inputs [groups, inputs, m] and outputs [groups, outputs, m] of so many products, batch by batch, in float64."""
    for start in range(0, len(x), BATCH):
        one, out = x[start : start + BATCH].double(), y[start : start + BATCH].double()
        if isinstance(node, Conv):
            top, left, bottom, right = node.pads
            one = F.unfold(F.pad(one, (left, right, top, bottom)), weight.shape[2:], dilation=node.dilation, stride=node.stride)
            groups = node.groups
            one = one.transpose(0, 1).reshape(groups, one.shape[1] // groups, -1)
            out = out.flatten(2).transpose(0, 1).reshape(groups, out.shape[1] // groups, -1)
        else:
            one, out = one.T[None], out.T[None]
        yield one, out


def _fitted(node: Affine, params: dict[str, Tensor], x: Tensor, y: Tensor, keep: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns weight and bias of a layer that keeps so many weights and comes near the original's outputs `y` on the inputs `x`."""
    weight = params[node.weight].double()
    bias = params[node.bias].double() if node.bias is not None else torch.zeros(len(weight), dtype=torch.float64)
    groups = node.groups if isinstance(node, Conv) else 1
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    inputs = matrix.shape[2]
    if inputs > MOST_INPUTS:
        return _by_norm(node, weight, bias, matrix, x, y, keep)
    moments = torch.zeros(groups, inputs + 1, inputs + 1, dtype=torch.float64)
    products = torch.zeros(groups, matrix.shape[1], inputs + 1, dtype=torch.float64)
    for one, out in _columns(node, weight, x, y):
        wide = torch.cat([one, torch.ones_like(one[:, :1])], 1)
        moments += wide @ wide.transpose(1, 2)
        products += out @ wide.transpose(1, 2)
    whole = torch.cat([matrix, bias.reshape(groups, -1, 1)], 2)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1).clamp(min=1e-12)
    moments += damping[:, None, None] * torch.eye(inputs + 1, dtype=torch.float64)
    # Ridge towards the original: where the inputs say nothing, the weight stays.
    fitted = torch.linalg.solve(moments, (products + damping[:, None, None] * whole).transpose(1, 2)).transpose(1, 2)
    upper = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True)
    result = _removed(fitted, upper, keep)
    return _float(result[:, :, :-1].reshape(weight.shape)), _float(result[:, :, -1].reshape(-1))


def _removed(fitted: Tensor, upper: Tensor, keep: int) -> Tensor:
    """Sets weights to zero column by column, the bias (the last column) apart, and moves their error to the columns that follow."""
    values, pivots = fitted.clone(), upper.diagonal(dim1=1, dim2=2)
    groups, outputs, columns = values.shape[0], values.shape[1], values.shape[2] - 1
    left, total = keep, groups * outputs * columns
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        here = groups * outputs * (stop - start)
        # What is left of the budget, spread over the columns that are left.
        count = left if stop == columns else min(here, round(left * here / total))
        total, left = total - here, left - count
        scores = (values[:, :, start:stop] / pivots[:, None, start:stop]).square()
        stays = torch.zeros(here, dtype=torch.bool)
        stays[scores.flatten().topk(min(count, here)).indices] = True
        stays = stays.reshape(scores.shape)
        for column in range(start, stop):
            gone = torch.where(stays[:, :, column - start], 0.0, values[:, :, column])
            error = gone / pivots[:, None, column]
            values[:, :, column:] -= error[:, :, None] * upper[:, None, column, column:]
            values[:, :, column][~stays[:, :, column - start]] = 0.0
    return values


def _by_norm(
    node: Affine, weight: Tensor, bias: Tensor, matrix: Tensor, x: Tensor, y: Tensor, keep: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    squares = torch.zeros(matrix.shape[0], matrix.shape[2], dtype=torch.float64)
    sums, wanted, count = torch.zeros_like(squares), torch.zeros(matrix.shape[:2], dtype=torch.float64), 0
    for one, out in _columns(node, weight, x, y):
        squares += one.square().sum(2)
        sums += one.sum(2)
        wanted += out.sum(2)
        count += one.shape[2]
    scores = (matrix.abs() * squares.sqrt()[:, None]).flatten()
    stays = torch.zeros(scores.numel(), dtype=torch.bool)
    stays[scores.topk(keep).indices] = True
    left = torch.where(stays.reshape(matrix.shape), matrix, 0.0)
    means = (left @ (sums / count)[:, :, None])[:, :, 0]
    return _float(left.reshape(weight.shape)), _float((wanted / count - means).reshape(-1))


def _float(value: Tensor) -> NDArray[np.float32]:
    rounded = value.float().numpy()
    if not np.isfinite(rounded).all():
        raise InputError("least squares on the calibration samples has no finite solution; give more, and other, training samples")
    return np.ascontiguousarray(rounded)
