"""ONNX's own node tests, in every version of each operator from opset 7 to 26: computed as expected, or refused.

The tests have single nodes on arrays of any shape, so each is put into a network in the ways that leave its meaning as it is: its first
dimension as a symbolic batch; a fixed batch of 1; a batch of 1 that a Reshape drops before the node and another brings back behind it; and
everything a constant, where what is read is a constant too. A test of a newer version, whose axes are inputs, is put in older ones with
the axes as attributes.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from graph_nets import graph_logits
from onnx import TensorProto, defs, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.graph import from_onnx
from vsparse.graph.onnx_context import Dequantised, OnnxContext
from vsparse.graph.onnx_file import OPSETS
from vsparse.graph.onnx_reader import read_node
from vsparse.graph.operators import OPERATORS
from vsparse.graph.refusal import UnsupportedOperator

# What none of the tests can be computed for, and what the refusals of each say; one slope: test_graph_operators.py.
NONE_COMPUTED = {"PRelu": "slopes"}
# Activations that exceed float64 arithmetic's distance to the expected float32 values: sums in float32, and functions.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
PLAIN = [np.dtype(kind) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], bool)]
HALF = {"rtol": 2**-10, "atol": 2**-24}  # a value rounded to float16, which is read as exact


@dataclass
class Tally:
    """Counts of one operator, and what its refusals say."""

    computed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def node_tests() -> list[Any]:
    """Returns the tests of claimed operators; importing the module of an operator makes its tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx.backend.test.case.node as cases

        wanted = {kind.lower() for kind in OPERATORS}
        for module in pkgutil.iter_modules(cases.__path__):
            if module.name.replace("_", "") in wanted:
                importlib.import_module(f"{cases.__name__}.{module.name}")
    return [
        one
        for one in cases._NodeTestCases
        if len(one.model.graph.node) == 1 and one.model.graph.node[0].op_type in OPERATORS and one.data_sets
    ]


def versions(kind: str) -> list[int]:
    """Returns an opset for each version of an operator: the last in which that one holds."""
    found: dict[int, int] = {}
    for opset in range(OPSETS[0], OPSETS[1] + 1):
        try:
            found[defs.get_schema(kind, opset, "").since_version] = opset
        except defs.SchemaError:
            continue
    return list(found.values())


def in_version(node: onnx.NodeProto, arrays: list[Any], opset: int) -> tuple[onnx.NodeProto, list[Any]] | None:
    """Returns a node as an opset has it: inputs that were attributes become attributes; None where that cannot be said."""
    schema, newest = defs.get_schema(node.op_type, opset, ""), defs.get_schema(node.op_type, OPSETS[1], "")
    old = onnx.NodeProto()
    old.CopyFrom(node)
    formal = [one.name for one in newest.inputs]
    for name, array in list(zip(formal, arrays, strict=False))[len(schema.inputs) :]:
        attribute = {"constant_value": "value"}.get(name, name)
        if array is None:
            continue
        if attribute not in schema.attributes:
            return None
        kind = onnx.AttributeProto.AttributeType.Value(schema.attributes[attribute].type.name)
        old.attribute.append(helper.make_attribute(attribute, array.tolist(), attr_type=kind if array.ndim else None))
    if schema.inputs and schema.inputs[-1].option != defs.OpSchema.FormalParameterOption.Variadic and len(arrays) > len(schema.inputs):
        arrays = arrays[: len(schema.inputs)]
        del old.input[len(arrays) :]
    return old, arrays


