"""Mixed precision: passes through the network in bfloat16 where a recipe allows it; losses and bounds never are."""

from __future__ import annotations

import torch
from torch import Tensor

from vsparse.graph import run
from vsparse.graph.ir import Graph
from vsparse.stages.train.bounds.margins import Params


def forward(graph: Graph, params: Params, x: Tensor, amp: bool = False, statistics: dict[str, Tensor] | None = None) -> Tensor:
    """Returns the logits [batch, classes] of `x` in the dtype of `x`; with `amp`, matrix products and convolutions ran in bfloat16.

    A dictionary given as `statistics` makes batch norm use this batch's statistics and receives them, in the dtype of `x` too, so that
    the loss, the running averages and the bounds that follow are of float32.
    """
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
        logits = run(graph, params, x, batch_statistics=statistics)
    for name in statistics or ():
        assert statistics is not None
        statistics[name] = statistics[name].to(x.dtype)
    return logits.to(x.dtype)
