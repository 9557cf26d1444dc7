"""Modules to graphs and back: the same numbers, the same names, and refusals that name the layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_nets import Lambda, graph_logits, onnx_logits, resnet, settle
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import (
    AddConstant,
    AveragePool,
    Conv,
    Graph,
    MaxPool,
    MulConstant,
    Reshape,
    fold_batch_norm,
    from_onnx,
    from_torch,
    run,
    to_onnx,
    to_torch,
    validate,
)

RNG = np.random.default_rng(0)


def test_tiny_net_by_hand() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
        net[0].bias.copy_(torch.tensor([0.5, -1.0]))
        net[2].weight.copy_(torch.tensor([[3.0, -2.0]]))
        net[2].bias.copy_(torch.tensor([0.25]))
    graph = from_torch(net, (2,))
    values = run(graph, graph.tensors(), torch.tensor([[1.0, 2.0]]), keep=True)
    # 1 - 2 + 0.5 = -0.5, 2 + 2 - 1 = 3; ReLU 0 and 3; 3·0 - 2·3 + 0.25 = -5.75
    assert values["0"].tolist() == [[-0.5, 3.0]]
    assert values["1"].tolist() == [[0.0, 3.0]]
    assert values[graph.output].tolist() == [[-5.75]]
    assert list(values) == ["input", "0", "1", "2"]


def test_resnet_computes_the_same_everywhere() -> None:
    net = resnet()
    x = RNG.random((7, 3, 8, 8), dtype=np.float32)
    expected = net(torch.from_numpy(x)).detach().numpy()
    graph = from_torch(net, (3, 8, 8))
    folded = fold_batch_norm(graph)
    assert np.allclose(graph_logits(graph, x, torch.float32), expected, atol=1e-5)
    assert np.allclose(graph_logits(folded, x), expected, atol=1e-5)
    assert np.allclose(to_torch(graph)(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-6)
    assert np.allclose(onnx_logits(to_onnx(folded), x), expected, atol=1e-5)


def test_parameters_survive_the_round_trip_bit_for_bit() -> None:
    folded = fold_batch_norm(from_torch(resnet(), (3, 8, 8)))
    back = from_onnx(to_onnx(folded).SerializeToString())
    assert list(back.params) == [name for node in back.nodes for name in node.params]
    assert {n: v.tobytes() for n, v in back.params.items()} == {n: v.tobytes() for n, v in folded.params.items()}
    assert [node.name for node in back.nodes][:-1] == [node.name for node in folded.nodes][:-1]
    again = from_torch(to_torch(back), (3, 8, 8))
    assert sorted(v.tobytes() for v in again.params.values()) == sorted(v.tobytes() for v in folded.params.values())
    assert [type(node) for node in again.nodes] == [type(node) for node in folded.nodes]


def test_names_are_the_modules_so_its_tensors_are_the_parameters() -> None:
    net = resnet()
    graph = from_torch(net, (3, 8, 8))
    params = dict(net.named_parameters()) | dict(net.named_buffers())
    assert set(graph.params) <= set(params)
    x = torch.rand(2, 3, 8, 8)
    run(graph, params, x).sum().backward()
    assert all(value.grad is not None for value in net.parameters())


def test_batch_statistics_are_those_of_the_module_in_train_mode() -> None:
    net = resnet()
    graph = from_torch(net, (3, 8, 8))
    params = dict(net.named_parameters()) | dict(net.named_buffers())
    x = torch.rand(9, 3, 8, 8)
    statistics: dict[str, torch.Tensor] = {}
    logits = run(graph, params, x, batch_statistics=statistics)
    assert set(statistics) == {name for name in params if name.endswith(("running_mean", "running_var"))}
    # The statistics are put in place of the running ones, and the plain run then computes the same.
    assert torch.equal(run(graph, params | statistics, x), logits)
    logits.sum().backward()
    net.train()
    net.drop.eval()
    assert torch.allclose(net(x), logits, atol=1e-5)


def test_batch_statistics_of_one_value_are_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    graph = from_torch(net, (2,))
    with pytest.raises(InputError, match="larger batch"):
        run(graph, graph.tensors(), torch.rand(1, 2), batch_statistics={})


ACCEPTED = {
    "strided conv": (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 7, 6)),
    "dilated conv": (nn.Conv2d(2, 4, 3, dilation=(2, 1), padding=2), (2, 7, 6)),
    "depthwise conv": (nn.Conv2d(4, 8, 3, groups=4), (4, 6, 6)),
    "same padding, even kernel": (nn.Conv2d(2, 3, (4, 2), padding="same"), (2, 6, 5)),
    "valid padding": (nn.Conv2d(2, 3, 3, padding="valid", bias=False), (2, 6, 5)),
    "batch norm of a map": (nn.Sequential(nn.BatchNorm2d(3)), (3, 4, 4)),
    "max pool": (nn.MaxPool2d(3, stride=2, padding=1), (2, 7, 6)),
    "max pool, function": (Lambda(lambda m, x: F.max_pool2d(x, 2)), (2, 6, 6)),
    "average pool": (nn.AvgPool2d((2, 3), stride=1), (2, 6, 6)),
    "average pool, function": (Lambda(lambda m, x: F.avg_pool2d(x, 2)), (2, 6, 6)),
    "global average": (nn.AdaptiveAvgPool2d((1, 1)), (3, 4, 5)),
    "global average, function": (Lambda(lambda m, x: F.adaptive_avg_pool2d(x, 1)), (3, 4, 5)),
    "mean of the map": (Lambda(lambda m, x: x.mean((2, 3))), (3, 4, 5)),
    "mean of the map, negative": (Lambda(lambda m, x: torch.mean(x, dim=(-1, -2), keepdim=True)), (3, 4, 5)),
    "relu three ways": (Lambda(lambda m, x: torch.relu(x - 0.5).relu() + F.relu(x - 0.25)), (3, 2, 2)),
    "flatten from 2": (Lambda(lambda m, x: torch.flatten(x, 2)), (3, 2, 2)),
    "view by sizes": (Lambda(lambda m, x: x.view(x.shape[0], x.shape[1] * x.shape[2], -1)), (3, 2, 2)),
    "view with -1 first": (Lambda(lambda m, x: x.reshape(-1, 12)), (3, 2, 2)),
    "arithmetic": (Lambda(lambda m, x: (2 * x - 0.5) / 3 + 1.5), (3, 2, 2)),
    "computed constants": (
        Lambda(lambda m, x: (x - m.mean) / (m.std * 2), mean=nn.Buffer(torch.tensor([0.25])), std=nn.Buffer(torch.rand(1, 3, 1, 1) + 0.5)),
        (3, 2, 2),
    ),
    "trainable scale": (Lambda(lambda m, x: x * m.scale, scale=nn.Parameter(torch.rand(3, 1, 1))), (3, 2, 2)),
    "dropout": (nn.Sequential(nn.Identity(), nn.Dropout2d(0.5), nn.ReLU()), (3, 2, 2)),
    "one ReLU module read twice": (Lambda(lambda m, x: m.act(m.act(x) + x), act=nn.ReLU()), (3, 2, 2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", ACCEPTED)
def test_operator_equals_torch_and_onnx_runtime(name: str) -> None:
    module, shape = ACCEPTED[name]
    module = settle(nn.Sequential(module), shape)
    x = RNG.standard_normal((3, *shape)).astype(np.float32)
    expected = module(torch.from_numpy(x)).detach().numpy()
    graph = from_torch(module, shape)
    assert graph.shape_of(graph.output) == expected.shape[1:]
    assert np.allclose(graph_logits(graph, x), expected, atol=1e-5)
    assert np.allclose(to_torch(graph)(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-6)
    assert np.allclose(onnx_logits(to_onnx(fold_batch_norm(graph)), x), expected, atol=1e-5)


def test_pads_that_torch_layers_do_not_have() -> None:
    weight = RNG.standard_normal((3, 2, 3, 3)).astype(np.float32)
    conv = Conv(name="c", inputs=("x",), shape=(3, 5, 6), weight="w", bias=None, pads=(0, 1, 2, 2))
    pool = MaxPool(name="p", inputs=("c",), shape=(3, 5, 3), kernel=(2, 2), stride=(1, 2), pads=(0, 0, 1, 1))
    graph = validate(Graph("x", (2, 5, 5), (conv, pool), "p", {"w": weight}))
    x = RNG.standard_normal((2, 2, 5, 5)).astype(np.float32)
    expected = onnx_logits(to_onnx(graph), x)
    assert np.allclose(graph_logits(graph, x), expected, atol=1e-5)
    assert np.allclose(to_torch(graph)(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-5)


def _branch(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else x * 2


def _loop(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return sum(row for row in x)


def _in_place(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    h = x - 0.5
    return F.relu(h, inplace=True) + h


SHARED = nn.Linear(3, 3)
REFUSED = {
    "GELU": (nn.Sequential(nn.Linear(3, 3), nn.GELU()), '"1" (GELU)', "use ReLU"),
    "gelu": (Lambda(lambda m, x: F.gelu(x)), '"gelu"', "use relu"),
    "LayerNorm": (nn.Sequential(nn.LayerNorm(3)), '"0" (LayerNorm)', "BatchNorm"),
    "softmax": (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), '"1" (Softmax)', "logits"),
    "unknown": (nn.Sequential(nn.Softsign()), '"0" (Softsign)', "Conv2d"),
    "branch": (Lambda(_branch), "Lambda", "branch"),
    "loop": (Lambda(_loop), "Lambda", "loop"),
    "used twice": (Lambda(lambda m, x: m.f(m.f(x)), f=nn.Linear(3, 3)), '"f" (Linear)', "two layers"),
    "shared weight": (nn.Sequential(SHARED, nn.ReLU(), SHARED), "(Linear)", "two layers"),
    "batch lost": (Lambda(lambda m, x: x.view(-1)), '"view"', "batch first"),
    "flatten batch": (nn.Sequential(nn.Flatten(0)), "(Flatten)", "batch first"),
    "product": (Lambda(lambda m, x: x * x), '"mul"', "two activations"),
    "scaled difference": (Lambda(lambda m, x: torch.sub(x, torch.relu(x), alpha=2)), '"sub"', "alpha=1"),
    "slice of samples": (Lambda(lambda m, x: x[1:]), '"getitem"', "batch first"),
    "picked by two tensors": (Lambda(lambda m, x: x[:, m.i, m.i], i=nn.Buffer(torch.tensor([0, 2]))), '"getitem"', "slices and numbers"),
    "picked outside": (Lambda(lambda m, x: x[:, [0, 9]]), '"getitem"', "numbers below"),
    "cat of samples": (Lambda(lambda m, x: torch.cat([x, x])), '"cat"', "samples must stay apart"),
    "cat with a constant": (Lambda(lambda m, x: torch.cat([x, m.c], 1), c=nn.Buffer(torch.ones(1, 3))), '"cat"', "F.pad"),
    "reflection": (Lambda(lambda m, x: F.pad(x, (1, 1), mode="reflect")), '"pad"', '"constant"'),
    "batch padded": (Lambda(lambda m, x: F.pad(x, (0, 0, 1, 0))), '"pad"', "own dimensions"),
    "batch moved": (Lambda(lambda m, x: x.permute(1, 0)), '"permute"', "batch first"),
    "slope of its own": (nn.Sequential(nn.PReLU()), '"0" (PReLU)', "use LeakyReLU"),
    "steep slope": (nn.Sequential(nn.LeakyReLU(1.5)), '"0" (LeakyReLU)', "from 0 to 1"),
    "squeeze of everything": (Lambda(lambda m, x: x.squeeze()), '"squeeze"', "name one dimension"),
    "in place": (Lambda(_in_place), "Lambda", "in-place"),
    "trainable divisor": (Lambda(lambda m, x: x / m.s, s=nn.Parameter(torch.ones(3))), '"truediv"', "trainable"),
    "statistics": (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), '"0" (BatchNorm1d)', "track_running_stats"),
    "wrong size": (nn.Sequential(nn.Linear(4, 3)), '"0"', "weight"),
    "division by zero": (Lambda(lambda m, x: x / 0), "constant", "infinity"),
    "two outputs": (Lambda(lambda m, x: (x, x)), "Lambda", "one tensor"),
    "constant output": (Lambda(lambda m, x: m.b, b=nn.Buffer(torch.ones(1, 3))), "Lambda", "depends on its input"),
    "half": (nn.Sequential(nn.Linear(3, 3).half()), '"0" (Linear)', "float32"),
    "nan": (nn.Sequential(nn.Linear(3, 3)), "0.weight", "NaN"),
    "hook": (nn.Sequential(nn.Linear(3, 3)), '"0" (Linear)', "hooks"),
    "single layer": (nn.Linear(3, 3), "Linear", "nn.Sequential"),
    "random": (Lambda(lambda m, x: F.dropout(x, 0.5, training=True)), "Lambda", "randomness"),
}
REFUSED["hook"][0][0].register_forward_hook(lambda layer, inputs, output: output * 2)
REFUSED["nan"][0][0].weight.data[0, 0] = torch.nan


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_layer_and_the_way_out(name: str) -> None:
    module, where, hint = REFUSED[name]
    with pytest.raises(InputError) as error:
        from_torch(module, (3,))
    assert where in str(error.value)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "zeros"),
        (nn.AvgPool2d(2, padding=1), "padding=0"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.MaxPool2d(2, dilation=2), "dilation"),
        (nn.AdaptiveAvgPool2d(2), "AvgPool2d"),
        (nn.AdaptiveMaxPool2d(1), "MaxPool2d"),
        (nn.Conv2d(1, 1, 9), "leaves nothing"),
        (nn.Linear(5, 2), "flat input"),
        (Lambda(lambda m, x: F.adaptive_max_pool2d(x, 1)), "adaptive_max_pool2d"),
    ],
)
def test_refused_layers_of_maps(module: nn.Module, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        from_torch(nn.Sequential(module), (1, 5, 5))


def test_reading_leaves_the_module_as_it_was() -> None:
    net = resnet().train()
    net.drop.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    from_torch(net, (3, 8, 8))
    assert net.training
    assert net.blocks.training
    assert not net.drop.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_node_types_are_the_expected_ones() -> None:
    net = Lambda(lambda m, x: (((x - 0.5) * 2).mean((2, 3))).view(x.size(0), -1))
    graph = from_torch(net, (2, 3, 3))
    assert [type(node) for node in graph.nodes] == [AddConstant, MulConstant, AveragePool, Reshape]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_module_can_be_traced() -> None:
    graph = fold_batch_norm(from_torch(resnet(), (3, 8, 8)))
    x = torch.rand(2, 3, 8, 8)
    module = to_torch(graph)
    assert torch.equal(torch.jit.trace(module, x)(x), module(x))
    assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x))


@pytest.mark.parametrize("status", [0, 3])
def test_a_forward_that_exits_does_not_end_the_program(status: int) -> None:
    class Leaves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise SystemExit(status)

    with pytest.raises(InputError, match="Leaves fails on an input of shape"):
        from_torch(Leaves(), (4,))
