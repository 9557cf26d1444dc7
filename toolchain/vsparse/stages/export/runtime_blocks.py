"""The runtime's own operators on blocks of channels (NCHWc), whose padding channels are zeros here, on fingerprints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.runtime_context import NCHWC, Attributes, RuntimeContext, Unknown, channels_first, channels_last, runs
from vsparse.stages.export.runtime_hashes import Fingerprint
from vsparse.stages.export.runtime_sums import runtime_conv

# Channels of a block of the vector kernels, by instruction set.
BLOCKS = (16, 8, 4, 32)


@runs((NCHWC, "ReorderInput"))
def runtime_reorder_input(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x = r.value(inputs[0])
    if a.get("channels_last", 0):
        x = channels_first(x)
    missing = -x.shape[1] % r.block
    return x.moved(lambda array: np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]))


@runs((NCHWC, "ReorderOutput"))
def runtime_reorder_output(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    x = r.value(inputs[0])
    if not x.shape[1] - r.block < a["channels"] <= x.shape[1]:
        raise Unknown("leaves out channels that are no padding")
    made = x.moved(lambda array: array[:, : a["channels"]])
    return channels_last(made) if a.get("channels_last", 0) else made


@runs((NCHWC, "Conv"))
def runtime_nchwc_conv(r: RuntimeContext, inputs: list[Any], a: Attributes) -> Fingerprint:
    weight = in_rows(r.numbers(inputs[1]), r.block, a.get("group", 1))
    return runtime_conv(r, [inputs[0], weight, *inputs[2:]], a)


def in_rows(weight: NDArray[np.float32], block: int, groups: int) -> NDArray[np.float32]:
    """Returns a weight [out, in/groups, h, w] whose memory is in blocks of channels in the usual order.

    [out/B, in/B, h, w, B in, B out] where the input is in blocks too, [out/B, in, h, w, B out] where it has few channels or each
    channel is a group of its own.
    """
    outputs, inputs, *kernel = weight.shape
    if outputs % block:
        raise Unknown("has a weight that is not in blocks of channels")
    if inputs < block or (groups > 1 and inputs == 1):
        split = weight.reshape(outputs // block, inputs, *kernel, block)
        return np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3)).reshape(weight.shape)
    if inputs % block:
        raise Unknown("has a weight that is not in blocks of channels")
    split = weight.reshape(outputs // block, inputs // block, *kernel, block, block)
    return np.ascontiguousarray(split.transpose(0, 5, 1, 4, 2, 3)).reshape(weight.shape)
