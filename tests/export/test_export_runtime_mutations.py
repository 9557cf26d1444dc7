"""Whatever is changed in the graph that a runtime would execute, the comparison notices; what may differ, it lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from precision_nets import random_net
from random_files import RandomFile
from test_export_runtime_graph import array, conv_graph, pre_activation

from vsparse.errors import GateError, InputError
from vsparse.graph import Graph, from_onnx
from vsparse.graph.ir import (
    Add,
    AddConstant,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gemm,
    LeakyRelu,
    MaxPool,
    Neg,
    Pad,
    QuantisedParameter,
    Relu,
    Reshape,
    Sub,
    Transpose,
)
from vsparse.stages.export import check_runtime_graph, runtime_graph, write_onnx
from vsparse.stages.export.half import half
from vsparse.stages.export.runtime_blocks import in_rows
from vsparse.stages.export.runtime_form import foldable
from vsparse.stages.export.runtime_hashes import Algebra, QuantisationGrid
from vsparse.stages.export.runtime_reference import Reference

LEVELS = ["disabled", "basic", "extended", "all"]


def rich(seed: int = 0) -> Graph:
    """Curves, moves and sums of every kind behind convolutions, wide enough for vector kernels."""
    rng = np.random.default_rng(seed)
    shape = (16, 6, 6)
    params = {
        "w1": (16, 3, 3, 3),
        "b1": (16,),
        "w2": (16, 16, 3, 3),
        "b2": (16,),
        "w3": (16, 1, 3, 3),
        "w4": (5, 576),
        "b4": (5,),
        "c": (5,),
        "d": (1,),
    }
    nodes = (
        Conv(name="c1", inputs=("x",), shape=shape, weight="w1", bias="b1", pads=(1, 1, 1, 1)),
        Clip(name="k1", inputs=("c1",), shape=shape, lowest=-0.5, highest=2.0),
        Conv(name="c2", inputs=("k1",), shape=shape, weight="w2", bias="b2", pads=(1, 1, 1, 1)),
        LeakyRelu(name="l2", inputs=("c2",), shape=shape, slope=float(np.float32(0.1))),
        Conv(name="c3", inputs=("l2",), shape=shape, weight="w3", bias=None, pads=(1, 1, 1, 1), groups=16),
        Sub(name="s3", inputs=("c3", "k1"), shape=shape),
        MaxPool(name="m3", inputs=("s3",), shape=shape, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1)),
        Neg(name="n3", inputs=("m3",), shape=shape),
        Transpose(name="t3", inputs=("n3",), shape=(6, 6, 16), order=(1, 2, 0)),
        Reshape(name="flat", inputs=("t3",), shape=(576,)),
        Gemm(name="g4", inputs=("flat",), shape=(5,), weight="w4", bias="b4"),
        AddConstant(name="a4", inputs=("g4",), shape=(5,), constant="c"),
        DivConstant(name="y", inputs=("a4",), shape=(5,), constant="d"),
    )
    return Graph("x", (3, 6, 6), nodes, "y", {name: rng.normal(size=size).astype(np.float32) for name, size in params.items()})


GRAPHS = {"conv": conv_graph(16), "pre-activation": pre_activation(16), "residual": random_net(np.random.default_rng(5)), "rich": rich()}


def mutants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Changes of one tensor, attribute or edge each, that change what is computed."""

    def copy() -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(model)
        return made

    rng = np.random.default_rng(0)
    for i, tensor in enumerate(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32 or not value.size:
            continue
        places = np.flatnonzero(value)
        place = int(rng.choice(places)) if len(places) else 0
        bit, moved = value.copy(), value.copy()
        bit.flat[place] = np.nextafter(bit.flat[place], np.float32(9))
        changed = {"one bit": bit, "sign": np.where(np.arange(value.size).reshape(value.shape) == place, -value, value)}
        other = next((int(j) for j in places if value.flat[j] != value.flat[place]), None)
        if other is not None:
            moved.flat[place], moved.flat[other] = value.flat[other], value.flat[place]
            changed["two places swapped"] = moved
        for what, array_ in changed.items():
            made = copy()
            made.graph.initializer[i].CopyFrom(numpy_helper.from_array(np.asarray(array_, np.float32), tensor.name))
            yield f"{tensor.name}: {what}", made
    for i, node in enumerate(model.graph.node):
        for j, attribute in enumerate(node.attribute):
            made = copy()
            changed_attribute = made.graph.node[i].attribute[j]
            if attribute.name == "pads" and node.op_type in ("Conv", "FusedConv", "MaxPool") and any(attribute.ints):
                changed_attribute.ints[:] = [0] * len(attribute.ints)
            elif attribute.name == "activation_params":
                changed_attribute.floats[0] = float(np.nextafter(np.float32(attribute.floats[0]), np.float32(9)))
            elif attribute.name == "activation":
                changed_attribute.s = b"Tanh"
            elif attribute.name == "alpha" and node.op_type in ("Gemm", "FusedGemm", "LeakyRelu"):
                changed_attribute.f = attribute.f * 2
            elif attribute.name == "perm":
                changed_attribute.ints[:] = [0, *reversed(attribute.ints[1:])]
                if list(changed_attribute.ints) == list(attribute.ints):
                    continue
            else:
                continue
            yield f"{node.name} ({node.op_type}): {attribute.name}", made
        if node.op_type in ("Relu", "Neg", "LeakyRelu", "Clip"):
            made = copy()
            made.graph.node[i].op_type = "Sigmoid"
            del made.graph.node[i].attribute[:], made.graph.node[i].input[1:]
            yield f"{node.name}: another function", made
        if node.op_type == "Sub":
            made = copy()
            made.graph.node[i].input[:] = list(reversed(node.input))
            yield f"{node.name}: operands swapped", made


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_change_is_noticed(name: str, level: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(GRAPHS[name], path, 17, {})
    check_runtime_graph(path)
    comparison = runtime_graph.GraphComparison(from_onnx(path), fixed_batch=True)
    optimised = runtime_graph._optimise(path, runtime_graph.LEVELS[level], 1, tmp_path / "optimised.onnx")
    assert comparison.difference(optimised) is None
    count = 0
    for what, mutant in mutants(optimised):
        assert comparison.difference(mutant) is not None, what
        count += 1
    assert count > 10


def test_two_tensors_of_one_shape_swapped_are_noticed(tmp_path: Path) -> None:
    """The multiset of tensors is the file's; where they are used is not."""
    path = tmp_path / "m.onnx"
    shape = (4, 6, 6)
    nodes = (
        Conv(name="c1", inputs=("x",), shape=shape, weight="w1", bias="b1"),
        Relu(name="r", inputs=("c1",), shape=shape),
        Conv(name="c2", inputs=("r",), shape=shape, weight="w2", bias="b2"),
        Reshape(name="y", inputs=("c2",), shape=(144,)),
    )
    tensors = {"w1": array(4, 4, 1, 1), "w2": array(4, 4, 1, 1), "b1": array(4), "b2": array(4)}
    write_onnx(Graph("x", shape, nodes, "y", tensors), path, 17, {})
    comparison = runtime_graph.GraphComparison(from_onnx(path), fixed_batch=False)
    for pair in (("w1", "w2"), ("b1", "b2")):
        model = onnx.load(path)
        assert comparison.difference(model) is None
        for tensor in model.graph.initializer:
            if tensor.name in pair:
                tensor.name = pair[1 - pair.index(tensor.name)]
        assert "Conv" in str(comparison.difference(model))


def test_an_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_onnx(conv_graph(), path, 17, {})
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Relu").domain = "com.microsoft"
    difference = runtime_graph.GraphComparison(from_onnx(path), fixed_batch=False).difference(model)
    assert difference is not None
    assert difference.unknown
    assert "com.microsoft.Relu" in str(difference)
    assert "not known" in str(difference)


ODD: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]] = {
    "unsorted": ([helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Neg", ["x"], ["h"])], {}, 17),
    "a batch norm that nothing reads": (
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("BatchNormalization", ["x", "c", "c", "c", "c"], ["dead"])],
        {"c": np.ones(4, np.float32)},
        17,
    ),
    "integers whose type the runtime writes as an attribute": (
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {"s": np.array(0.01, np.float32), "z": np.array(3, np.uint8)},
        21,
    ),
    "neutral constants before a quantisation": (
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Sub", ["r", "n"], ["h"]),
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {"n": np.zeros((), np.float32), "s": np.array(0.01, np.float32), "z": np.array(0, np.uint8)},
        17,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_that_are_read_are_followed(name: str, tmp_path: Path) -> None:
    nodes, tensors, opset = ODD[name]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "odd", inputs, outputs, [numpy_helper.from_array(value, key) for key, value in tensors.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert check_runtime_graph(tmp_path / "m.onnx").compared == 4


def test_a_float16_leaky_relu_is_known_in_the_parts_that_it_becomes(tmp_path: Path) -> None:
    nodes = (LeakyRelu(name="h", inputs=("x",), shape=(4,), slope=0.25), Gemm(name="y", inputs=("h",), shape=(3,), weight="w", bias=None))
    graph = Graph("x", (4,), nodes, "y", {"w": array(3, 4)})
    write_onnx(half(graph), tmp_path / "m.onnx", 17, {})
    check_runtime_graph(tmp_path / "m.onnx")


def test_float16_leaky_relus_are_told_apart_where_one_reads_zeros(tmp_path: Path) -> None:
    nodes = (
        LeakyRelu(name="g", inputs=("x",), shape=(4,), slope=0.75),
        Gemm(name="z", inputs=("g",), shape=(3,), weight="none", bias=None),
        LeakyRelu(name="h", inputs=("z",), shape=(3,), slope=0.25),
        Gemm(name="y", inputs=("h",), shape=(3,), weight="w", bias="b"),
    )
    graph = Graph("x", (4,), nodes, "y", {"none": np.zeros((3, 4), np.float32), "w": array(3, 3), "b": array(3)})
    write_onnx(half(graph), tmp_path / "m.onnx", 17, {})
    check_runtime_graph(tmp_path / "m.onnx")


def clipped_and_quantised(clip: bool) -> Graph:
    """A Clip whose ends are 0.4993 steps inside those of the grid behind it: ONNX Runtime rounds them to the grid's, and leaves it out."""
    lowest, highest, scale = -0.30967825651168823, 0.9146440029144287, 0.004801263567060232
    ends = {"lowest": 0, "highest": 255}
    integers = {
        name: QuantisedParameter(np.full(size, 64, np.int8), np.asarray(1 / 64, np.float32))
        for name, size in (("v", (3, 4)), ("w", (3, 3)))
    }
    nodes = [
        FakeQuant(name="q", inputs=("x",), shape=(4,), scale=1 / 256, zero_point=0, **ends),
        Gemm(name="z", inputs=("q",), shape=(3,), weight="v", bias=None),
        Clip(name="c", inputs=("z",), shape=(3,), lowest=lowest, highest=highest),
        FakeQuant(name="r", inputs=("c" if clip else "z",), shape=(3,), scale=scale, zero_point=64, **ends),
        Gemm(name="y", inputs=("r",), shape=(3,), weight="w", bias=None),
    ]
    params = {name: stored.floats() for name, stored in integers.items()}
    return Graph("x", (4,), tuple(node for node in nodes if clip or node.name != "c"), "y", params, integers)


def test_a_clip_half_a_step_inside_the_grid_may_be_left_out_and_not_be_added(tmp_path: Path) -> None:
    with_clip, without = clipped_and_quantised(True), clipped_and_quantised(False)
    for name, graph in (("with", with_clip), ("without", without)):
        write_onnx(graph, tmp_path / f"{name}.onnx", 17, {})
        check_runtime_graph(tmp_path / f"{name}.onnx")
    models = {name: onnx.load(tmp_path / f"{name}.onnx") for name in ("with", "without")}
    assert runtime_graph.GraphComparison(from_onnx(tmp_path / "with.onnx"), fixed_batch=False).difference(models["without"]) is None
    assert runtime_graph.GraphComparison(from_onnx(tmp_path / "without.onnx"), fixed_batch=False).difference(models["with"]) is not None


@pytest.mark.parametrize("kind", [Add, Sub])
def test_sums_are_merged_exactly_where_their_rounding_is_charged(kind: type[Add] | type[Sub], tmp_path: Path) -> None:
    """Fused, the residual is one more term of the sum. That is charged for a convolution that nothing else reads, and only there."""
    shape = (4, 6, 6)
    weights = {"w": array(4, 4, 3, 3)}
    conv = Conv(name="c", inputs=("x",), shape=shape, weight="w", bias=None, pads=(1, 1, 1, 1))
    alone = (conv, kind(name="s", inputs=("c", "x"), shape=shape), Reshape(name="y", inputs=("s",), shape=(144,)))
    shared = (
        *alone[:2],
        Concat(name="both", inputs=("s", "c"), shape=(8, 6, 6), axis=0),
        Reshape(name="y", inputs=("both",), shape=(288,)),
    )
    fused = [helper.make_node("FusedConv", ["x", "w", "", "z"], ["s"], domain="com.microsoft", pads=[1, 1, 1, 1])]
    for nodes, merges in ((alone, True), (shared, False)):
        graph = Graph("x", shape, nodes, "y", weights)
        tail = [helper.make_node("Flatten", ["s"], ["y"])]
        if not merges:
            tail = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Concat", ["s", "c"], ["b"], axis=1)]
            tail.append(helper.make_node("Flatten", ["b"], ["y"]))
        other = helper.make_node("Neg" if kind is Sub else "Identity", ["x"], ["z"])
        model = onnx.load(save_graph(tmp_path, graph))
        del model.graph.node[:]
        model.graph.input[0].name, model.graph.output[0].name = "x", "y"
        model.graph.node.extend([other, *fused, *tail])
        assert (runtime_graph.GraphComparison(graph, fixed_batch=True).difference(model) is None) == merges


def save_graph(folder: Path, graph: Graph) -> Path:
    write_onnx(graph, folder / "m.onnx", 17, {})
    return folder / "m.onnx"


def test_weights_in_blocks_are_put_back() -> None:
    weight = array(32, 16, 3, 3)
    for block in (8, 16):
        blocked = weight.reshape(32 // block, block, 16 // block, block, 3, 3).transpose(0, 2, 4, 5, 3, 1)
        assert np.array_equal(in_rows(np.ascontiguousarray(blocked).reshape(weight.shape), block, 1), weight)
    for shape, groups in (((16, 3, 3, 3), 1), ((16, 1, 3, 3), 16)):
        few = array(*shape)
        blocked = few.reshape(2, 8, shape[1], 3, 3).transpose(0, 2, 3, 4, 1)
        assert np.array_equal(in_rows(np.ascontiguousarray(blocked).reshape(shape), 8, groups), few)


def test_identities_hold_and_nothing_more() -> None:
    """What may differ (docs/numerics.md, section 10.2), on expressions; and neighbours of it that may not."""
    algebra = Algebra()
    x = algebra.input((1, 2, 4, 4))
    one, zero, c = np.float32(1), np.float32(0), array(2, 1, 1)

    def same(a: object, b: object) -> bool:
        return np.array_equal(a.hashes, b.hashes)  # type: ignore[attr-defined]

    assert same(algebra.times(x, one), x)
    assert same(algebra.plus(x, x.hashes, zero), x)
    assert same(algebra.negated(algebra.negated(x)), x)
    assert same(algebra.divided(x, np.float32(4)), algebra.times(x, np.float32(0.25)))
    assert not same(algebra.divided(x, np.float32(3)), algebra.times(x, np.float32(1) / np.float32(3)))
    assert same(algebra.times(x, c), algebra.convolution(x, c[:, :, :, None], None, groups=2))
    assert not same(algebra.times(algebra.times(x, c), c), algebra.times(x, c * c))
    assert not same(algebra.plus(x, x.hashes, c + c), algebra.plus(algebra.plus(x, x.hashes, c), x.hashes, c))
    relu = algebra.clipped(x, 0, np.inf)
    assert same(algebra.clipped(algebra.clipped(x, -1, 6), 0, 9), algebra.clipped(x, 0, 6))
    assert same(algebra.clipped(x, -np.inf, np.inf), x)
    assert not same(algebra.clipped(relu, 0.5, 6), algebra.clipped(x, 0, 6))
    assert not same(
        algebra.maximum(x, (3, 3), (1, 1), (1, 1, 1, 1)),
        algebra.maximum(algebra.maximum(x, (3, 3), (1, 1), (1, 1, 1, 1)), (1, 1), (1, 1), (0, 0, 1, 1)),
    )
    around = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded = x.moved(lambda array_: np.pad(array_, around))
    assert not same(algebra.maximum(padded, (2, 2), (1, 1)), algebra.maximum(x, (2, 2), (1, 1), (1, 1, 1, 1)))
    assert same(algebra.average(padded, (2, 2), (1, 1)), algebra.average(x, (2, 2), (1, 1), (1, 1, 1, 1)))
    grid = QuantisationGrid(0.5, 0, 255)
    assert same(algebra.quantised(relu, grid), algebra.quantised(x, grid))
    assert same(algebra.quantised(algebra.maximum(relu, (2, 2), (2, 2)), grid), algebra.maximum(algebra.quantised(x, grid), (2, 2), (2, 2)))
    assert same(algebra.quantised(algebra.clipped(x, 0.2, 1e9), grid), algebra.quantised(x, grid))  # below half a step
    assert not same(algebra.quantised(algebra.clipped(x, 0.26, 1e9), grid), algebra.quantised(x, grid))
    assert not same(algebra.quantised(x, QuantisationGrid(0.5, -128, 127)), algebra.quantised(x, grid))
    assert not same(
        algebra.quantised(algebra.quantised(x, grid), QuantisationGrid(0.25, 0, 255)), algebra.quantised(x, QuantisationGrid(0.25, 0, 255))
    )


def test_a_reference_refuses_nothing_that_is_read() -> None:
    """Every node type of the IR but BatchNorm has a fingerprint."""
    shape = (2, 3, 3)
    nodes = (Pad(name="y", inputs=("x",), shape=(2, 5, 5), before=(0, 1, 1), after=(0, 1, 1), value=0.5),)
    graph = Graph("x", shape, nodes, "y", {})
    assert Reference(graph, Algebra(), 2).output.shape == (2, 2, 5, 5)
    other = replace(graph, nodes=(replace(nodes[0], value=0.25),))
    algebra = Algebra()
    first = Reference(graph, algebra, 1).output.hashes
    assert not np.array_equal(first, Reference(other, algebra, 1).output.hashes)


def in_form_is_left_alone(seed: int, path: Path) -> str:
    file = RandomFile(seed)
    data = file.bytes(int(file.rng.integers(2, 8)), file.pick((3, 6, 6), (8, 5, 5), (16, 4, 4), (12,), (3, 8), (1, 6, 6)))
    path.write_bytes(data)
    try:
        from_onnx(path)
    except InputError:
        return "refused"
    broken = foldable(onnx.load_from_string(data))
    difference = ""
    try:
        check_runtime_graph(path)
    except GateError as error:
        difference = str(error)
    assert "is read as another network" not in difference, seed
    assert broken or not difference, f"seed {seed} is in the form, and {difference}"
    return "foldable" if broken else "in form"


@pytest.mark.parametrize("seeds", [range(50), range(241, 242), pytest.param(range(50, 1050), marks=pytest.mark.slow)])
def test_what_is_in_the_form_is_executed_as_it_stands(seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_graph, "_way_out", lambda graph: "")
    found = [in_form_is_left_alone(seed, tmp_path / "m.onnx") for seed in seeds]
    assert found.count("in form") > len(seeds) // 2
    assert len(seeds) == 1 or "foldable" in found
