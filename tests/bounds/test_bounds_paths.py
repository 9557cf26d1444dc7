"""Every fast path of the bounds against its plain definition, on random networks of all topologies.

A seeded part of benchmarks/brute_force/paths.py, and the fast paths of training.
"""

from __future__ import annotations

from collections import Counter
from math import inf

import numpy as np
import pytest
import torch
from path_attack import PATHS, PathFindings, attack_paths, net_and_contract, taken, topology
from path_mutations import PATH_MUTATIONS, mutated_path
from topologies import conv_conv, random_maps, separable

from vsparse.bounds import crown, interval, paths
from vsparse.bounds.linear import transposed
from vsparse.contract import CONTRACTS
from vsparse.graph.execute import apply
from vsparse.graph.ir import AveragePool, BatchNorm, Conv, Graph, Relu
from vsparse.graph.validate import validate
from vsparse.stages.train.bounds import fast_interval as fast_module
from vsparse.stages.train.bounds import linear_pass
from vsparse.stages.train.bounds.fast_interval import fast_interval
from vsparse.stages.train.bounds.linear_pass import row_lower
from vsparse.stages.train.bounds.margins import training_box

TOPOLOGIES = {
    "Conv → Conv",
    "Conv → Conv with padding",
    "depthwise → pointwise",
    "Conv → Add",
    "Conv → Add → Conv",
    "uneven padding",
    "dilation",
    "pools",
    "Concat, Slice, Transpose, Pad",
    "maps of 24 × 24 and more",
}
SIDES = (8, 16, 24, 32)


def test_no_path_says_anything_else() -> None:
    found = PathFindings()
    for number in range(16):
        found.add(attack_paths(*net_and_contract(3, number)))
    assert found.violations == []
    assert (found.nets, found.refused) == (16, 0)
    assert found.modes["pre-activations bounded on receptive fields"] > 5
    assert found.modes["pre-activations bounded by one row"] > 5
    assert found.errors["windows"] > 30
    assert found.errors["crown both ways"] > 100
    assert all(found.modes[f"{name}: {mode}"] for name in PATHS for mode in ("always", "never"))


def test_every_topology_is_drawn() -> None:
    drawn: Counter[str] = Counter()
    for seed in range(250):
        graph = random_maps(np.random.default_rng(seed), norms=seed % 5 == 0)
        validate(graph)
        drawn.update(topology(graph))
    assert set(drawn) == TOPOLOGIES
    assert min(drawn.values()) >= 5
    assert drawn["Conv → Conv with padding"] > 60


@pytest.mark.parametrize(
    "name", ["padding between convolutions", "other end without slack", "pieces of another sample", "splits turned round"]
)
def test_a_broken_path_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PATH_MUTATIONS) > 6
    mutated_path(name, monkeypatch.setattr)
    for number in range(40):
        if attack_paths(*net_and_contract(1, number)).violations:
            return
    pytest.fail(f"{name}: not one violation in 40 networks")


def test_paths_can_be_forced_on_and_off_and_are_put_back() -> None:
    before = {(owner.__name__, name): getattr(owner, name) for path in PATHS.values() for owner, name, _, _ in path}
    with taken(dict.fromkeys(PATHS, "always")):
        assert (inf, 0) == (paths.WINDOWS, paths.MATRIX_ROWS)
    with taken(dict.fromkeys(PATHS, "never")):
        assert (paths.WINDOWS, paths.MATRIX_ELEMENTS) == (0.0, 0)
    assert before == {(owner.__name__, name): getattr(owner, name) for path in PATHS.values() for owner, name, _, _ in path}


