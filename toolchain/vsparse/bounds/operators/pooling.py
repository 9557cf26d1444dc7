"""MaxPool and AveragePool: the maximum relaxed to its best input and a constant, the mean a sum of products with ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import frexp, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.affine_forms import AffineForm, ZonotopePass, box_form
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.convolution import Geometry, convolved, transposed_convolution
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.linear import SumOfProducts
from vsparse.bounds.monotone import Monotone
from vsparse.bounds.rules import Params, exact_error, register
from vsparse.graph.ir import AveragePool, MaxPool, Shape


@register(AveragePool)
class AveragePoolBounds(Monotone[AveragePool], SumOfProducts[AveragePool]):
    """The sum of a window times one over its size; the interval is its own execution at both ends."""

    # The sum, the reciprocal of the window's size where it is multiplied by, and one more rounding (docs/numerics.md, section 3.1).
    roundings = 3
    multiplies = False

    def weight(self, node: AveragePool, params: Params, like: Tensor) -> Tensor:
        return pool_weight(node, node.shape[0], like) / (node.kernel[0] * node.kernel[1])

    def forward(self, node: AveragePool, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return convolved(_geometry(node), weight, x, bias)

    def transposed(self, node: AveragePool, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        return transposed_convolution(_geometry(node), weight, a, input_shape)

    def fan_out(self, node: AveragePool, survivors: Tensor) -> int:
        return prod(-(-k // s) for k, s in zip(node.kernel, node.stride, strict=True))

    def weight_unit(self, node: AveragePool, model: ErrorModel) -> float:
        """As a depthwise convolution it has the weight 1/n as it is stored, which only for powers of two is exact."""
        contract = model.contract
        inexact = not contract.exact and contract.storage != contract.accumulate and frexp(prod(node.kernel))[0] != 0.5
        return model.storage_unit if inexact else 0.0

    def divisor(self, node: AveragePool) -> int:
        """An average pool divides last."""
        return prod(node.kernel)


def pool_weight(node: AveragePool, channels: int, like: Tensor) -> Tensor:
    """Returns the depthwise weight [channels, 1, kh, kw] of the sum over a window, with ones."""
    return torch.ones((channels, 1, *node.kernel), dtype=like.dtype, device=like.device)


def _geometry(node: AveragePool) -> Geometry:
    return Geometry(node.stride, (0, 0, 0, 0), (1, 1), node.shape[0])


@register(MaxPool)
class MaxPoolBounds(Monotone[MaxPool]):
    """At least the input with the highest lower bound, at most the highest upper bound, exact where one input surely wins."""

    exact = True

    def backward(self, node: MaxPool, a: Tensor, state: CrownPass) -> None:
        source = node.inputs[0]
        index, exact, top = maxpool_choice(node, state.boxes[source])
        chosen = torch.where(exact.unsqueeze(1), a, a.clamp(min=0))
        state.add(a.clamp(max=0), torch.where(exact, torch.zeros_like(top), top))
        state.pass_on(source, scatter_to_input(node, chosen, index, state.graph.shape_of(source)))

    def zonotope(self, node: MaxPool, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        """The input that wins wherever one surely does, elsewhere the box."""
        (form,) = inputs
        index, exact, _ = maxpool_choice(node, state.boxes[node.inputs[0]])
        top, left, bottom, right = node.pads

        def chosen(value: Tensor) -> Tensor:
            flat = F.pad(value, (left, right, top, bottom)).flatten(-3)
            each = index.view(len(index), *[1] * (flat.dim() - 2), -1).expand(*flat.shape[:-1], -1)
            return flat.gather(-1, each).view(*flat.shape[:-1], *node.shape)

        whole, exact = box_form(box), exact.view(-1, *node.shape)
        return AffineForm(
            torch.where(exact, chosen(form.centre), whole.centre),
            torch.where(exact.unsqueeze(1), chosen(form.symbols), 0.0),
            torch.where(exact, chosen(form.rest), whole.rest),
            torch.where(exact, chosen(form.spread), 0.0),
        )

    def error(self, node: MaxPool, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        return exact_error(box)

    def unstable(self, node: MaxPool, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones_like(lower, dtype=torch.bool)

    def overlap(self, node: MaxPool, shapes: Sequence[Shape]) -> int:
        """Windows overlap: an input may be the best of as many as the kernel has elements."""
        return prod(node.kernel)


def maxpool_choice(node: MaxPool, box: Box) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (index, exact, top), each [batch, outputs]: the input that bounds each window's maximum from below and above.

    `index` points into the padded map [C·H·W] at the input with the highest lower bound: the maximum is at least that input.
    `exact` says that no other input of the window can exceed it, so the maximum is that input; elsewhere the maximum is at
    most the constant `top`, the highest upper bound.
    """
    top_, left, bottom, right = node.pads
    pads = (left, right, top_, bottom)
    lower, upper = (F.pad(end, pads, value=-torch.inf) for end in box)
    _, channels, height, width = lower.shape
    # Ties go where torch's own pooling puts them, as in auto_LiRPA, so that the two can be compared.
    best, flat = F.max_pool2d(lower, node.kernel, node.stride, return_indices=True)
    rows = torch.arange(node.shape[1], device=lower.device).view(-1, 1) * node.stride[0]
    columns = torch.arange(node.shape[2], device=lower.device) * node.stride[1]
    choice = (flat // width - rows) * node.kernel[1] + (flat % width - columns)
    windows = _windows(node, upper)
    exact = best >= windows.scatter(-1, choice.unsqueeze(-1), -torch.inf).amax(dim=-1)
    plane = torch.arange(channels, device=lower.device).view(-1, 1, 1) * (height * width)
    return (plane + flat).flatten(1), exact.flatten(1), windows.amax(dim=-1).flatten(1)


def _windows(node: MaxPool, x: Tensor) -> Tensor:
    """Returns the windows of a padded map as [batch, C, oh, ow, kh·kw]."""
    return x.unfold(2, node.kernel[0], node.stride[0]).unfold(3, node.kernel[1], node.stride[1]).flatten(4)


def scatter_to_input(node: MaxPool, a: Tensor, index: Tensor, shape: Shape) -> Tensor:
    """Returns coefficients [batch, rows, outputs] moved to the chosen inputs: [batch, rows, C·H·W] of the unpadded map."""
    top, left, bottom, right = node.pads
    channels, height, width = shape[0], shape[1] + top + bottom, shape[2] + left + right
    spread = a.new_zeros(*a.shape[:2], channels * height * width)
    spread = spread.scatter_add(2, index.unsqueeze(1).expand_as(a), a)
    return spread.view(*a.shape[:2], channels, height, width)[..., top : top + shape[1], left : left + shape[2]].flatten(2)
