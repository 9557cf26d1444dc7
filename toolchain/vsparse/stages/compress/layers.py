"""What compression knows of affine layers: which of their units depend on which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Affine, Conv, Gemm, Node
from vsparse.stages.compress.reduced_graph import Mask


def is_reader(node: Node) -> bool:
    """Whether the node mixes all units of its input, so that input and output units are independent: `Gemm` and one-group `Conv`."""
    return isinstance(node, Gemm) or (isinstance(node, Conv) and node.groups == 1)


def is_depthwise(node: Node, in_units: int) -> bool:
    """Whether the node is a convolution with one group for each input channel (and more than one group)."""
    return isinstance(node, Conv) and node.groups > 1 and node.groups == in_units


def folds_constants(node: Affine) -> bool:
    """Whether a constant input channel is a constant in every output: always for Gemm, for Conv only without padding."""
    return not isinstance(node, Conv) or not any(node.pads)


def filters(weight: NDArray[np.float32]) -> Mask:
    """Returns [out, in]: whether any tap of a filter is non-zero."""
    used: Mask = np.any(weight.reshape(*weight.shape[:2], -1) != 0, axis=2)
    return used
