"""The least margin of the predicted class: the rows z_y − z_j of the last layer, bounded over the ends of what it reads.

Folding the rows into the last layer keeps what its outputs have in common (Gowal et al., arXiv 1810.12715, section 3).
"""

from __future__ import annotations

import numpy as np

from vsparse.errors import InputError
from vsparse.graph.core import Graph, Node
from vsparse.graph.operators.affine import Affine, Conv, Gemm
from vsparse.graph.operators.reshape import Reshape
from vsparse.stages.export.certify_onnx.affine import (
    ChargedSum,
    block_sums,
    centre_radius_parts,
    product,
    radius_source,
    size_of_sum,
    sums_of_ends,
)
from vsparse.stages.export.certify_onnx.charges import Charges, with_weight
from vsparse.stages.export.certify_onnx.quantised import of_steps
from vsparse.stages.export.certify_onnx.rounded import UNIT, UP, Float32s, Numbers
from vsparse.stages.export.certify_onnx.stored_sums import StorageRounding, centre_and_radius, stored_parts
from vsparse.stages.export.certify_onnx.writer import EndPair, TwinWriter

# Up to so many weights the rows of all pairs of classes are multiplied, and those of the predicted class chosen from the results; beyond,
# the rows of the predicted class are gathered first.
ALL_PAIRS = 2**15
# And beyond this many there is no such file: 64 MiB of rows.
MOST_ROWS = 2**24


def last_layer(graph: Graph) -> Affine | None:
    """Returns the layer of products whose results the logits are, moved at most; None where something else computes them."""
    producers: dict[str, Node] = {node.name: node for node in graph.nodes}
    node = producers.get(graph.output)
    while isinstance(node, Reshape):
        node = producers.get(node.inputs[0])
    if isinstance(node, Gemm):
        return node
    if isinstance(node, Conv) and node.shape[1:] == (1, 1) and node.groups == 1:
        source = graph.shape_of(node.inputs[0])
        if source[1:] == (1, 1) and graph.params[node.weight].shape[2:] == (1, 1) and node.pads == (0, 0, 0, 0):
            return node
    return None


def least_margin(w: TwinWriter, charges: Charges, known: dict[str, EndPair], predicted: str) -> str:
    """Adds a lower bound [batch] of the least margin of the class `predicted` [batch, 1] against all others, and returns its name."""
    graph = charges.graph
    layer = last_layer(graph)
    source = known[graph.output if layer is None else layer.inputs[0]]
    rows = of_steps(margin_sum(charges, layer), source.scale)
    classes = graph.shape_of(graph.output)[0]
    stored = rows.weight.size * (2 if source.nonnegative or source.limit is not None else 1)
    if stored > MOST_ROWS:
        raise InputError(
            f"the margins between {classes} classes over {rows.weight.shape[1]} inputs of the last layer take {stored:,} weights, more "
            f"than {MOST_ROWS:,}; leave deploy.live out, or put a narrower layer before the last"
        )
    flat = _flat(w, source)
    chosen = _Chosen(w, classes, predicted, stored <= ALL_PAIRS)
    if flat.nonnegative or flat.limit is not None:
        lower = block_sums(rows, flat)[1]
        flat = w.stack(flat, "margin")
        margins = chosen.product(lower.weight, lower.bias, flat.stacked, "margin")
    elif charges.storage is not None:
        ends = centre_and_radius(w, stored_parts(rows, None), flat, chosen.multiplied, "margin")
        margins = w.op("Sub", ends, "margin.lower")
    else:
        total, width = sums_of_ends(w, flat, "margin")
        parts = centre_radius_parts(rows, single_reader=True)
        spread = radius_source(w, size_of_sum(w, flat, total, "margin"), width, parts.growth, "margin")
        centre = chosen.product(parts.half, parts.bias, total, "margin.centre")
        radius = chosen.product(parts.radius_weight, parts.radius_bias, spread, "margin.radius")
        margins = w.op("Sub", [centre, radius], "margin.lower")
    storage = None if layer is None else charges.storage_of(layer.name)
    if layer is None or storage is None:
        return chosen.least(margins)
    return chosen.least_stored(margins, _logit_errors(w, charges.sum_of(layer), storage, flat))


def _logit_errors(w: TwinWriter, one: ChargedSum, storage: StorageRounding, flat: EndPair) -> str:
    """Adds what storing each logit costs [batch, classes]: docs/numerics.md, section 15.8."""
    classes, unit = len(one.weight), storage.unit + 16 * UNIT
    scaled = with_weight(
        one,
        kind="Gemm",
        weight=unit * one.weight.reshape(classes, -1),
        slope=(unit * one.slope.reshape(classes, -1) + 2.0**-52 * unit * np.abs(one.weight.reshape(classes, -1))) * UP,
        bias=unit * one.bias,
        constant=(unit * (one.constant + 2.0**-52 * np.abs(one.bias)) + storage.floor * (1 + 2.0**-20)) * UP,
        shape=(classes,),
        over=_over,
        attributes={"transB": 1},
    )
    if not flat.nonnegative:

        def multiplied(source: str, weight: Float32s, shift: Float32s, name: str) -> str:
            return product(w, scaled, source, weight, shift, name)

        centre, radius = centre_and_radius(w, stored_parts(scaled, None), flat, multiplied, "logits")
        return w.op("Add", [w.op("Abs", [centre], "logits.size"), radius], "logits.errors")
    upper, lower = block_sums(scaled, flat)
    weight, bias = np.concatenate([upper.weight, -lower.weight]), np.concatenate([upper.bias, -lower.bias])
    both = product(w, scaled, w.stack(flat, "logits").stacked, weight, bias, "logits.both")
    shape = w.constant("logits.shape", np.array([0, 2, classes], np.int64))
    return w.reduce("ReduceMax", w.op("Reshape", [both, shape], "logits.rows"), [1], "logits.errors")


