"""Signs that interval bounds over the whole input range prove, as executed in fp32."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vsparse.bounds import Executions, Rounding, interval
from vsparse.contract import contract
from vsparse.graph.ir import Graph, Relu


def proved_signs(graph: Graph, input_box: tuple[float, float]) -> tuple[dict[str, NDArray[np.bool_]], set[str]]:
    """Returns ReLU units that are zero, and ReLUs that are the identity, for every input of the box as executed in fp32.

    Interval bounds in float64 widened by the rounding of execution (docs/numerics.md, section 4.2), so the sign of every executed
    pre-activation is known, in whatever order it is summed. SoundnessError where an execution of an end or the middle of the box
    contradicts a bound.
    """
    lower, upper = (torch.full((1, *graph.input_shape), value, dtype=torch.float64) for value in input_box)
    with torch.no_grad():
        params = graph.tensors(torch.float64)
        boxes = interval(graph, params, (lower, upper), Rounding(graph, contract("fp32")))
        points = torch.cat([lower, upper, lower + (upper - lower) * 0.5])
        Executions.of(graph, params, points, torch.zeros(3, dtype=torch.int64)).check(boxes, "interval")
    dead: dict[str, NDArray[np.bool_]] = {}
    active: set[str] = set()
    for node in graph.nodes:
        if isinstance(node, Relu):
            low, high = (side[0].reshape(node.shape[0], -1).numpy() for side in boxes[node.inputs[0]])
            zero: NDArray[np.bool_] = np.all(high <= 0, axis=1)  # NaN compares False, so it proves nothing
            if zero.any():
                dead[node.name] = zero
            if (low >= 0).all():
                active.add(node.name)
    return dead, active
