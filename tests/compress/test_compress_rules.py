"""Each rule of removal on networks small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
from compress_nets import Net, plain, residual

from vsparse.errors import InputError
from vsparse.graph.ir import Affine, BatchNorm, Gemm, Graph, Relu
from vsparse.stages.compress import compress
from vsparse.stages.compress.rational import evaluate
from vsparse.stages.compress.reduced_graph import apply_masks


def kinds(result, layer):
    return {reduction.kind: reduction.count for reduction in result.reductions if reduction.layer == layer}


def mlp(weight1, bias1, weight2, bias2) -> Graph:
    arrays = {"w1": weight1, "b1": bias1, "w2": weight2, "b2": bias2}
    params = {name: np.array(value, dtype=np.float32) for name, value in arrays.items() if value is not None}
    hidden, out = len(weight1), len(weight2)
    nodes = (
        Gemm(name="one", inputs=("x",), shape=(hidden,), weight="w1", bias="b1" if bias1 is not None else None),
        Relu(name="act", inputs=("one",), shape=(hidden,)),
        Gemm(name="two", inputs=("act",), shape=(out,), weight="w2", bias="b2" if bias2 is not None else None),
    )
    return Graph("x", (len(weight1[0]),), nodes, "two", params)


def test_zero_constant_unread_and_dead_units_of_a_small_network():
    # Units: alive; all-zero row with negative bias; all-zero row with bias 2; unread; dead (largest value 1 + 1 - 3 = -1).
    graph = mlp([[1, -1], [0, 0], [0, 0], [1, 1], [1, 1]], [0, -1, 2, 0, -3], [[1, 1, 3, 0, 1]], [0.5])
    result = compress(graph, {})
    assert kinds(result, "one") == {"zero": 1, "constant": 1, "unread": 1, "dead": 1}
    assert result.packed.params["w1"].tolist() == [[1, -1]]
    assert result.packed.params["w2"].tolist() == [[1]]
    assert result.packed.params["b2"].tolist() == [6.5]
    assert result.exactness == "real"
    assert result.removed_share == 1 - 3 / 15
    row = result.rows[0]
    assert (row.shape_before, row.shape_after, row.weights_before, row.weights_after) == ((5,), (1,), 10, 2)
    assert (row.macs_before, row.macs_after, row.bytes_before, row.bytes_after) == (10, 2, 60, 12)


def test_groups_of_inputs_leave_as_one_so_that_a_pattern_within_them_stays():
    # Of eight hidden units 1 and 2 are unread, and so are 4 to 7, the whole second group of four.
    rows = [[1, -2]] * 8
    reads = [[1, 0, 0, 1, 0, 0, 0, 0], [2, 0, 0, 3, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]]
    graph = mlp(rows, [1] * 8, reads, None)
    assert compress(graph, {}).packed.params["w2"].tolist() == [[1, 1], [2, 3], [0, 1]]
    packed = compress(graph, {}, input_groups=4).packed
    assert packed.params["w2"].tolist() == [row[:4] for row in reads]
    assert packed.params["w1"].tolist() == [[1, -2], [0, 0], [0, 0], [1, -2]]


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_inputs_are_kept_through_a_residual_addition(seed):
    graph = residual(seed)
    rng = np.random.default_rng(seed)
    masks = {name: rng.random((*value.shape[:2], *[1] * (value.ndim - 2))) < 0.2 for name, value in graph.params.items() if value.ndim > 1}
    masks = {name: np.broadcast_to(mask, graph.params[name].shape).copy() for name, mask in masks.items()}
    readers = [node for node in graph.nodes if isinstance(node, Affine)]
    for group in (2, 4):
        packed = compress(graph, masks, exact=False, input_groups=group).packed
        for node in readers:
            before, after = (some.shape_of(node.inputs[0])[0] for some in (graph, packed))
            assert before % group or after % group == 0


def test_dead_units_stay_without_the_exact_reductions_and_when_the_range_is_larger():
    graph = mlp([[1, -1], [1, 1]], [0, -3], [[1, 1]], [0])
    assert compress(graph, {}, exact=False).packed.nodes == graph.nodes
    assert kinds(compress(graph, {}), "one") == {"dead": 1}
    assert compress(graph, {}, input_box=(0, 2)).packed.node("one").shape == (2,)


def test_a_unit_at_the_rim_of_being_dead_is_kept():
    # In real arithmetic the upper bound is exactly 0; executed sums may round upward, so it is not proved dead.
    graph = mlp([[0.1, 0.7], [1, -1]], [-float(np.float32(0.1)) - float(np.float32(0.7)), 0], [[1, 1]], [0])
    assert compress(graph, {}).packed.node("one").shape == (2,)


def test_a_fold_creates_a_bias_where_there_was_none():
    graph = mlp([[1, 0], [0, 0]], [0, 0.25], [[1, 2], [0, 4]], None)
    packed = compress(graph, {}).packed
    assert packed.params[packed.node("two").bias].tolist() == [0.5, 1.0]


def conv_pair(pad: int, value: float) -> Graph:
    net = Net((1, 4, 4), 0)
    net.conv(2)
    net.last, net.shape = net.relu(), net.shape
    net.conv(2, kernel=2, pad=pad)
    graph = net.graph()
    graph.params["conv0.weight"][1] = 0
    graph.params["conv0.bias"][1] = value
    return graph


def test_a_constant_channel_folds_into_an_unpadded_convolution():
    result = compress(conv_pair(0, 0.5), {}, exact=False)
    assert kinds(result, "conv0") == {"constant": 1}
    assert result.packed.node("conv0").shape == (1, 2, 2)
    assert result.evidence.rational_equal


def test_a_constant_channel_in_front_of_zero_padding_stays():
    graph = conv_pair(1, 0.5)
    result = compress(graph, {}, exact=False)
    assert result.packed.node("conv0").shape == (2, 2, 2)
    assert not result.reductions


def test_a_zero_channel_in_front_of_zero_padding_goes():
    result = compress(conv_pair(1, -0.5), {}, exact=False)
    assert kinds(result, "conv0") == {"zero": 1}
    assert result.exactness.startswith("bit-exact")


def test_folding_at_the_border_would_be_seen_by_the_rational_check():
    from vsparse.stages.compress import evidence

    graph = conv_pair(1, 0.5)
    wrong = dict(graph.params)
    wrong["conv2.bias"] = wrong["conv2.bias"] + 0.5 * wrong["conv2.weight"][:, 1].sum(axis=(1, 2))
    wrong["conv2.weight"] = wrong["conv2.weight"].copy()
    wrong["conv2.weight"][:, 1] = 0
    x = np.random.default_rng(0).random((1, 1, 4, 4)).astype(np.float32)
    assert evidence.rational_check(graph, graph.with_params(wrong), {}, x, 1) == (1, False)
    compared = evidence.compare(graph, graph.with_params(wrong), x, (1, False), {})
    assert not compared.within_bound
    assert compared.max_difference > 0.01


def test_residual_channels_go_only_when_every_branch_allows():
    graph = residual(2)
    start, body = "conv0", "conv4"
    graph.params[f"{body}.weight"][1] = 0
    graph.params[f"{body}.bias"][1] = 0
    assert compress(graph, {}, exact=False).packed.node(body).shape[0] == 4
    graph.params[f"{start}.weight"][1] = 0
    graph.params[f"{start}.bias"][1] = -1
    result = compress(graph, {}, exact=False)
    assert result.packed.node(start).shape[0] == result.packed.node(body).shape[0] == 3
    assert kinds(result, start) == kinds(result, body) == {"zero": 1}


def test_a_flattened_channel_takes_its_block_of_columns():
    graph = plain(0)
    keep = {name: np.ones(value.shape, dtype=bool) for name, value in graph.params.items() if name.endswith("weight")}
    keep["conv5.weight"][[0, 2]] = False
    graph.params.pop("conv5.bias", None)
    result = compress(graph, keep, exact=False)
    channels, height, width = result.packed.node("pool7").shape
    assert channels == 3
    assert result.packed.params["gemm9.weight"].shape == (6, 3 * height * width)
    block = height * width
    assert np.array_equal(result.packed.params["gemm9.weight"][:, :block], graph.params["gemm9.weight"][:, block : 2 * block])


def test_nothing_removable_gives_the_identical_graph():
    graph = plain(1)
    for name, value in graph.params.items():
        value[value == 0] = 0.5
        if name.endswith("weight"):
            value[0] = np.abs(value[0])
    result = compress(graph, {}, exact=False)
    assert result.packed.nodes == graph.nodes
    assert all(np.array_equal(result.packed.params[name], value) for name, value in graph.params.items())
    assert result.removed_share == 0
    assert result.reductions == []
    assert result.evidence.identical == result.evidence.outputs


@pytest.mark.parametrize("exact", [False, True])
def test_everything_removable_keeps_one_unit_of_each_layer(exact):
    graph = plain(1)
    masks = {name: np.zeros(value.shape, dtype=bool) for name, value in graph.params.items() if name.endswith("weight")}
    result = compress(graph, masks, exact=exact)
    assert all(min(node.shape) >= 1 for node in result.packed.nodes)
    assert result.packed.node(graph.output).shape == (3,)
    assert result.density == 0
    x = np.full(graph.input_shape, 0.5, dtype=np.float32)
    assert evaluate(result.packed, x) == evaluate(apply_masks(graph, masks), x)


def test_zeros_inside_packed_layers_are_counted_apart():
    graph = mlp([[1, 0], [1, 1]], [1, 1], [[1, 0], [1, 1]], [0, 0])
    result = compress(graph, {}, exact=False)
    assert (result.removed_share, result.total.nonzero, result.total.weights_after, result.density) == (0, 6, 8, 0.75)


def test_an_always_active_relu_goes_and_the_pair_merges_when_smaller():
    narrow = mlp([[1, 1], [2, 1], [1, 3]], [1, 1, 1], [[1, -2, 4]], [0])
    result = compress(narrow, {})
    assert [type(node).__name__ for node in result.packed.nodes] == ["Gemm"]
    assert result.packed.params["w2"].tolist() == [[1, 11]]
    assert result.packed.params["b2"].tolist() == [3]
    assert result.exactness == "real"
    assert result.rows[0].weights_after == 0
    wide = mlp([[1, 1, 1, 1]], [1], [[1], [2], [3], [4]], [0, 0, 0, 0])
    result = compress(wide, {})
    assert [type(node).__name__ for node in result.packed.nodes] == ["Gemm", "Gemm"]
    assert result.exactness.startswith("bit-exact")
    assert result.evidence.identical == result.evidence.outputs


def test_shared_parameters_are_cut_apart():
    shared = np.array([[1, 0], [0, 0]], dtype=np.float32)
    nodes = (
        Gemm(name="one", inputs=("x",), shape=(2,), weight="w", bias=None),
        Relu(name="act", inputs=("one",), shape=(2,)),
        Gemm(name="two", inputs=("act",), shape=(2,), weight="w", bias=None),
    )
    packed = compress(Graph("x", (2,), nodes, "two", {"w": shared}), {}).packed
    assert packed.params[packed.node("one").weight].shape == (1, 2)
    assert packed.params[packed.node("two").weight].shape == (2, 1)


@pytest.mark.parametrize(
    ("masks", "word"),
    [
        ({"nothing": np.ones((1,), dtype=bool)}, "nothing"),
        ({"w1": np.ones((3, 3), dtype=bool)}, "w1"),
        ({"w1": np.ones((1, 2), dtype=np.float32)}, "w1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, word):
    with pytest.raises(InputError, match=word):
        compress(mlp([[1, 1]], [0], [[1]], [0]), masks)


def test_bad_numbers_ranges_inputs_and_batch_norm_are_refused():
    graph = mlp([[1, 1]], [0], [[1]], [0])
    for box in [(1, 0), (0, np.inf), (np.nan, 1)]:
        with pytest.raises(InputError, match="range"):
            compress(graph, {}, input_box=box)
    with pytest.raises(InputError, match="float32"):
        compress(graph, {}, inputs=np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(InputError, match="range"):
        compress(graph, {}, inputs=np.full((1, 2), 2, dtype=np.float32))
    with pytest.raises(InputError, match="finite"):
        compress(mlp([[np.nan, 1]], [0], [[1]], [0]), {})
    norm = BatchNorm(name="norm", inputs=("two",), shape=(1,), scale="s", bias="s", mean="s", variance="s", epsilon=1e-5)
    params = {**graph.params, "s": np.ones(1, dtype=np.float32)}
    with pytest.raises(InputError, match="norm"):
        compress(Graph("x", (2,), (*graph.nodes, norm), "norm", params), {})


def test_a_fold_that_overflows_is_refused():
    graph = mlp([[0, 0], [1, 0]], [3e38, 0], [[3e38, 1]], [0])
    with pytest.raises(InputError, match="two"):
        compress(graph, {})
