"""Files that are easily read as another network than the one that runs: read as ONNX Runtime executes them, or refused by operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graph_nets import graph_logits, onnx_logits
from onnx import TensorProto, helper, numpy_helper
from reading_attack import attack
from reading_damage import file_of
from reading_graphs import File
from reading_mutations import MUTATIONS

from vsparse.errors import InputError
from vsparse.graph import from_onnx, read_onnx

RNG = np.random.default_rng(3)
N = helper.make_node


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def file(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    batch: Any = 1,
    last: tuple[int, int] | None = (1, -1),
) -> bytes:
    """Returns a model from "x" to "y", whose result is reshaped to [batch, classes] as `last` says."""
    weights = dict(weights or {})
    if last is not None:
        weights["last"] = ints(*last)
        nodes = [*nodes, N("Reshape", ["y", "last"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("logits" if last else "y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString())


EYE = np.zeros((1, 1, 1, 1), np.float32) + 1
SAME = {
    # As torch writes x.squeeze().mean(dim=1): the batch is gone, so axis 1 is the second of the map.
    "squeeze, then axis 1": file(
        [N("Squeeze", ["x"], ["s"]), N("ReduceSum", ["s", "one"], ["y"], keepdims=0)], (1, 4, 5), {"one": ints(1)}
    ),
    "squeeze, then mean over axis 0": file([N("Squeeze", ["x"], ["s"]), N("ReduceMean", ["s"], ["y"], axes=[0])], (1, 4, 5)),
    "squeeze, then a constant": file([N("Squeeze", ["x"], ["s"]), N("Mul", ["s", "c"], ["y"])], (3, 4), {"c": array(3, 1)}),
    "squeeze, then the batch again": file(
        [N("Squeeze", ["x"], ["s"]), N("Unsqueeze", ["s", "zero"], ["u"]), N("ReduceSum", ["u", "one"], ["y"])],
        (1, 3, 4),
        {"zero": ints(0), "one": ints(1)},
    ),
    "squeeze of the batch alone": file(
        [N("Squeeze", ["x", "zero"], ["s"]), N("Concat", ["s", "s"], ["y"], axis=0)], (3, 4), {"zero": ints(0)}
    ),
    "squeeze, then a product": file([N("Squeeze", ["x"], ["s"]), N("MatMul", ["s", "w"], ["y"])], (4,), {"w": array(4, 3)}),
    "squeeze of a constant": file(
        [N("Unsqueeze", ["c"], ["u"], axes=[2]), N("Squeeze", ["u"], ["s"], axes=[2]), N("Mul", ["x", "s"], ["y"])],
        (5, 5),
        {"c": array(5, 1)},
        11,
    ),
    "squeeze of a constant, all": file([N("Squeeze", ["c"], ["s"]), N("Mul", ["x", "s"], ["y"])], (5, 5), {"c": array(5, 1)}),
    "reshape to no batch": file(
        [N("Reshape", ["x", "s"], ["r"]), N("ReduceSum", ["r", "one"], ["y"], keepdims=0)], (6, 4), {"s": ints(3, 8), "one": ints(1)}
    ),
    "reshape to a row": file([N("Reshape", ["x", "s"], ["r"]), N("Mul", ["r", "c"], ["y"])], (6, 2), {"s": ints(-1), "c": array(12)}),
    "flatten at another axis": file([N("Flatten", ["x"], ["f"], axis=2), N("ReduceSum", ["f", "one"], ["y"])], (3, 4), {"one": ints(1)}),
    "transpose of the batch": file([N("Transpose", ["x"], ["t"]), N("ReduceSum", ["t", "zero"], ["y"])], (3, 4), {"zero": ints(0)}),
    "mean over everything": file([N("ReduceMean", ["x"], ["y"])], (3, 4)),
    "sum over the batch of one": file(
        [N("ReduceSum", ["x", "zero"], ["s"], keepdims=0), N("Mul", ["s", "c"], ["y"])], (3, 4), {"zero": ints(0), "c": array(3, 1)}
    ),
    "a constant of more dimensions": file(
        [N("Add", ["x", "c"], ["a"]), N("ReduceSum", ["a", "one"], ["y"])], (4,), {"c": array(1, 1, 4), "one": ints(1)}
    ),
    "sizes of a batch of one": file(
        [
            N("Shape", ["x"], ["s"]),
            N("Gather", ["s", "order"], ["g"]),
            N("Reshape", ["x", "g"], ["r"]),
            N("ReduceSum", ["r", "one"], ["y"]),
        ],
        (3, 4),
        {"order": ints(2, 1, 0), "one": ints(1)},
    ),
    "picked from a constant": file(
        [N("Gather", ["c", "i"], ["g"], axis=1), N("Mul", ["x", "g"], ["y"])], (3, 4), {"c": array(3, 5), "i": ints(4, 0, -2, 1)}
    ),
    "a slice of a constant": file(
        [N("Slice", ["c", "from", "to", "axis"], ["s"]), N("Mul", ["x", "s"], ["y"])],
        (3, 4),
        {"c": array(3, 9), "from": ints(-4), "to": ints(2**31), "axis": ints(-1)},
    ),
    "joined constants": file(
        [N("Concat", ["a", "b"], ["c"], axis=-1), N("Mul", ["x", "c"], ["y"])], (3, 4), {"a": array(3, 1), "b": array(3, 3)}
    ),
    "same padding of -1": file([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], (1, 8, 6), {"w": EYE}),
    "a slice of the whole batch": file(
        [N("Slice", ["x", "from", "to", "axes"], ["y"])],
        (5, 4),
        {"from": ints(0, 1), "to": ints(2**63 - 1, 2**63 - 1), "axes": ints(0, 1)},
        batch="N",
        last=(-1, 16),
    ),
    "view(x.size(0), -1)": file(
        [
            N("Shape", ["x"], ["s"]),
            N("Gather", ["s", "i"], ["g"]),
            N("Unsqueeze", ["g", "zero"], ["u"]),
            N("Concat", ["u", "rest"], ["t"], axis=0),
            N("Reshape", ["x", "t"], ["y"]),
        ],
        (3, 4),
        {"i": np.array(0, np.int64), "zero": ints(0), "rest": ints(-1)},
        batch="N",
        last=None,
    ),
    "split that says its sizes": file(
        [N("Split", ["x", "sizes"], ["a", "y"], axis=1)], (5,), {"sizes": ints(3, 2)}, batch="N", last=(-1, 2)
    ),
    "split into parts, the last one smaller": file(
        [N("Split", ["x"], ["a", "y"], axis=1, num_outputs=2)], (5,), opset=18, batch="N", last=(-1, 2)
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_is_read_as_it_runs(name: str) -> None:
    data = SAME[name]
    reading = read_onnx(data)
    x = array(1 if reading.batch else 3, *reading.graph.input_shape)
    found, expected = graph_logits(reading.graph, x), onnx_logits(data, x)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    outcome = attack(File(data, reading.batch, reading.graph.input_shape, 17), np.random.default_rng(0))
    assert outcome.kind == "computed", outcome


W = {"w": array(1, 1, 2, 2)}
REFUSED = {
    "squeeze of a symbolic batch": (file([N("Squeeze", ["x"], ["y"])], (1, 4), batch="N", last=(-1, 4)), "Squeeze.*names no axes.*squeeze"),
    "squeeze with no axes in a list": (file([N("Squeeze", ["x", "none"], ["y"])], (1, 4), {"none": ints()}), "Squeeze.*empty list"),
    "squeeze beyond the last axis": (file([N("Squeeze", ["x", "a"], ["y"])], (1, 4), {"a": ints(4)}), "Squeeze.*axis 4"),
    "mean beyond the last axis": (file([N("ReduceMean", ["x"], ["y"], axes=[6, 7])], (2, 3, 4)), "ReduceMean.*axis 6"),
    "same padding, stride above the kernel": (
        file([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[4, 4])], (1, 8, 8), {"w": EYE}),
        "Conv.*negative padding",
    ),
    "the same of an average": (
        file([N("AveragePool", ["x"], ["y"], auto_pad="SAME_LOWER", strides=[5, 5], kernel_shape=[2, 2])], (1, 9, 9), opset=20),
        "AveragePool.*negative padding",
    ),
    "the same of a maximum": (
        file([N("MaxPool", ["x"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[1, 1])], (1, 8, 8)),
        "MaxPool.*negative padding",
    ),
    "the same of a row": (
        file([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[4])], (1, 8), {"w": array(1, 1, 1)}),
        "Conv.*negative padding",
    ),
    "same padding, dilated": (
        file([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", dilations=[2, 2])], (1, 8, 8), W),
        "Conv.*dilations",
    ),
    "slopes that broadcast the input": (
        file([N("PRelu", ["x", "s"], ["y"])], (1,), {"s": np.full(5, 0.25, np.float32)}),
        "PRelu.*broadcast",
    ),
    "more dimensions, symbolic batch": (
        file([N("Add", ["x", "c"], ["y"])], (4,), {"c": array(1, 1, 4)}, batch="N", last=(-1, 4)),
        "Add.*more dimensions",
    ),
    "axes as of opset 11": (file([N("Squeeze", ["x"], ["y"], axes=[1])], (1, 4), opset=13), 'Squeeze.*"axes".*not have in this opset'),
    "axes as of opset 13": (file([N("ReduceSum", ["x", "a"], ["y"])], (1, 4), {"a": ints(1)}, opset=11), "ReduceSum.*2 inputs.*opset 11"),
    "ends as of opset 6": (file([N("Clip", ["x"], ["y"], min=0.0)], (4,)), 'Clip.*"min"'),
    "ratio as of opset 7": (file([N("Dropout", ["x"], ["y"], ratio=0.5)], (4,)), 'Dropout.*"ratio"'),
    "dilations of averages before opset 19": (
        file([N("AveragePool", ["x"], ["y"], kernel_shape=[1, 1], dilations=[1, 1])], (1, 4, 4)),
        'AveragePool.*"dilations"',
    ),
    "a row's pool that reads padding": (
        file([N("Pad", ["x", "p"], ["q"]), N("MaxPool", ["q"], ["y"], kernel_shape=[2])], (1, 4), {"p": ints(0, 0, 1, 0, 0, 1)}),
        "MaxPool.*reads padding",
    ),
    "a pool that reads padding between transposes": (
        file(
            [
                N("Pad", ["x", "p"], ["q"]),
                N("Transpose", ["q"], ["t"], perm=[0, 3, 1, 2]),
                N("MaxPool", ["t"], ["y"], kernel_shape=[2, 2]),
            ],
            (4, 4, 2),
            {"p": ints(0, 1, 0, 0, 0, 1, 0, 0)},
        ),
        "MaxPool.*reads padding",
    ),
    "a flag of neither 0 nor 1": (
        file([N("ReduceSum", ["x", "a"], ["y"], keepdims=-1)], (1, 4), {"a": ints(1)}),
        "ReduceSum.*keepdims.*0 or 1",
    ),
    "a required attribute": (file([N("Concat", ["x"], ["y"])], (4,)), 'Concat.*lacks the attribute "axis"'),
    "an uneven split": (file([N("Split", ["x"], ["a", "y"], axis=1)], (5,)), "Split.*evenly"),
    "a split that says nothing": (file([N("Split", ["x"], ["a", "y"], axis=1)], (4,), opset=18), "Split.*num_outputs"),
    "a pool without its batch": (
        file([N("Squeeze", ["x", "z"], ["s"]), N("GlobalAveragePool", ["s"], ["y"])], (2, 3, 4), {"z": ints(0)}),
        "GlobalAveragePool.*lost its batch",
    ),
    "rows that are products each": (file([N("MatMul", ["x", "w"], ["y"])], (3, 4), {"w": array(4, 2)}), "MatMul.*rows"),
    "a result without its batch": (file([N("Squeeze", ["x"], ["y"])], (4,), last=None), r'output "y" has shape \[4\]'),
    "one number for each sample": (file([N("ReduceSum", ["x", "a"], ["y"], keepdims=0)], (4,), {"a": ints(0, 1)}), "ReduceSum.*keepdims"),
    "the second output of a Dropout": (file([N("Dropout", ["x"], ["d", "mask"]), N("Mul", ["d", "mask"], ["y"])], (4,)), "Mul.*no value"),
    "constants that double": (
        file(
            [N("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)] + [N("Add", ["x", "c40"], ["y"])],
            (4,),
            {"c0": array(64)},
        ),
        "Concat.*too large constants",
    ),
    "dimensions without end": (
        file(
            [N("Unsqueeze", ["x" if not i else f"u{i}", "a"], [f"u{i + 1}"]) for i in range(20)] + [N("Relu", ["u20"], ["y"])],
            (4,),
            {"a": ints(1)},
        ),
        "Unsqueeze.*16",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_operator(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        from_onnx(data)
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_are_told_with_their_whole_shapes() -> None:
    reading = read_onnx(SAME["squeeze, then axis 1"])
    assert reading.batch == 1
    assert {name: tensor.shape for name, tensor in reading.tensors.items()} == {
        "x": (1, 1, 4, 5),
        "one": (1,),
        "last": (2,),
        "s": (4, 5),
        "y": (4,),
        "logits": (1, 4),
    }
    assert reading.tensors["one"].activation is None
    assert reading.tensors["logits"].activation == reading.tensors["y"].activation == reading.graph.output
    reading = read_onnx(SAME["a slice of the whole batch"])
    assert reading.batch is None
    assert reading.tensors["y"].shape == (None, 4, 4)


def test_random_files_are_read_as_they_run() -> None:
    outcomes = [attack(file_of(1, i), np.random.default_rng(i)) for i in range(300)]
    different = [(i, one.why) for i, one in enumerate(outcomes) if one.kind == "different"]
    assert not different, different
    computed = [one for one in outcomes if one.kind == "computed"]
    assert len(computed) > 0.6 * len(outcomes)
    assert len(set().union(*(one.compared for one in computed))) > 30  # operators


@pytest.mark.parametrize(
    "name", ["Squeeze without axes keeps the batch", "Pad before and after are exchanged", "perm of Transpose is ignored"]
)
def test_random_files_find_a_broken_reader(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch.setattr)
    assert any(attack(file_of(0, i), np.random.default_rng(i)).kind == "different" for i in range(1000))
