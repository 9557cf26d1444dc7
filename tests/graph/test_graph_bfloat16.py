"""Weights stored in bfloat16: rounded as IEEE 754 says, widened exactly, read behind a Cast to float32 and nowhere else."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.graph import from_onnx, to_onnx
from vsparse.graph.bfloat16 import BFloat16, to_bfloat16
from vsparse.graph.onnx_file import read_tensor

EVERY = np.arange(2**16, dtype=np.uint16)


def value_of(bits: int) -> Fraction:
    """The number that 16 bits stand for by the definition of the format: sign, 8 bits of exponent with the bias 127, 7 of fraction."""
    sign, exponent, fraction = -1 if bits >> 15 else 1, bits >> 7 & 0xFF, bits & 0x7F
    scaled = Fraction(fraction, 128) + (1 if exponent else 0)
    return sign * scaled * Fraction(2) ** (max(exponent, 1) - 127)


def test_every_bfloat16_number_is_widened_exactly():
    numbers = BFloat16(EVERY).widened()
    finite = np.isfinite(numbers)
    assert ((EVERY >> 7 & 0xFF != 0xFF) == finite).all()
    for bits in EVERY[finite][::7].tolist():
        assert Fraction(float(numbers[bits])) == value_of(bits)
    assert np.signbit(numbers[0x8000])
    assert (to_bfloat16(numbers[finite]).bits == EVERY[finite]).all()


def test_rounding_is_to_nearest_even():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32)
    values[:1000] = (values[:1000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # ties
    values = values.view(np.float32)
    values = values[np.isfinite(values)]
    found = to_bfloat16(values).bits.tolist()
    for value, bits in zip(values.tolist(), found, strict=True):
        exact, here = Fraction(value), value_of(bits)
        for other in (bits - 1, bits + 1):
            if other >= 0 and other >> 15 == bits >> 15:
                there = value_of(other)  # the number that infinity stands for is the next one of the format
                near, far = abs(exact - here), abs(exact - there)
                assert near < far or (near == far and bits % 2 == 0)
    assert np.isposinf(to_bfloat16(np.array(3.4e38, np.float32)).widened())
    assert to_bfloat16(np.array([2.0**-134, -(2.0**-134)], np.float32)).bits.tolist() == [0, 0x8000]


def stored(values, name="s", field=False):
    bits = to_bfloat16(np.asarray(values, np.float32))
    if not field:
        return bits.tensor(name)
    tensor = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=bits.bits.shape)
    tensor.int32_data.extend(bits.bits.reshape(-1).tolist())
    return tensor


def model_of(nodes, tensors, opset=17, extra=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]), *extra],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


W = [[1.5, -2.0], [2.0**-133, 3e38]]


def cast(source, output, to=TensorProto.FLOAT):
    return helper.make_node("Cast", [source], [output], name=f"to_{output}", to=to)


def gemm(weight="w"):
    return helper.make_node("Gemm", ["x", weight], ["y"], name="gemm", transB=1)


@pytest.mark.parametrize("field", [False, True])
@pytest.mark.parametrize("opset", [13, 17, 26])
def test_stored_weights_are_read_bit_by_bit(field, opset):
    tensor = stored(W, field=field)
    graph = from_onnx(model_of([cast("s", "w"), gemm()], [tensor], opset))
    assert graph.params["w"].dtype == np.float32
    assert graph.params["w"].tobytes() == BFloat16(read_tensor(tensor, "s").bits).widened().tobytes()
    assert [type(node).__name__ for node in graph.nodes] == ["Gemm"]
    assert graph.storage == "fp32"


def test_two_casts_of_one_initializer_and_a_constant_are_read():
    nodes = [cast("s", "w"), cast("s", "v"), helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "v"], ["y"])]
    graph = from_onnx(model_of(nodes, [stored([[1, 2], [3, 4]])]))
    assert np.array_equal(graph.params["w"], graph.params["v"])
    constant = helper.make_node("Constant", [], ["s"], value=stored([[1, 2], [3, 4]]))
    assert np.array_equal(from_onnx(model_of([constant, cast("s", "w"), gemm()], [])).params["w"], [[1, 2], [3, 4]])


def test_single_numbers_are_read():
    nodes = [cast("s", "w"), cast("l", "low"), helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Clip", ["h", "low"], ["y"])]
    graph = from_onnx(model_of(nodes, [stored([[1, 2], [3, 4]]), stored(-0.5, "l")]))
    assert [getattr(node, "lowest", None) for node in graph.nodes] == [None, -0.5]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([gemm("s")], 'node "gemm" (Gemm) reads "s", which is stored in bfloat16'),
        ([cast("s", "w"), gemm(), helper.make_node("Add", ["y", "s"], ["z"], name="add")], 'node "add" (Add) reads "s", which is stored'),
        ([cast("s", "w"), helper.make_node("Shape", ["s"], ["k"], name="shape"), gemm()], 'node "shape" (Shape) reads "s"'),
        ([helper.make_node("Transpose", ["s"], ["t"], name="turn"), cast("t", "w"), gemm()], 'node "turn" (Transpose) reads "s"'),
        ([cast("s", "w", TensorProto.FLOAT16), gemm()], 'node "to_w" (Cast) converts bfloat16 numbers to another type than float32'),
        ([cast("s", "w", TensorProto.BFLOAT16), gemm()], 'node "to_w" (Cast) converts bfloat16 numbers to another type'),
        ([cast("s", "w", TensorProto.DOUBLE), gemm()], 'node "to_w" (Cast) converts bfloat16 numbers to another type'),
        ([cast("s", "w", TensorProto.INT64), gemm()], 'node "to_w" (Cast) converts bfloat16 numbers to another type'),
        ([cast("x", "w", TensorProto.BFLOAT16), cast("w", "y")], 'node "to_w" (Cast) must convert an activation to float32 or float16'),
        ([cast("f", "w", TensorProto.BFLOAT16), cast("w", "v"), gemm("v")], 'node "to_w" (Cast) must convert an activation'),
    ],
)
def test_other_uses_of_bfloat16_are_refused_by_name(nodes, reason):
    floats = numpy_helper.from_array(np.ones((2, 2), np.float32), "f")
    with pytest.raises(InputError) as refusal:
        from_onnx(model_of(nodes, [stored([[1, 2], [3, 4]]), floats]))
    assert reason in str(refusal.value)


def test_an_opset_without_bfloat16_is_refused():
    with pytest.raises(InputError, match=r'node "to_w" .Cast. converts bfloat16 numbers, which it does not in opset 12'):
        from_onnx(model_of([cast("s", "w"), gemm()], [stored([[1, 2], [3, 4]])], 12))


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFF81])
def test_weights_that_are_not_finite_are_refused(bits):
    tensor = BFloat16(np.array([[0x3F80, bits], [0, 0]], np.uint16)).tensor("s")
    with pytest.raises(InputError, match=r'"w".*(NaN|infinite|finite)'):
        from_onnx(model_of([cast("s", "w"), gemm()], [tensor]))


def damaged(**changes):
    tensor = stored([[1, 2], [3, 4]])
    for name, value in changes.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        elif name == "int32_data":
            tensor.ClearField("raw_data")
            tensor.int32_data.extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        damaged(raw_data=bytes(7)),
        damaged(raw_data=bytes(16)),
        damaged(dims=[2**40, 2**40]),
        damaged(dims=[-2, -2]),
        damaged(int32_data=[1, 2, 3]),
        damaged(int32_data=[0x3F80, 0x13F80, 0, 0]),
        damaged(int32_data=[0x3F80, -1, 0, 0]),
        damaged(data_location=TensorProto.EXTERNAL),
    ],
)
def test_damaged_storage_is_refused_in_one_sentence(tensor):
    with pytest.raises(InputError, match="the model cannot be read: "):
        from_onnx(model_of([cast("s", "w"), gemm()], [tensor]))


def test_many_casts_of_a_large_initializer_do_not_fill_the_memory():
    large = BFloat16(np.zeros((2**21, 2), np.uint16)).tensor("s")
    nodes = [*(cast("s", f"w{i}") for i in range(50)), gemm("w0")]
    with pytest.raises(InputError, match="makes too large constants"):
        from_onnx(model_of(nodes, [large]))


@pytest.mark.parametrize("opset", [13, 17, 26])
def test_what_is_written_is_read_back(opset):
    graph = from_onnx(model_of([cast("s", "w"), gemm()], [stored([[1, 2.0**-133], [-3e38, 0.15625]])]))
    model = to_onnx(graph, opset, bfloat16=True)
    assert {one.data_type for one in model.graph.initializer} == {TensorProto.BFLOAT16}
    again = from_onnx(model.SerializeToString())
    assert again.params["w"].tobytes() == graph.params["w"].tobytes()
    once_more = to_onnx(again, opset, bfloat16=True)
    assert to_onnx(from_onnx(once_more.SerializeToString()), opset, bfloat16=True) == once_more
    onnx.checker.check_model(model, full_check=True)


def test_what_bfloat16_cannot_hold_is_not_written():
    graph = from_onnx(model_of([cast("s", "w"), gemm()], [stored([[1, 2], [3, 4]])]))
    with pytest.raises(InputError, match='"w" is no bfloat16 number'):
        to_onnx(graph.with_params({"w": np.full((2, 2), 0.1, np.float32)}), bfloat16=True)
