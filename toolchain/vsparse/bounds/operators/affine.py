"""Conv and Gemm: sums of products with weights that are parameters; and batch normalisation, which only training has bounds of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vsparse.bounds.affine_box import affine_box
from vsparse.bounds.ball import Box
from vsparse.bounds.chain import chain_error, looks_at_partial_sums
from vsparse.bounds.convolution import Geometry, convolved, transposed_convolution
from vsparse.bounds.error_model import ErrorModel
from vsparse.bounds.float64 import TINY, magnitude
from vsparse.bounds.linear import SumOfProducts
from vsparse.bounds.rules import BoundRules, Params, register
from vsparse.bounds.scaled import scaled
from vsparse.graph.execute import channel_affine, per_channel
from vsparse.graph.ir import Affine, BatchNorm, Conv, Gemm
from vsparse.graph.scaling import is_scaling, scaling

N = TypeVar("N", bound=Affine)


class AffineBounds(SumOfProducts[N]):
    """A weight and an optional bias that are parameters."""

    in_sums = "starts"

    def weight(self, node: N, params: Params, like: Tensor) -> Tensor:
        return params[node.weight]

    def bias(self, node: N, params: Params) -> Tensor | None:
        return None if node.bias is None else params[node.bias]

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """That of any order, or where it is smaller that of the kernel's own order, where the contract states it."""
        error, reach = super().error(node, model, boxes, box)
        weight = model.params[node.weight]
        if model.contract.order == "chain" and looks_at_partial_sums(node, weight):
            terms, m = model.sums[node.name], magnitude(boxes[node.inputs[0]])
            pad = terms.pad * (self.forward(node, terms.size, m) + self.per_output(node, terms.size_constant))
            chain = chain_error(node, model, weight, self.bias(node, model.params), boxes[node.inputs[0]], pad)
            error = torch.minimum(error, (chain + pad) * (1 + 2.0**-40) + TINY)
        return error, reach

    def interval(self, node: N, params: Params, inputs: list[Box]) -> Box:
        return affine_box(node, params[node.weight], self.bias(node, params), *inputs[0])


@register(Gemm)
class GemmBounds(AffineBounds[Gemm]):
    """y = W·x + b on a flat input."""

    def forward(self, node: Gemm, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def transposed(self, node: Gemm, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        return a @ weight

    def fan_out(self, node: Gemm, survivors: Tensor) -> int:
        return int(survivors.sum(dim=0).max()) if survivors.numel() else 0


@register(Conv)
class ConvBounds(AffineBounds[Conv]):
    """A convolution; one that multiplies every value by one number is a product."""

    def forward(self, node: Conv, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if is_scaling(node, weight):
            return scaling(weight, x, bias)
        return convolved(_geometry(node), weight, x, bias)

    def transposed(self, node: Conv, weight: Tensor, a: Tensor, input_shape: tuple[int, ...]) -> Tensor:
        return transposed_convolution(_geometry(node), weight, a, input_shape)

    def fan_out(self, node: Conv, survivors: Tensor) -> int:
        grouped = survivors.view(node.groups, -1, *survivors.shape[1:])
        return int(grouped.flatten(3).sum(dim=3).sum(dim=1).max()) if survivors.numel() else 0


def _geometry(node: Conv) -> Geometry:
    return Geometry(node.stride, node.pads, node.dilation, node.groups)


@register(BatchNorm)
class BatchNormBounds(BoundRules[BatchNorm]):
    """An interval alone: before anything is verified it is folded, and runtimes fold it as they please."""

    def interval(self, node: BatchNorm, params: Params, inputs: list[Box]) -> Box:
        lower, upper = inputs[0]
        scale, shift = channel_affine(node, params)
        return scaled(per_channel(scale, lower), per_channel(shift, lower), lower, upper)
