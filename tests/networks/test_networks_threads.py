"""Making networks in threads, as a sweep does: the weights are those of the seed, whoever draws beside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from vsparse.networks import make
from vsparse.recipe import Network


def test_threads_that_make_networks_at_once_get_the_same_weights_as_one() -> None:
    def weights(seed: int) -> bytes:
        module = make(Network(architecture="mlp"), (1, 8, 8), 10, seed=seed)
        return b"".join(value.numpy().tobytes() for value in module.state_dict().values())

    alone = [weights(seed) for seed in range(4)] * 25
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(weights, list(range(4)) * 25)) == alone
