"""Weights stored in bfloat16: the checker reads the toolchain's numbers bit by bit, behind a Cast to float32 and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.graph import from_onnx
from vsparse.graph.bfloat16 import BFloat16
from vsparse_check.limits import ResourceBudget
from vsparse_check.model import Model
from vsparse_check.refusal import NotConfirmed, Unchecked, reading

FINITE = np.array([bits for bits in range(2**16) if bits >> 7 & 0xFF != 0xFF], dtype=np.uint16)


def cast(source, output, to=TensorProto.FLOAT):
    return helper.make_node("Cast", [source], [output], to=to)


def gemm(weight="w"):
    return helper.make_node("Gemm", ["x", weight], ["y"], transB=1)


def model_of(nodes, *tensors, size=2):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def stored(*numbers, name="s"):
    """Returns an initializer of two rows with these numbers, of which each is a bfloat16 number."""
    bits = np.array(numbers, np.float32).view(np.uint32) >> 16
    return BFloat16(bits.astype(np.uint16).reshape(2, -1)).tensor(name)


def read(model, budget=None):
    with reading("the model"), np.errstate(all="ignore"):
        return Model(model, budget)


def in_the_field(tensor, numbers=None):
    found = np.frombuffer(tensor.raw_data, "<u2").tolist()
    tensor.ClearField("raw_data")
    tensor.int32_data.extend(found if numbers is None else numbers)
    return tensor


@pytest.mark.parametrize("field", [False, True])
def test_both_read_every_finite_number_alike(field):
    tensor = BFloat16(FINITE.reshape(2, -1)).tensor("s")
    model = model_of([cast("s", "w"), gemm()], in_the_field(tensor) if field else tensor, size=len(FINITE) // 2)
    ours = read(model).parameters["w"]
    assert ours.dtype == np.float32
    assert ours.tobytes() == from_onnx(model.SerializeToString()).params["w"].tobytes()
    assert (ours.view(np.uint32).reshape(-1) == FINITE.astype(np.uint32) * 65536).all()


def test_two_casts_of_one_initializer_are_read():
    model = model_of(
        [cast("s", "w"), cast("s", "v"), helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "v"], ["y"])]
    )
    model.graph.initializer.append(stored(1, 2, 3, 4))
    found = read(model).parameters
    assert np.array_equal(found["w"], [[1, 2], [3, 4]])
    assert np.array_equal(found["v"], found["w"])


FLOATS = numpy_helper.from_array(np.ones((2, 2), np.float32), "f")
INTEGERS = numpy_helper.from_array(np.ones((2, 2), np.int8), "i")
SCALE = numpy_helper.from_array(np.float32(0.5), "scale")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([gemm("s")], '"s" is computed, or not there, and should be a parameter'),
        ([cast("s", "w"), helper.make_node("Gemm", ["x", "w", "s"], ["y"])], '"s" is computed, or not there'),
        ([cast("s", "w", TensorProto.FLOAT16), gemm()], "Cast of bfloat16 numbers is not to float32"),
        ([cast("s", "w", TensorProto.BFLOAT16), gemm()], "Cast of bfloat16 numbers is not to float32"),
        ([cast("s", "w", TensorProto.INT64), gemm()], "Cast of bfloat16 numbers is not to float32"),
        ([cast("x", "h", TensorProto.BFLOAT16), cast("h", "y")], "Cast is not to float32 or float16"),
        ([cast("f", "w"), gemm()], 'Cast of "f", which is no float16 parameter'),
        ([cast("s", "w"), cast("w", "v"), gemm("v")], 'Cast of "w", which is no float16 parameter'),
        ([helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]), cast("t", "w"), gemm()], 'Transpose reads "s", which is no activation'),
        ([helper.make_node("DequantizeLinear", ["s", "scale"], ["w"]), gemm()], 'DequantizeLinear reads "s"'),
        ([helper.make_node("DequantizeLinear", ["i", "scale", "s"], ["w"]), gemm()], "the model is not of its format: KeyError"),
        ([helper.make_node("Clip", ["x", "s"], ["h"]), gemm("f")], "the model is not of its format: KeyError"),
    ],
)
def test_other_uses_are_refused(nodes, reason):
    with pytest.raises(NotConfirmed) as refusal:
        read(model_of(nodes, stored(1, 2, 3, 4), FLOATS, INTEGERS, SCALE))
    assert reason in str(refusal.value)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(number):
    with pytest.raises(NotConfirmed, match='"w" is no finite float32'):
        read(model_of([cast("s", "w"), gemm()], stored(1, number, 3, 4)))


def changed(**fields):
    tensor = stored(1, 2, 3, 4)
    if "numbers" in fields:
        return in_the_field(tensor, fields["numbers"])
    if "dims" in fields:
        del tensor.dims[:]
        tensor.dims.extend(fields["dims"])
        return tensor
    for name, value in fields.items():
        setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        changed(raw_data=bytes(6)),
        changed(raw_data=bytes(16)),
        changed(dims=[2, 3]),
        changed(dims=[0, 2]),
        changed(dims=[2**14, 2**14]),
        changed(numbers=[1, 2, 3]),
        changed(numbers=[1, 2, 3, 2**16]),
        changed(numbers=[1, 2, 3, -1]),
        changed(data_location=TensorProto.EXTERNAL),
        TensorProto(name="s", data_type=TensorProto.BFLOAT16, dims=[2, 2], float_data=[1, 2, 3, 4]),
    ],
)
def test_damaged_storage_is_refused(tensor):
    with pytest.raises(NotConfirmed):
        read(model_of([cast("s", "w"), gemm()], tensor))


def test_each_cast_counts_against_the_memory():
    large = BFloat16(np.zeros((2, 2**16), np.uint16)).tensor("s")
    nodes = [*(cast("s", f"w{i}") for i in range(60)), gemm("w0")]
    budget = ResourceBudget(memory=64 * 2**20)
    read(model_of([*nodes[-2:-1], cast("s", "w0"), gemm("w0")], large, size=2**16), budget)
    with pytest.raises(Unchecked):
        read(model_of(nodes, large, size=2**16), ResourceBudget(memory=64 * 2**20))


def test_onnx_reads_the_same_numbers():
    tensor = BFloat16(FINITE.reshape(2, -1)).tensor("s")
    model = model_of([cast("s", "w"), gemm()], tensor, size=len(FINITE) // 2)
    theirs = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    assert read(model).parameters["w"].tobytes() == theirs.tobytes()
