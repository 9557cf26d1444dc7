"""Batch-norm folding against exact arithmetic, cost counted by hand, and the structural check."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from graph_nets import graph_logits, settle
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import (
    Add,
    AddConstant,
    BatchNorm,
    Gemm,
    Graph,
    MulConstant,
    Relu,
    Reshape,
    channel_affine,
    fold_batch_norm,
    from_torch,
    layer_table,
    macs,
    parameter_bytes,
    parameter_count,
    run,
    validate,
    weight_count,
)

RNG = np.random.default_rng(3)


def normed(values: dict[str, list[float]], nodes: tuple | None = None) -> Graph:  # type: ignore[type-arg]
    gemm = Gemm(name="g", inputs=("x",), shape=(2,), weight="w", bias=None)
    norm = BatchNorm(name="n", inputs=("g",), shape=(2,), scale="s", bias="b", mean="m", variance="v", epsilon=0.0)
    params = {name: np.array(value, np.float32) for name, value in values.items()}
    return Graph("x", (1,), nodes or (gemm, norm), "n", params)


def test_folding_is_rounded_once() -> None:
    # √v is 2 and 4, so scale, weight and bias are exact rationals; each must be the float32 nearest to its rational.
    values = {"w": [[0.1], [0.7]], "s": [0.3, 1.7], "b": [0.2, -0.4], "m": [0.9, 0.6], "v": [4.0, 16.0]}
    folded = fold_batch_norm(normed(values))
    (gemm,) = folded.nodes
    assert isinstance(gemm, Gemm)
    assert (gemm.name, gemm.weight, gemm.bias, folded.output) == ("g", "w", "g.bias", "g")
    for i, root in enumerate((2, 4)):
        w, s, b, m = (Fraction(float(np.float32(np.ravel(values[name])[i]))) for name in "wsbm")
        assert folded.params["w"][i, 0] == np.float32(float(w * s / root))
        assert folded.params["g.bias"][i] == np.float32(float(b - m * s / root))


def test_a_factor_behind_a_normalisation_that_changes_nothing_stays_out_of_a_layer_that_others_read() -> None:
    params = {"s": np.ones(2), "b": np.zeros(2), "v": np.ones(2), "w": np.array([[1.0], [-2.0]]), "k": np.array([3.0, 5.0])}
    nodes = (
        Gemm(name="g", inputs=("x",), shape=(2,), weight="w", bias=None),
        Relu(name="r", inputs=("g",), shape=(2,)),
        BatchNorm(name="n", inputs=("g",), shape=(2,), scale="s", bias="b", mean="b", variance="v", epsilon=0.0),
        MulConstant(name="m", inputs=("n",), shape=(2,), constant="k"),
        Add(name="y", inputs=("r", "m"), shape=(2,)),
    )
    graph = Graph("x", (1,), nodes, "y", {name: value.astype(np.float32) for name, value in params.items()})
    folded = fold_batch_norm(graph, constants=True)
    assert [type(node).__name__ for node in folded.nodes] == ["Gemm", "Relu", "MulConstant", "Add"]
    x = torch.tensor([[1.0], [-1.0]])
    assert run(folded, folded.tensors(), x).tolist() == [[4.0, -10.0], [-3.0, 12.0]]


def test_normalisation_that_cannot_go_into_a_layer() -> None:
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), (2, 4, 4))
    graph = from_torch(net, (2, 4, 4))
    folded = fold_batch_norm(graph)
    assert [type(node).__name__ for node in folded.nodes] == ["MulConstant", "AddConstant", "Conv", "Relu"] + [
        "MulConstant",
        "AddConstant",
    ] * 2
    x = RNG.standard_normal((2, 2, 4, 4)).astype(np.float32)
    assert np.allclose(graph_logits(folded, x), graph_logits(graph, x), atol=1e-5)


def test_layer_with_a_second_reader_keeps_its_values() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n1, self.n2, self.b = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.n1(h) + h + self.n2(self.b(x))

    torch.manual_seed(0)
    graph = from_torch(settle(Net(), (3,)), (3,))
    folded = fold_batch_norm(graph)
    assert not any(isinstance(node, BatchNorm) for node in folded.nodes)
    assert np.array_equal(folded.params["a.weight"], graph.params["a.weight"])
    assert not np.array_equal(folded.params["b.weight"], graph.params["b.weight"])
    x = RNG.standard_normal((5, 3)).astype(np.float32)
    assert np.allclose(graph_logits(folded, x), graph_logits(graph, x), atol=1e-5)


def test_two_normalisations_in_a_row_go_into_one_layer() -> None:
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.BatchNorm2d(3)), (2, 4, 4))
    graph = from_torch(net, (2, 4, 4))
    folded = fold_batch_norm(graph)
    assert [node.name for node in folded.nodes] == ["0"]
    x = RNG.standard_normal((2, 2, 4, 4)).astype(np.float32)
    assert np.allclose(graph_logits(folded, x), graph_logits(graph, x), atol=1e-5)


def test_weight_shared_by_two_layers_is_folded_for_one_only() -> None:
    nodes = (
        Gemm(name="g", inputs=("x",), shape=(2,), weight="w", bias="c"),
        BatchNorm(name="n", inputs=("g",), shape=(2,), scale="s", bias="b", mean="m", variance="v", epsilon=0.5),
        Gemm(name="h", inputs=("n",), shape=(2,), weight="w", bias="c"),
    )
    names = {"w": (2, 2), "c": (2,), "s": (2,), "b": (2,), "m": (2,)}
    params = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in names.items()} | {"v": np.ones(2, np.float32)}
    graph = Graph("x", (2,), nodes, "h", params)
    x = RNG.standard_normal((4, 2)).astype(np.float32)
    assert np.allclose(graph_logits(fold_batch_norm(graph), x), graph_logits(graph, x), atol=1e-5)


def test_folding_that_overflows_is_refused() -> None:
    values = {"w": [[1e30], [1]], "s": [1e20, 1], "b": [0, 0], "m": [0, 0], "v": [1, 1]}
    with pytest.raises(InputError, match='"w" too large'):
        fold_batch_norm(normed(values))


def test_channel_affine_by_hand() -> None:
    graph = normed({"w": [[1], [1]], "s": [3, 1], "b": [1, 0], "m": [5, 2], "v": [4, 1]})
    node = graph.node("n")
    assert isinstance(node, BatchNorm)
    scale, shift = channel_affine(node, graph.tensors(torch.float64))
    assert scale.tolist() == [1.5, 1]
    assert shift.tolist() == [1 - 5 * 1.5, -2]


def test_cost_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5, bias=False))
    graph = from_torch(net, (2, 4, 4))
    assert weight_count(graph) == 4 * 1 * 9 + 16 * 5
    assert parameter_count(graph) == 36 + 4 + 80
    assert parameter_bytes(graph) == 4 * 120
    assert macs(graph) == 36 * 16 + 80
    rows = layer_table(graph)
    assert [(row.name, row.type, row.shape, row.weights, row.macs, row.bytes) for row in rows] == [
        ("0", "Conv", (4, 4, 4), 36, 576, 160),
        ("4", "Gemm", (5,), 80, 80, 320),
    ]
    graph.params["4.weight"][0, :7] = 0
    graph.params["0.weight"][:] = 1
    graph.params["4.weight"][1:] = 1
    graph.params["4.weight"][0, 7:] = 1
    assert weight_count(graph, nonzero=True) == 116 - 7


GEMM = Gemm(name="g", inputs=("x",), shape=(3,), weight="w", bias="b")
ONES = {"w": np.ones((3, 2), np.float32), "b": np.ones(3, np.float32)}
GOOD = Graph("x", (2,), (GEMM, Relu(name="r", inputs=("g",), shape=(3,))), "r", ONES)


def test_a_well_formed_graph_is_returned_as_it_is() -> None:
    assert validate(GOOD) is GOOD


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(GOOD, output="y"), "made by no node"),
        (replace(GOOD, nodes=GOOD.nodes[::-1]), "no earlier node"),
        (replace(GOOD, nodes=(*GOOD.nodes, GOOD.nodes[1])), "two activations"),
        (replace(GOOD, nodes=(replace(GEMM, shape=(4,)), GOOD.nodes[1])), "said to have shape"),
        (replace(GOOD, nodes=(replace(GEMM, inputs=()), GOOD.nodes[1])), "takes 1 input"),
        (replace(GOOD, params={"w": GOOD.params["w"]}), 'lacks its parameter "b"'),
        (replace(GOOD, params={**GOOD.params, "b": np.ones(3)}), "float64"),
        (replace(GOOD, params={**GOOD.params, "b": np.array([1, np.nan, 1], np.float32)}), "NaN"),
        (replace(GOOD, params={**GOOD.params, "b": np.ones(4, np.float32)}), "bias"),
        (replace(GOOD, input_shape=(3,)), "for 3 inputs"),
        (Graph("x", (4,), (Reshape(name="r", inputs=("x",), shape=(2, 3)),), "r"), "must stay"),
        (
            Graph("x", (4,), (MulConstant(name="m", inputs=("x",), shape=(4,), constant="b"),), "m", ONES),
            "broadcast",
        ),
        (
            Graph("x", (1,), (AddConstant(name="m", inputs=("x",), shape=(3,), constant="b"),), "m", ONES),
            "broadcast",
        ),
        (normed({"w": [[1], [1]], "s": [1, 1], "b": [1, 1], "m": [1, 1], "v": [1, 0]}), "variance"),
    ],
)
def test_what_is_not_well_formed_is_named(bad: Graph, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        validate(bad)


def test_tensors_are_copies() -> None:
    tensors = GOOD.tensors(torch.float64)
    tensors["w"][0, 0] = 7
    assert GOOD.params["w"][0, 0] == 1
    assert tensors["w"].dtype == torch.float64
