"""What a network answers on a split, beside a constant answer."""

from __future__ import annotations

import numpy as np
import torch

from vsparse.data import Dataset
from vsparse.graph import Graph, run
from vsparse.majority import AgainstMajority, against_majority, against_mean


def answers(graph: Graph, data: Dataset, batch_size: int) -> AgainstMajority:
    """Returns how the predictions of a network on a split compare with a constant answer."""
    params = graph.tensors()
    with torch.no_grad():
        parts = [
            run(graph, params, torch.from_numpy(data.inputs(slice(start, start + batch_size)))).numpy()
            for start in range(0, len(data), batch_size)
        ]
    found = np.concatenate(parts)
    if data.targets is not None:
        return against_mean(data.targets.tolist(), found.ravel().tolist())
    return against_majority(data.labels.tolist(), found.argmax(1).tolist())
