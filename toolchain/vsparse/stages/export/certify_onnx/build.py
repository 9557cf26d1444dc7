"""Makes the certifying file of a network: the network as it stands, and beside it the bound of the least margin over an l∞ ball."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.onnx_file import in_order
from vsparse.graph.operators.affine import Affine
from vsparse.graph.operators.move import Move
from vsparse.graph.operators.piecewise import Relu
from vsparse.graph.operators.pooling import MaxPool
from vsparse.graph.operators.quantised import FakeQuant
from vsparse.graph.operators.reshape import Reshape
from vsparse.graph.quantised import INTEGER_CONTRACTS, is_quantised
from vsparse.graph.shapes import show
from vsparse.graph.to_onnx import INPUT, OUTPUT
from vsparse.stages.export.certify_onnx.charges import Charges, in_float32
from vsparse.stages.export.certify_onnx.margins import last_layer, least_margin
from vsparse.stages.export.certify_onnx.names import CLASS, EPSILON, MARGIN, PREFIX
from vsparse.stages.export.certify_onnx.operators import TwinContext, enclosed, require_intervals
from vsparse.stages.export.certify_onnx.quantised import in_units, rounded_products
from vsparse.stages.export.certify_onnx.reach import require_reach
from vsparse.stages.export.certify_onnx.rounded import UNIT, Numbers, down32, up32
from vsparse.stages.export.certify_onnx.stored_sums import stored
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# The contracts of each format of storage for which the charges are proved (docs/numerics.md, section 15).
CONTRACTS = {"fp32": ("fp32",), "fp16": ("fp16", "fp16-tensorrt"), "int8": INTEGER_CONTRACTS}
# What rounds nothing and hands steps of a grid on as they are.
ON_STEPS = (Reshape, MaxPool, Relu, Move)


def certifying_model(
    model: onnx.ModelProto, clip: tuple[float, float], name: str = "model.certify", contract_name: str = "fp32", slack: float = 1.0
) -> onnx.ModelProto:
    """Returns a network's file with the bound of its least margin beside it (docs/live.md; docs/numerics.md, section 15).

    The file is one in float32 under the contract fp32, one in float16 under fp16 or fp16-tensorrt, or a quantised one under int8,
    int8-exact or int8-tensorrt; its bounds are float32 all the same. With `slack` above 1 they pay so many times for all that is rounded.

    Inputs: `input` as before, and `epsilon`, a float32 scalar. Outputs: `logits`, as before; `class`, int64 [batch], the index of the
    largest; `margin`, float32 [batch], a lower bound of z_class − z_j over all other classes j and all inputs within epsilon of `input` and
    within `clip`, as any device computes them under the contract. It is −inf where `input` leaves `clip`, and where epsilon is
    negative, above the length of `clip`, or not a number.

    Raises InputError, which names the node, for an operator without an interval, a quantised file, another contract, one output, weights or
    bounds beyond float32's range, activations that may overflow in float16 for an input within `clip`, and data ranges that are empty.
    """
    graph = from_onnx(model.SerializeToString())
    _require(graph, model, clip, contract_name)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    charges = Charges(graph, contract_name, slack)
    require_reach(charges, clip)
    w = TwinWriter(in_float32(graph), opset, slack)
    predicted = w.op("ArgMax", [OUTPUT], "predicted", axis=1, keepdims=1)
    ends, valid = _input_ends(w, graph, clip)
    needed, storage = _needed(graph), charges.storage_of(graph.input)
    readers = graph.consumers()[graph.input]
    unstored = "" if storage is None or not all(isinstance(node, Affine) and node in needed for node in readers) else graph.input
    if storage is not None and not unstored:
        ends = stored(w, storage, ends, "input.stored")
    if charges.storage is not None:
        ends = replace(ends, limit=None)
    known: dict[str, EndPair] = {graph.input: ends}
    context = TwinContext(w, charges, known, unstored, rounded_products(graph) if charges.integers else {})
    for node in needed:
        inputs, scale = _on_one_scale(w, node, [known[one] for one in node.inputs])
        found = enclosed(node, context, inputs)
        if scale is not None:
            found = replace(found, scale=scale, in_steps=inputs[0].in_steps)
        # What float16 rounds is charged relative to each value, and not to the largest one that there may be.
        known[node.name] = found if charges.storage is None else replace(found, limit=None)
    margin = least_margin(w, charges, known, predicted)
    nothing = w.constant("nothing", np.float32(-np.inf))
    w.nodes.append(helper.make_node("Where", [valid, margin, nothing], [MARGIN], name=w.free("output.margin")))
    axis = w.constant("class.axis", np.array([1], np.int64))
    w.nodes.append(helper.make_node("Squeeze", [predicted, axis], [CLASS], name=w.free("output.class")))
    return _assembled(model, w, name)


def network_of(made: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the network inside a certifying file: its nodes without those that certify."""
    network = onnx.ModelProto()
    network.CopyFrom(made)
    graph = network.graph
    kept = [node for node in graph.node if not node.name.startswith(PREFIX)]
    read = {name for node in kept for name in node.input}
    parts = (
        (graph.node, kept),
        (graph.initializer, [one for one in graph.initializer if one.name in read]),
        (graph.input, [one for one in graph.input if one.name != EPSILON]),
        (graph.output, [one for one in graph.output if one.name == OUTPUT]),
    )
    for field, values in parts:
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return network


