"""Making networks in threads, as a sweep does: the weights are those of the seed, whoever draws beside."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from torch import nn

from vsparse.graph import from_torch
from vsparse.networks import make
from vsparse.recipe import Network


def test_threads_that_make_networks_at_once_get_the_same_weights_as_one() -> None:
    def weights(seed: int) -> bytes:
        module = make(Network(architecture="mlp"), (1, 8, 8), 10, seed=seed)
        return b"".join(value.numpy().tobytes() for value in module.state_dict().values())

    alone = [weights(seed) for seed in range(4)] * 25
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(weights, list(range(4)) * 25)) == alone


def test_threads_that_trace_at_once_read_the_same_graph_and_leave_modules_as_they_were() -> None:
    forward = nn.Module.__call__

    def nodes(seed: int) -> list[str]:
        module = make(Network(architecture="cnn4", width=0.25), (1, 8, 8), 10, seed=seed)
        return [node.name for node in from_torch(module, (1, 8, 8)).nodes]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(nodes, range(24)))
    finally:
        sys.setswitchinterval(interval)
    assert all(one == found[0] for one in found)
    assert nn.Module.__call__ is forward