def network(node: onnx.NodeProto, arrays: list[Any], at: int, output: int, opset: int, way: str, expected: np.ndarray) -> bytes:
    """Returns a network around a node whose input `at` depends on the network's input, in one of the ways above."""
    shape = list(arrays[at].shape)
    declared = {"symbolic": [None, *shape[1:]], "fixed": shape, "dropped": [1, *shape]}[way]
    nodes, last = [node], node.output[output]
    initializers = [
        numpy_helper.from_array(array, name) for i, (array, name) in enumerate(zip(arrays, node.input, strict=True)) if i != at and name
    ]
    if way == "dropped":
        initializers.append(numpy_helper.from_array(np.array(shape, np.int64), "as_it_was"))
        nodes.insert(0, helper.make_node("Reshape", ["network_input", "as_it_was"], [node.input[at]]))
    if node.op_type == "QuantizeLinear":
        nodes.append(helper.make_node("DequantizeLinear", [last, *list(node.input)[1:]], ["turned_back"]))
        last = "turned_back"
    rows = {"symbolic": -1, "fixed": 1, "dropped": 1}[way]
    columns = expected.size if way == "dropped" else expected.size // len(expected)
    initializers.append(numpy_helper.from_array(np.array([rows, columns], np.int64), "flat"))
    nodes.append(helper.make_node("Reshape", [last, "flat"], ["logits"]))
    if node.op_type == "Cast":  # of a float16 file the result is converted last
        nodes[-1].output[0] = "half"
        nodes.append(helper.make_node("Cast", ["half"], ["logits"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("network_input" if way == "dropped" else node.input[at], TensorProto.FLOAT, declared)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        initializers,
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString())


def expectations(node: onnx.NodeProto, arrays: list[Any], outputs: list[Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Returns which outputs are compared, and what the network around the node makes of them."""
    for i, value in enumerate(outputs if node.op_type == "Split" else outputs[:1]):
        value = np.asarray(value)
        if node.op_type == "QuantizeLinear" and value.dtype in (np.uint8, np.int8):
            zero = arrays[2].astype(np.float64) if len(arrays) > 2 else np.zeros(())
            # With several scales it must be refused: what it is compared with then is nothing that a reading could make.
            yield i, (value - zero.reshape(())) * float(arrays[1].reshape(())) if arrays[1].size == 1 else np.full(value.shape, np.inf)
        elif value.dtype == np.float32 or (node.op_type == "Cast" and value.dtype == np.float16):
            yield i, value.astype(np.float64)


def through_networks(node: onnx.NodeProto, arrays: list[Any], outputs: list[Any], opset: int, tally: Tally) -> None:
    """Reads a node in every way as part of a network and executes that."""
    for output, expected in expectations(node, arrays, outputs):
        for at, x in enumerate(arrays):
            if x is None or x.dtype != np.float32 or not x.size or not expected.size or not node.input[at]:
                continue
            for way in ("symbolic", "fixed", "dropped"):
                if (way != "dropped" and (x.ndim < 2 or not expected.ndim or len(expected) != len(x))) or (way == "fixed" and len(x) != 1):
                    continue
                if not expected.ndim and way != "dropped":
                    continue
                try:
                    graph = from_onnx(network(node, arrays, at, output, opset, way, np.atleast_1d(expected)))
                except InputError as error:
                    tally.refused[str(error)] += 1
                    if "damaged" in str(error):
                        tally.wrong.append(str(error))
                    continue
                found = graph_logits(graph, (x[None] if way == "dropped" else x).copy()).reshape(-1)
                tally.computed += 1
                # Beyond float16 a Cast makes infinities: bounds look for that, execution does not.
                fits = np.isfinite(expected.reshape(-1)) if node.op_type == "Cast" else slice(None)
                tolerance = HALF if node.op_type == "Cast" else TOLERANCE
                if found.shape != (expected.size,) or not np.allclose(found[fits], expected.reshape(-1)[fits], **tolerance):
                    tally.wrong.append(f"{way}, opset {opset}, input {at}, output {output}")


def as_constants(node: onnx.NodeProto, arrays: list[Any], outputs: list[Any], opset: int, tally: Tally) -> None:
    """Reads a node whose inputs are all constants, and compares what is a constant then."""
    if any(array is not None and (array.dtype.kind == "f" and array.dtype.itemsize > 4) for array in arrays):
        return
    context = OnnxContext("network_input", (1,), 1, opset)
    # int32 is held as int64, as initializers are.
    held = [array.astype(np.int64) if array is not None and array.dtype == np.int32 else array for array in arrays]
    context.values |= {name: array for name, array in zip(node.input, held, strict=True) if name}
    try:
        read_node(context, node)
    except (UnsupportedOperator, InputError) as error:
        tally.refused[str(error)] += 1
        return
    value = context.values[node.output[0]]
    value = value.floats() if isinstance(value, Dequantised) else value
    tally.computed += 1
    if value.shape != outputs[0].shape or not np.array_equal(value, outputs[0]):
        tally.wrong.append(f"as constants, opset {opset}")


def plain(value: Any) -> Any:
    """Returns a value as an array, where ONNX gives it as a tensor of a type that numpy has."""
    if isinstance(value, onnx.TensorProto) and value.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return numpy_helper.to_array(value)
    return value


@pytest.fixture(scope="module")
def tallies() -> dict[str, Tally]:
    found = {kind: Tally() for kind in OPERATORS}
    for case in node_tests():
        (node,) = case.model.graph.node
        inputs, outputs = case.data_sets[0]
        inputs, outputs = ([plain(value) for value in values] for values in (inputs, outputs))
        if not all(isinstance(value, np.ndarray | np.generic) and value.dtype in PLAIN for value in [*inputs, *outputs]):
            continue  # sequences, optional values, strings, 4-bit and 8-bit floats: types that no reader of float32 networks meets
        given = iter(inputs)
        arrays = [np.asarray(next(given)) if name else None for name in node.input]
        for opset in versions(node.op_type):
            if (old := in_version(node, arrays, opset)) is None:
                continue
            tally, before = found[node.op_type], len(found[node.op_type].wrong)
            through_networks(*old, outputs, opset, tally)
            as_constants(*old, outputs, opset, tally)
            tally.wrong[before:] = [f"{case.name}, {one}" for one in tally.wrong[before:]]
    # Each QuantizeLinear was executed with the DequantizeLinear that turns it back.
    found["DequantizeLinear"].computed += found["QuantizeLinear"].computed
    return found


def test_node_tests_are_computed_as_expected_or_refused(tallies: dict[str, Tally]) -> None:
    table = "\n".join(f"{kind:20} {one.computed:5} computed {one.refused.total():5} refused" for kind, one in sorted(tallies.items()))
    print(table)
    wrong = {kind: one.wrong for kind, one in tallies.items() if one.wrong}
    assert not wrong, f"{wrong}\n{table}"
    assert sum(one.computed for one in tallies.values()) > 400, table


@pytest.mark.parametrize("kind", OPERATORS)
def test_each_claimed_operator_is_computed(kind: str, tallies: dict[str, Tally]) -> None:
    if kind in NONE_COMPUTED:
        assert not tallies[kind].computed
        assert any(NONE_COMPUTED[kind] in reason for reason in tallies[kind].refused), tallies[kind].refused
    else:
        assert tallies[kind].computed, tallies[kind].refused