def _on_one_scale(w: TwinWriter, node: Node, inputs: list[EndPair]) -> tuple[list[EndPair], float | None]:
    """Returns what a node reads in units that it can: steps of a grid where products multiply them, or as what moves them hands them on.

    Of the latter also the scale of what it hands on.
    """
    if isinstance(node, Affine) or (inputs[0].in_steps and isinstance(node, FakeQuant)):
        return inputs, None
    moves_zeros = not isinstance(node, Move) or getattr(node, "value", 0.0) == 0
    if isinstance(node, ON_STEPS) and moves_zeros and len({x.scale for x in inputs}) == 1:
        return inputs, inputs[0].scale
    return [in_units(w, x, node.name) for x in inputs], None


def _require(graph: Graph, model: onnx.ModelProto, clip: tuple[float, float], contract_name: str) -> None:
    require_intervals(graph)
    storage = "int8" if is_quantised(graph) else graph.storage
    known = CONTRACTS.get(storage, ())
    if any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
        raise InputError("a certifying file is made of a network in float32, float16 or int8; bfloat16 weights have none yet")
    if contract_name not in known:
        raise InputError(
            f"a certifying file of a network in {storage} is about the contract {' or '.join(known)}, and not about {contract_name}; "
            + ("leave deploy.live out" if storage == "fp32" else "certify the float32 network live")
        )
    shape = graph.shape_of(graph.output)
    if len(shape) != 1 or shape[0] < 2:
        raise InputError(f"the network's output has shape {show(shape)}; a margin needs at least two classes in a row")
    if not (np.isfinite(clip).all() and clip[0] < clip[1]):
        raise InputError(f"the data range {list(clip)} is empty or not finite; a certifying file needs one to clip to")
    taken = {name for node in model.graph.node for name in (*node.output, node.name)} | {one.name for one in model.graph.initializer}
    clashing = [name for name in taken if name.startswith(PREFIX) or name in (EPSILON, CLASS, MARGIN)]
    if clashing:
        raise InputError(f'the network has the name "{show(clashing[0])}", which the certifying file needs; rename it')
    names = ([value.name for value in model.graph.input], [value.name for value in model.graph.output])
    if names != ([INPUT], [OUTPUT]):
        raise InputError("a certifying file is made of a file that vsparse wrote; run `vsparse export` first")


def _needed(graph: Graph) -> list[Node]:
    """Returns the nodes whose ends the margins are made from: all but the last layer, where its rows are folded."""
    layer = last_layer(graph)
    wanted, nodes = {graph.output if layer is None else layer.inputs[0]}, []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            nodes.append(node)
            wanted |= set(node.inputs)
    return list(reversed(nodes))


def _input_ends(w: TwinWriter, graph: Graph, clip: tuple[float, float]) -> tuple[EndPair, str]:
    """Adds the ends of the ball around the input, clipped to the data range, and whether input and radius are what a bound is about."""
    low, high = down32(np.array(clip[0])), up32(np.array(clip[1]))
    names = {"low": w.constant("low", low), "high": w.constant("high", high)}
    longest = down32(np.array(float(high) - float(low)))
    zero, most = w.constant("zero", np.float32(0)), w.constant("most", longest)
    radius = w.op("Clip", [EPSILON, zero, most], "radius")
    # Covers what the sums below round, whatever the input within the data range, and one that is read as zero where it is subnormal.
    reach = max(abs(float(low)), abs(float(high))) + float(longest)
    wider = w.op("Add", [radius, w.constant("rounding", up32(np.array((8 * UNIT * reach + 2.0**-100) * w.slack)))], "wider")
    ends = [w.op(kind, [INPUT, wider], f"input.{which}") for kind, which in (("Add", "upper"), ("Sub", "lower"))]
    both = w.op("Concat", ends, "input.both", axis=1)
    stacked = w.op("Clip", [both, names["low"], names["high"]], "input.ends")
    limit: Numbers = np.full(graph.input_shape, max(abs(float(low)), abs(float(high))))
    found = EndPair(graph.input_shape, stacked=stacked, nonnegative=float(low) >= 0, limit=limit)
    inside = w.op("Clip", [INPUT, names["low"], names["high"]], "input.clipped")
    outside = w.op("Sub", [INPUT, inside], "input.outside")
    distance = w.reduce("ReduceL1", outside, list(range(1, 1 + len(graph.input_shape))), "input.distance")
    # A NaN is in no order and equals nothing, itself included.
    is_inside = w.op("LessOrEqual", [distance, zero], "input.is_inside")
    is_radius = w.op("Equal", [radius, EPSILON], "radius.is_valid")
    return found, w.op("And", [is_inside, is_radius], "is_valid")


def _assembled(model: onnx.ModelProto, w: TwinWriter, name: str) -> onnx.ModelProto:
    """Returns the network's own nodes with those that certify behind them; each tensor that nothing reads is gone."""
    nodes = _read(
        in_order([*model.graph.node, *w.nodes], {INPUT, EPSILON, *(one.name for one in model.graph.initializer), *w.initializers})
    )
    read = {one for node in nodes for one in node.input}
    proto = helper.make_graph(
        nodes,
        name,
        [*model.graph.input, helper.make_tensor_value_info(EPSILON, TensorProto.FLOAT, [])],
        [
            *model.graph.output,
            helper.make_tensor_value_info(CLASS, TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info(MARGIN, TensorProto.FLOAT, ["batch"]),
        ],
        initializer=[*model.graph.initializer, *(one for one in w.protos() if one.name in read)],
    )
    made = helper.make_model(proto, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name="vsparse")
    try:
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # the checker and shape inference raise several unrelated types
        raise InputError(f"the certifying file fails ONNX's checker: {str(error).splitlines()[0]}") from error
    return made


def _read(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Returns the nodes without those that no output needs."""
    wanted, kept = {OUTPUT, CLASS, MARGIN}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return list(reversed(kept))