def margin_sum(charges: Charges, layer: Affine | None) -> ChargedSum:
    """Returns the rows z_y − z_j [classes·(classes − 1), in], those of y together and j ascending, with the errors of both logits."""
    classes = charges.graph.shape_of(charges.graph.output)[0]
    y, j = np.nonzero(~np.eye(classes, dtype=bool))
    if layer is None:
        exact, nothing = np.eye(classes), np.zeros(classes)
        # Of quantised logits fl(s·k) comes out of the network.
        stored = 2 * UNIT * UP * charges.slack if charges.rounding.scales.get(charges.graph.output) else 0.0
        whole = ChargedSum("logits", "Gemm", exact, nothing, exact * stored, nothing, (classes,), _over)
    else:
        whole = charges.sum_of(layer)
    weight, slope = whole.weight.reshape(classes, -1), whole.slope.reshape(classes, -1)
    rows, bias = weight[y] - weight[j], whole.bias[y] - whole.bias[j]
    return with_weight(
        whole,
        kind="Gemm",
        weight=rows,
        slope=slope[y] + slope[j] + 2.0**-52 * np.abs(rows),  # float64 rounds the difference once
        bias=bias,
        constant=whole.constant[y] + whole.constant[j] + 2.0**-52 * np.abs(bias),
        shape=(len(y),),
        over=_over,
        attributes={"transB": 1},
    )


def _over(rate: Numbers, m: Numbers) -> Numbers:
    summed: Numbers = rate @ m.reshape(-1)
    return summed


def _flat(w: TwinWriter, x: EndPair) -> EndPair:
    """Returns the ends as rows; they are maps of one pixel where the last layer is a convolution."""
    if len(x.shape) == 1:
        return x
    limit = None if x.limit is None else x.limit.reshape(-1)
    if x.stacked:
        return EndPair((x.shape[0],), stacked=w.op("Flatten", [x.stacked], "rows", axis=1), nonnegative=x.nonnegative, limit=limit)
    upper, lower = (w.op("Flatten", [end], "rows", axis=1) for end in (x.upper, x.lower))
    return EndPair((x.shape[0],), upper=upper, lower=lower, nonnegative=x.nonnegative, limit=limit)


class _Chosen:
    """Products with the rows of the predicted class: of all classes at first where these are few."""

    def __init__(self, w: TwinWriter, classes: int, predicted: str, all_pairs: bool) -> None:
        self.w, self.classes, self.predicted, self.all_pairs = w, classes, predicted, all_pairs
        self.index = ""

    def multiplied(self, source: str, weight: Float32s, bias: Float32s, name: str) -> str:
        """Does as `product`."""
        return self.product(weight, bias, source, name)

    def product(self, weight: Float32s, bias: Float32s, x: str, hint: str) -> str:
        """Returns rows · x + bias: [batch, classes·(classes − 1)], or [batch, classes − 1, 1] of the predicted class."""
        w, others = self.w, self.classes - 1
        if self.all_pairs:
            return w.op("Gemm", [x, w.constant(f"{hint}.weight", weight), w.constant(f"{hint}.bias", bias)], hint, transB=1)
        if not self.index:
            self.index = w.op("Squeeze", [self.predicted, w.constant("margin.axis", np.array([1], np.int64))], "margin.class")
        column = w.op("Unsqueeze", [x, w.constant(f"{hint}.axis", np.array([2], np.int64))], f"{hint}.column")
        rows, shifts = weight.reshape(self.classes, others, -1), bias.reshape(self.classes, others, 1)
        chosen = [
            w.op("Gather", [w.constant(f"{hint}.{name}", value), self.index], f"{hint}.chosen_{name}", axis=0)
            for name, value in (("weight", rows), ("bias", shifts))
        ]
        return w.op("Add", [w.op("MatMul", [chosen[0], column], f"{hint}.product"), chosen[1]], hint)

    def least_stored(self, margins: str, errors: str) -> str:
        """Returns the least of the margins of the predicted class [batch], once `errors` [batch, classes] of both logits are subtracted."""
        w, classes = self.w, self.classes
        if self.all_pairs:
            y, j = np.nonzero(~np.eye(classes, dtype=bool))
            both = -(np.eye(classes, dtype=np.float32)[y] + np.eye(classes, dtype=np.float32)[j])
            return self.least(w.op("Gemm", [errors, w.constant("logits.of_pairs", both), margins], "margin.stored", transB=1))
        own, most = (
            w.op("GatherElements", [errors, self.predicted], "logits.own", axis=1),
            w.reduce("ReduceMax", errors, [1], "logits.most"),
        )
        axis = w.constant("logits.axis", np.array([1], np.int64))
        less = w.op("Add", [w.op("Squeeze", [own, axis], "logits.own_row"), most], "logits.less")
        return w.op("Sub", [self.least(margins), less], "margin.stored")

    def least(self, margins: str) -> str:
        """Returns the least of the margins of the predicted class [batch]."""
        w, others = self.w, self.classes - 1
        if not self.all_pairs:
            return w.reduce("ReduceMin", margins, [1, 2], "margin.least")
        shape = w.constant("margin.shape", np.array([0, self.classes, others], np.int64))
        of_all = w.reduce("ReduceMin", w.op("Reshape", [margins, shape], "margin.rows"), [2], "margin.of_all")
        own = w.op("GatherElements", [of_all, self.predicted], "margin.own", axis=1)
        return w.op("Squeeze", [own, w.constant("margin.axis", np.array([1], np.int64))], "margin.least")
