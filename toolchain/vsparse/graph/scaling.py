"""Convolutions that multiply every value by one number, as products: those cost a fraction of what a convolution's kernels do."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

# Whether the path is taken at all; it changes what a convolution costs, and nothing that it says.
TAKEN = True


class Window(Protocol):
    """What is asked of a convolution: `operators/affine.Conv` has it."""

    @property
    def stride(self) -> tuple[int, int]:
        """Vertical and horizontal."""
        ...

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        ...


def is_scaling(node: Window, weight: Tensor) -> bool:
    """Whether each output of a convolution is one input times one number: fan-in 1, no stride, no padding."""
    return TAKEN and weight[0].numel() == 1 and node.stride == (1, 1) and not any(node.pads)


def scaling(weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns weight [channels · count, 1, 1, 1] times x [..., channels, H, W] plus bias: [..., channels · count, H, W]."""
    product = repeated(x, len(weight)) * weight.view(-1, 1, 1)
    return product if bias is None else product + bias.view(-1, 1, 1)


def scaling_gradients(weight: Tensor, x: Tensor, grad: Tensor, wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of `scaling` to x [batch, channels, H, W] and to weight, each None where it is not wanted."""
    channels = x.shape[1]
    to_x = (grad * weight.view(-1, 1, 1)).reshape(len(x), channels, -1, *x.shape[2:]).sum(2) if wanted[0] else None
    to_weight = (grad * repeated(x, len(weight))).sum((0, 2, 3)).view_as(weight) if wanted[1] else None
    return to_x, to_weight


def repeated(x: Tensor, outputs: int) -> Tensor:
    """Returns x with every channel as often in a row as there are outputs for it; a single channel is left to broadcasting."""
    return x if x.shape[-3] in (1, outputs) else x.repeat_interleave(outputs // x.shape[-3], -3)