@pytest.mark.parametrize("seed", range(12))
def test_transposed_convolutions_are_the_gradient_of_the_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 4)) * 2, int(rng.integers(4, 9)), int(rng.integers(4, 9)))
    kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, top, 2)) for top in (4, 4, 3))
    if seed % 4 == 3:
        size = tuple((n - k) // s + 1 for n, k, s in zip(shape[1:], kernel, stride, strict=True))
        node: Conv | AveragePool = AveragePool(name="y", inputs=("x",), shape=(shape[0], *size), kernel=kernel, stride=stride)
        weight = torch.full((shape[0], 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
    else:
        pads, groups = tuple(int(v) for v in rng.integers(0, 3, 4)), (1, 2, shape[0])[seed % 3]
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        size = tuple((shape[1 + i] + pads[i] + pads[i + 2] - reach[i]) // stride[i] + 1 for i in (0, 1))
        fields = {"stride": stride, "pads": pads, "dilation": dilation, "groups": groups}
        node = Conv(name="y", inputs=("x",), shape=(2 * groups, *size), weight="w", bias=None, **fields)  # type: ignore[arg-type]
        weight = torch.tensor(rng.normal(size=(2 * groups, shape[0] // groups, *kernel)))
    x = torch.zeros(9, *shape, dtype=torch.float64, requires_grad=True)
    a = torch.tensor(rng.normal(size=(9, *node.shape)))
    (wanted,) = torch.autograd.grad((apply(node, {"w": weight}, x) * a).sum(), x)
    for mode in ("always", "never", "as it comes"):
        with taken({"matrices for transposed convolutions": mode}):
            torch.testing.assert_close(transposed(node, weight, a, shape), wanted, rtol=1e-12, atol=1e-12)


def training_graph(seed: int, norms: bool) -> Graph:
    """Returns a network of the operators that training knows, on small maps."""
    graph = random_maps(np.random.default_rng([seed, 8]), norms=norms, side=8)
    if graph.output in {name for node in graph.nodes for name in node.inputs}:
        raise AssertionError("the output is read")
    return graph


def double(graph: Graph) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in graph.tensors().items()}


def test_fast_intervals_of_training_are_those_of_the_one_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = fused = 0
    for seed in range(30):
        graph = training_graph(seed, norms=True)
        params = double(graph)
        box = training_box(torch.rand(3, *graph.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), 0.03)
        slow = interval(graph, params, box)
        monkeypatch.setattr(fast_module, "PIECE", 64 if seed % 2 else 2**30)
        for wanted in ("relu", "output"):
            fast = fast_interval(graph, params, box, wanted)  # type: ignore[arg-type]
            read = {node.inputs[0] for node in graph.nodes if isinstance(node, Relu)} if wanted == "relu" else set()
            assert read | {graph.output} <= set(fast) <= set(slow)
            for name, ends in fast.items():
                for end, other in zip(ends, slow[name], strict=True):
                    scale = float(other.abs().max()) + 1e-9
                    torch.testing.assert_close(end / scale, other / scale, rtol=1e-9, atol=1e-9, msg=f"{wanted}: {name} of network {seed}")
            fused += len(slow) - len(fast)
        norms += any(isinstance(node, BatchNorm) for node in graph.nodes)
    assert norms > 8
    assert fused > 30


@pytest.mark.parametrize("few", [0, 4, 100])
def test_one_row_of_training_is_the_bound_of_crown(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_pass, "FEW", few)
    for seed in range(15):
        graph = training_graph(seed + 100 * (few > 0), norms=False)
        params = double(graph)
        draws = torch.Generator().manual_seed(seed)
        box = training_box(torch.rand(2, *graph.input_shape, dtype=torch.float64, generator=draws), 0.02)
        row = torch.rand(2, 3, dtype=torch.float64, generator=draws) - 0.5
        boxes = interval(graph, params, box)
        wanted = crown(graph, params, box, row[:, None], boxes).squeeze(1)
        found = row_lower(graph, params, box, row, fast_interval(graph, params, box, "relu"))
        scale = max(float(end.abs().max()) for ends in boxes.values() for end in ends)
        torch.testing.assert_close(found / scale, wanted / scale, rtol=1e-9, atol=1e-9, msg=f"network {seed}")


def test_convolutions_that_read_each_other_are_taken_on_receptive_fields() -> None:
    """What row 0 needed: the path itself must be taken where convolutions read each other, on maps of every size."""
    taken_at: Counter[int] = Counter()
    for seed in range(40):
        rng = np.random.default_rng([seed, 1])
        graph = random_maps(rng, blocks=((conv_conv, 1.0), (separable, 1.0)), side=SIDES[seed % 4])
        found = attack_paths(graph, CONTRACTS["real"], rng)
        assert found.violations == []
        taken_at[graph.input_shape[1]] += found.modes["pre-activations bounded on receptive fields"]
        if all(taken_at[side] > 1 for side in SIDES):
            break
    assert all(taken_at[side] for side in SIDES), taken_at
