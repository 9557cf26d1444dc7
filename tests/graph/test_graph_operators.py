"""Curves, differences, divisions and moves of data: in from ONNX and torch, out to both, always compared with the runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from graph_nets import graph_logits, onnx_logits
from onnx import helper
from test_graph_onnx_read import array, model, node
from torch import nn

from vsparse.errors import InputError
from vsparse.graph import (
    Clip,
    Concat,
    Conv,
    Gather,
    Graph,
    LeakyRelu,
    Pad,
    Reshape,
    Slice,
    Transpose,
    from_onnx,
    from_torch,
    to_onnx,
    to_torch,
    validate,
)
from vsparse.stages.export import check_runtime_graph, runtime_graph

IMAGE, ROW = (2, 6, 7), (3, 8)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


RIM = {"p": integers(0, 0, 1, 1, 0, 0, 1, 1)}
PADDED = helper.make_node("Pad", ["x", "p"], ["h"])
TWICE = [helper.make_node("Mul", ["x", "two"], ["h"])]
TWO = {"two": numbers(2)}
CASES: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, np.ndarray]]] = {
    "sub": ([*TWICE, node("Sub", "x", "h")], IMAGE, TWO),
    "div": ([node("Div", "x", "c")], IMAGE, {"c": np.abs(array(2, 1, 1)) + 0.3}),
    "leaky relu": ([node("LeakyRelu", "x", alpha=0.3)], IMAGE, {}),
    "leaky relu, default": ([node("LeakyRelu", "x")], IMAGE, {}),
    "prelu": ([node("PRelu", "x", "s")], IMAGE, {"s": np.full((2, 1, 1), 0.2, np.float32)}),
    "clip": ([node("Clip", "x", "lo", "hi")], IMAGE, {"lo": scalar(-0.5), "hi": scalar(0.7)}),
    "clip above": ([node("Clip", "x", "", "hi")], IMAGE, {"hi": scalar(0.7)}),
    "clip below": ([node("Clip", "x", "lo")], IMAGE, {"lo": scalar(0.2)}),
    "clip nothing": ([node("Clip", "x")], IMAGE, {}),
    "sigmoid": ([node("Sigmoid", "x")], IMAGE, {}),
    "tanh": ([node("Tanh", "x")], IMAGE, {}),
    "neg": ([node("Neg", "x")], IMAGE, {}),
    "transpose": ([node("Transpose", "x", perm=[0, 2, 3, 1])], IMAGE, {}),
    "transpose of a row": ([node("Transpose", "x", perm=[0, 2, 1])], ROW, {}),
    "concat": ([*TWICE, node("Concat", "x", "h", axis=1)], IMAGE, TWO),
    "concat, last axis": ([*TWICE, node("Concat", "h", "x", "x", axis=-1)], IMAGE, TWO),
    "slice": (
        [node("Slice", "x", "s", "e", "a", "t")],
        IMAGE,
        {"s": integers(1, -6), "e": integers(99, -1), "a": integers(2, -1), "t": integers(2, 3)},
    ),
    "slice, whole": ([node("Slice", "x", "s", "e", "a")], IMAGE, {"s": integers(0), "e": integers(2**31 - 1), "a": integers(1)}),
    "gather": ([node("Gather", "x", "i", axis=3)], IMAGE, {"i": integers(-1, 0, 0, 3)}),
    "gather one": ([node("Gather", "x", "i", axis=1)], IMAGE, {"i": np.array(1)}),
    "gather a table": ([node("Gather", "x", "i", axis=2)], IMAGE, {"i": integers(0, 1, 2, -1).reshape(2, 2)}),
    "gather all": ([node("Gather", "x", "i", axis=1)], IMAGE, {"i": integers(0, -1)}),
    "split": ([helper.make_node("Split", ["x", "n"], ["p", "q"], axis=2), node("Sub", "q", "p")], IMAGE, {"n": integers(3, 3)}),
    "split evenly": ([helper.make_node("Split", ["x"], ["p", "y"], axis=1)], IMAGE, {}),
    "pad": ([node("Pad", "x", "p")], IMAGE, {"p": integers(0, 1, 0, 2, 0, 0, 3, 1)}),
    "pad with a number": ([node("Pad", "x", "p", "v")], IMAGE, {"p": integers(0, 0, 1, 1, 0, 0, 1, 1), "v": scalar(-1.5)}),
    "pad before a convolution": (
        [PADDED, node("Conv", "h", "w")],
        IMAGE,
        {"p": integers(0, 0, 1, 1, 0, 0, 1, 1), "w": array(3, 2, 3, 3)},
    ),
    "pad before an average pool": (
        [PADDED, node("AveragePool", "h", kernel_shape=[2, 2])],
        IMAGE,
        RIM,
    ),
    "sum": ([node("ReduceSum", "x", "a", keepdims=0)], IMAGE, {"a": integers(2)}),
    "sum of channels": ([node("ReduceSum", "x", "a")], IMAGE, {"a": integers(1, -1)}),
    "mean of channels": ([node("ReduceMean", "x", axes=[1])], IMAGE, {}),
    "mean of all": ([node("ReduceMean", "x", axes=[1, 2, 3])], IMAGE, {}),
    "conv, 1-D": ([node("Conv", "x", "w", "b", pads=[2, 1], strides=[2], dilations=[2])], ROW, {"w": array(4, 3, 2), "b": array(4)}),
    "conv, 1-D, same": ([node("Conv", "x", "w", auto_pad="SAME_UPPER", group=3)], ROW, {"w": array(6, 1, 4)}),
    "max pool, 1-D": ([node("MaxPool", "x", kernel_shape=[3], strides=[2], pads=[1, 1])], ROW, {}),
    "average pool, 1-D": ([node("AveragePool", "x", kernel_shape=[2])], ROW, {}),
    "global average, 1-D": ([node("GlobalAveragePool", "x")], ROW, {}),
    "shape sliced": (
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Slice", ["s", "i", "j"], ["b"]),
            helper.make_node("Concat", ["b", "rest"], ["t"], axis=0),
            node("Reshape", "x", "t"),
        ],
        IMAGE,
        {"i": integers(0), "j": integers(1), "rest": integers(-1)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnx_runtime_on_every_path(name: str) -> None:
    nodes, shape, weights = CASES[name]
    data = model(nodes, shape, weights)
    x = 3 * array(2, *shape)
    graph, expected = validate(from_onnx(data)), onnx_logits(data, x)
    written = to_onnx(graph)
    paths = {
        "graph": graph_logits(graph, x),
        "written": onnx_logits(written, x),
        "read again": graph_logits(from_onnx(written.SerializeToString()), x),
        "torch": to_torch(graph)(torch.from_numpy(x)).detach().numpy(),
    }
    for road, found in paths.items():
        assert found.shape == expected.shape, road
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-5), road


def test_attributes_of_old_opsets() -> None:
    old = [
        ("Clip", {"min": 0.0, "max": 6.0}, 6, Clip(name="y", inputs=("x",), shape=IMAGE, lowest=0.0, highest=6.0)),
        (
            "Slice",
            {"starts": [1], "ends": [5], "axes": [3]},
            9,
            Slice(name="y", inputs=("x",), shape=(2, 6, 4), starts=(0, 0, 1), stops=(2, 6, 5), steps=(1, 1, 1)),
        ),
        (
            "Pad",
            {"pads": [0, 1, 0, 0, 0, 0, 2, 0], "value": 0.5},
            9,
            Pad(name="y", inputs=("x",), shape=(3, 8, 7), before=(1, 0, 0), after=(0, 2, 0), value=0.5),
        ),
    ]
    for kind, attributes, opset, expected in old:
        graph = from_onnx(model([node(kind, "x", **attributes)], IMAGE, opset=max(opset, 7)))
        assert graph.nodes[0] == expected
    graph = from_onnx(model([helper.make_node("Split", ["x"], ["a", "y"], axis=3, split=[3, 4])], IMAGE, opset=11))
    assert graph.nodes[0] == Slice(name="y", inputs=("x",), shape=(2, 6, 4), starts=(0, 0, 3), stops=(2, 6, 7), steps=(1, 1, 1))


def test_zero_padding_goes_into_the_convolution_that_reads_it() -> None:
    rim = {"p": integers(0, 0, 1, 2, 0, 0, 3, 4), "w": array(3, 2, 3, 3)}
    graph = from_onnx(model([PADDED, node("Conv", "h", "w", pads=[1, 0, 0, 1])], IMAGE, rim))
    assert [type(n) for n in graph.nodes] == [Conv, Reshape]
    assert graph.nodes[0].pads == (2, 2, 3, 5)
    channels = {"p": integers(0, 1, 1, 2, 0, 0, 3, 4), "w": array(3, 3, 3, 3)}
    assert [type(n) for n in from_onnx(model([PADDED, node("Conv", "h", "w")], IMAGE, channels)).nodes] == [Pad, Conv, Reshape]
    module = nn.Sequential(nn.ZeroPad2d((1, 2, 3, 4)), nn.Conv2d(2, 3, 3, padding=1))
    assert from_torch(module, IMAGE).nodes[0].pads == (4, 2, 5, 3)


@pytest.mark.parametrize("ends", [(0.0, 6.0), (0.0, np.inf), (-np.inf, 0.5)])
def test_a_clip_that_the_runtime_fuses_with_its_convolution_keeps_its_ends(tmp_path: Path, ends: tuple[float, float]) -> None:
    shape = (4, 6, 6)
    nodes = (
        Conv(name="c", inputs=("x",), shape=shape, weight="w", bias=None, pads=(1, 1, 1, 1)),
        Clip(name="clip", inputs=("c",), shape=shape, lowest=ends[0], highest=ends[1]),
        Reshape(name="y", inputs=("clip",), shape=(144,)),
    )
    graph = Graph("x", (2, 6, 6), nodes, "y", {"w": array(4, 2, 3, 3)})
    path = tmp_path / "clip.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    report = check_runtime_graph(path)
    assert "Clip" not in report.levels[-1].operators
    # An end that is another than the file's would be noticed.
    wrong = replace(graph, nodes=(nodes[0], replace(nodes[1], highest=5.0), nodes[2]))
    fused = runtime_graph._optimise(path, runtime_graph.LEVELS["extended"], 1, tmp_path / "optimised.onnx")
    assert runtime_graph.GraphComparison(graph, fixed_batch=False).difference(fused) is None
    assert "Conv" in str(runtime_graph.GraphComparison(wrong, fixed_batch=False).difference(fused))


@pytest.mark.parametrize("name", CASES)
def test_the_runtime_executes_every_operator_as_it_was_read(name: str, tmp_path: Path) -> None:
    nodes, shape, weights = CASES[name]
    path = tmp_path / "m.onnx"
    path.write_bytes(model(nodes, shape, weights))
    assert check_runtime_graph(path).batches == (1, 2)


def test_old_clips_with_attributes_pass_the_runtime_check(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), node("Clip", "h", min=0.0, max=6.0)]
    path = tmp_path / "old.onnx"
    path.write_bytes(model(nodes, IMAGE, {"w": array(3, 2, 3, 3)}, opset=10))
    assert check_runtime_graph(path).initializers == 1


def test_what_moves_nothing_is_a_reshape_or_nothing() -> None:
    one = from_onnx(model([node("Transpose", "x", perm=[0, 2, 1, 3])], (1, 6, 7)))
    assert [type(n) for n in one.nodes] == [Reshape, Reshape]
    assert [type(n) for n in from_onnx(model([node("Concat", "x", axis=1)], IMAGE)).nodes] == [Reshape]
    assert [type(n) for n in from_onnx(model([node("Clip", "x")], IMAGE)).nodes] == [Reshape]
    pads = {"p": integers(*[0] * 8)}
    assert [type(n) for n in from_onnx(model([node("Pad", "x", "p")], IMAGE, pads)).nodes] == [Reshape]
    assert [type(n) for n in from_onnx(model([node("Concat", "x", "x", axis=2)], IMAGE)).nodes] == [Concat, Reshape]


REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]] = {
    "steep slope": ([node("LeakyRelu", "x", alpha=1.5)], {}, "LeakyRelu.*from 0 to 1"),
    "falling slope": ([node("LeakyRelu", "x", alpha=-0.1)], {}, "from 0 to 1"),
    "no slope": ([node("LeakyRelu", "x", alpha=float("nan"))], {}, "from 0 to 1"),
    "many slopes": ([node("PRelu", "x", "s")], {"s": numbers(0.1, 0.2).reshape(2, 1, 1)}, "PRelu.*use LeakyRelu"),
    "computed slopes": ([node("PRelu", "x", "x")], {}, "constant float32"),
    "clip to nothing": ([node("Clip", "x", "lo", "hi")], {"lo": scalar(1), "hi": scalar(0)}, "numbers in order"),
    "clip to NaN": ([node("Clip", "x", "lo")], {"lo": scalar(np.nan)}, "numbers in order"),
    "clip to infinity": ([node("Clip", "x", "lo")], {"lo": scalar(np.inf)}, "numbers in order"),
    "clip by a tensor": ([node("Clip", "x", "lo")], {"lo": array(7)}, "single numbers"),
    "computed clip": ([node("Clip", "x", "x")], {}, "constant float32"),
    "divided by the input": ([node("Div", "x", "x")], {}, "constant float32"),
    "constant over input": ([node("Div", "c", "x")], {"c": numbers(1)}, "applied to a constant"),
    "shapes differ": (
        [helper.make_node("Slice", ["x", "s", "e", "a"], ["h"]), node("Sub", "x", "h")],
        {"s": integers(0), "e": integers(1), "a": integers(1)},
        "subtracts activations of shapes",
    ),
    "concat of samples": ([node("Concat", "x", "x", axis=0)], {}, "samples must stay apart"),
    "concat with a constant": ([node("Concat", "x", "c", axis=1)], {"c": array(1, 2, 6, 7)}, "use Pad"),
    "concat, other shapes": (
        [helper.make_node("Transpose", ["x"], ["h"], perm=[0, 1, 3, 2]), node("Concat", "x", "h", axis=1)],
        {},
        "cannot join",
    ),
    "concat, no such axis": ([node("Concat", "x", "x", axis=4)], {}, "axis"),
    "slice of samples": ([node("Slice", "x", "s", "e")], {"s": integers(0), "e": integers(1)}, "samples must stay apart"),
    "slice backwards": (
        [node("Slice", "x", "s", "e", "a", "t")],
        {"s": integers(5), "e": integers(0), "a": integers(2), "t": integers(-1)},
        "step below 1",
    ),
    "slice of nothing": ([node("Slice", "x", "s", "e", "a")], {"s": integers(4), "e": integers(4), "a": integers(2)}, "leaves nothing"),
    "slice twice": (
        [node("Slice", "x", "s", "e", "a")],
        {"s": integers(1, 1), "e": integers(4, 4), "a": integers(2, -2)},
        "one of them twice",
    ),
    "slice, lengths": ([node("Slice", "x", "s", "e", "a")], {"s": integers(1, 1), "e": integers(4), "a": integers(2)}, "different lengths"),
    "computed slice": ([node("Slice", "x", "x", "x")], {}, "list of at most 16 integers"),
    "gather samples": ([node("Gather", "x", "i")], {"i": integers(0)}, "samples must stay apart"),
    "gather outside": ([node("Gather", "x", "i", axis=1)], {"i": integers(2)}, "picks outside of the 2 parts"),
    "gather nothing": ([node("Gather", "x", "i", axis=1)], {"i": np.zeros(0, np.int64)}, "picks outside of the 2 parts"),
    "gather by a computed index": ([node("Gather", "x", "x", axis=1)], {}, "needs constant integers"),
    "split, sizes": ([helper.make_node("Split", ["x", "n"], ["y", "z"], axis=2)], {"n": integers(3, 4)}, "cannot split"),
    "split, negative": ([helper.make_node("Split", ["x", "n"], ["y", "z"], axis=2)], {"n": integers(7, -1)}, "cannot split"),
    "split of samples": ([helper.make_node("Split", ["x"], ["y", "z"])], {}, "samples must stay apart"),
    "split, one name": ([helper.make_node("Split", ["x"], ["y", "y"], axis=1)], {}, "exists already"),
    "pad by reflection": ([node("Pad", "x", "p", mode="reflect")], RIM, "constant"),
    "pad the batch": ([node("Pad", "x", "p")], {"p": integers(1, 0, 0, 0, 0, 0, 0, 0)}, "pads the batch"),
    "pad before a max pool": ([PADDED, node("MaxPool", "h", kernel_shape=[2, 2])], RIM, "MaxPool.*own padding"),
    "pad, negative": ([node("Pad", "x", "p")], {"p": integers(0, 0, -1, 0, 0, 0, 0, 0)}, "negative padding"),
    "pad, absurd": ([node("Pad", "x", "p")], {"p": integers(0, 0, 2**40, 0, 0, 0, 0, 0)}, "has pads"),
    "pad, huge": ([node("Pad", "x", "p")], {"p": integers(0, 0, 2**19, 2**19, 0, 0, 0, 0)}, "allowed"),
    "pad, too few": ([node("Pad", "x", "p")], {"p": integers(0, 0, 1, 1)}, "has pads"),
    "pad with NaN": ([node("Pad", "x", "p", "v")], {"p": integers(0, 0, 1, 1, 0, 0, 1, 1), "v": scalar(np.nan)}, "not finite"),
    "sum of everything": ([node("ReduceSum", "x")], {}, "name the axes"),
    "transposed convolution": ([node("ConvTranspose", "x", "w")], {"w": array(2, 3, 3, 3)}, "ConvTranspose.*use Conv"),
    "conv, 3-D": (
        [helper.make_node("Unsqueeze", ["x", "a"], ["h"]), node("Conv", "h", "w")],
        {"a": integers(1), "w": array(1, 1, 1, 1, 1)},
        "1-D and 2-D",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_node_and_reason(name: str) -> None:
    nodes, weights, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        from_onnx(model(nodes, IMAGE, weights))
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


def test_graphs_made_by_hand_are_checked() -> None:
    x = {"name": "y", "inputs": ("x",), "shape": (2, 3)}
    wrong = [
        (LeakyRelu(**x, slope=2.0), "slope"),
        (Clip(**x, lowest=1.0, highest=0.0), "empty"),
        (Clip(**x, lowest=float("nan"), highest=1.0), "empty"),
        (Clip(**x, lowest=float("inf"), highest=float("inf")), "infinity"),
        (Transpose(**x, order=(0, 0)), "order"),
        (Concat(name="y", inputs=("x", "x"), shape=(4, 3), axis=2), "dimension 2"),
        (Slice(**x, starts=(0, 0), stops=(3, 3), steps=(1, 1)), "reaches outside"),
        (Slice(**x, starts=(0,), stops=(2,), steps=(1,)), "every dimension"),
        (Gather(**x, axis=2, indices=(0,)), "dimension 2"),
        (Gather(**x, axis=0, indices=(0, 2)), "picks outside"),
        (Gather(**x, axis=0, indices=()), "or none"),
        (Pad(**x, before=(-1, 0), after=(1, 0)), "negative"),
        (Pad(**x, before=(0,), after=(0,)), "every dimension"),
    ]
    for one, reason in wrong:
        with pytest.raises(InputError, match=reason):
            validate(Graph("x", (2, 3), (one,), "y"))


class Many(nn.Module):
    """Calls most torch operations of this file's subject."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 3)
        self.layers = nn.Sequential(nn.LeakyReLU(0.1), nn.ReLU6(), nn.Hardtanh(-0.5, 2.0), nn.ZeroPad2d((1, 0, 2, 0)), nn.Sigmoid())
        self.out = nn.Linear(12, 3)
        self.register_buffer("swap", torch.tensor([1, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([x, -x], 1)[:, :, 1:, ::2]
        h = self.layers(self.conv(F.pad(h, (1, 1), value=0.5)))
        h = F.leaky_relu(h - 0.5 * h.tanh()).clamp(max=0.75) - torch.tanh(h)
        a, b = (1 - h).permute(0, 2, 3, 1).transpose(1, 2).chunk(2, 3)
        rest = a[..., [1, 0]].index_select(3, self.swap) - b
        return self.out(F.relu6(rest.unsqueeze(2).squeeze(2)).flatten(1)[:, :12])


def test_a_module_of_many_operations_is_the_same_in_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = Many().eval()
    graph = from_torch(module, (2, 8, 9))
    kinds = {type(n).__name__ for n in graph.nodes}
    assert {"LeakyRelu", "Clip", "Sigmoid", "Tanh", "Neg", "Sub", "Transpose", "Concat", "Slice", "Gather", "Pad"} <= kinds
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 9)).astype(np.float32)
    expected = module(torch.from_numpy(x)).detach().numpy()
    assert np.allclose(graph_logits(graph, x), expected, atol=1e-5)
    assert np.allclose(onnx_logits(to_onnx(graph), x), expected, atol=1e-5)
    path = tmp_path / "many.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    assert check_runtime_graph(path).initializers
