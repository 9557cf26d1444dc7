"""Certifying files: the network's own nodes, and margins that exceed no bound derived here.

The file must be built as certifying files are: what it adds to the network reads the input, the
radius and the largest logit in known places alone, and compares nothing but to tell whether input
and radius are within their ranges. It is then evaluated in float64, operator by operator, at some
samples of the certificate, at mixtures and small changes of them, and at inputs drawn anew for
every check; each margin must be at most the least one by this checker's own intervals, last layers
folded, under the contract of its network: fp32, or of a network in float16 or int8 that of its
certificate. A network in int8 is not executed there: the class is drawn, as its bound must hold
whichever it is.

That samples the file's margins and does not prove them: one that is too large on few inputs alone
can be missed. `vsparse check` writes the file again, and compares every byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from vsparse_check.arrays import FloatArray
from vsparse_check.bounds import Bounds
from vsparse_check.certificate import exact
from vsparse_check.claims import content_sha256
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.files import read_file, read_json
from vsparse_check.limits import ResourceBudget
from vsparse_check.model import Model
from vsparse_check.refusal import known, need, reading
from vsparse_check.region import ClaimedRegion, SampleRegions
from vsparse_check.samples import read_inputs


class Certifying(NamedTuple):
    """The certifying file of a form, its record, the network that it is made of, and whose name."""

    file: str
    record: str
    network: str


# By the folder of the certificate of the network's form.
FILES = {
    "certificate": Certifying(
        "model/model.certify.onnx", "model/certify.json", "model/model.fp32.onnx"
    ),
    "certificate/fp16": Certifying(
        "model/model.fp16.certify.onnx", "model/certify.fp16.json", "model/model.fp16.onnx"
    ),
    "certificate/int8": Certifying(
        "model/model.int8.certify.onnx", "model/certify.int8.json", "model/model.int8.onnx"
    ),
}
# Contracts for which the bounds of such a file are proved; that of the first is fp32, whatever its
# certificate is under.
FURTHER = ("fp16", "fp16-tensorrt", "int8", "int8-exact", "int8-tensorrt")
INTERFACE = (["input", "epsilon"], ["logits", "class", "margin"])
# All operators that such a file is made of, the network's own included.
NAMES = (
    "Abs Add And ArgMax AveragePool Cast Clip Concat Conv DequantizeLinear Div Equal Flatten "
    "Gather GatherElements Gemm GlobalAveragePool Identity LeakyRelu LessOrEqual MatMul Max "
    "MaxPool Min Mul Neg Pad QuantizeLinear ReduceL1 ReduceMax ReduceMin Relu Reshape Round "
    "Sigmoid Slice Split Squeeze Sub Tanh Transpose Unsqueeze Where "
)
KINDS = frozenset(NAMES.split())
# What stands in it once beside the network, and which nodes read the network's own tensors there.
ONCE = ("ArgMax", "ReduceL1", "LessOrEqual", "Equal", "And", "Where")
READERS = Counter(
    [
        *(("input", kind) for kind in ("Add", "Sub", "Sub", "Clip")),
        *(("epsilon", kind) for kind in ("Clip", "Equal")),
        ("logits", "ArgMax"),
    ]
)
# Whether input and radius are within their ranges: from which kind to which each value goes.
RANGES = (("ReduceL1", "LessOrEqual"), ("LessOrEqual", "And"), ("Equal", "And"), ("And", "Where"))
PREFIX, INPUTS = "certify.", "inputs.npz"
MAX_NODES, MAX_TENSOR = 20_000, 2**25
# Shares of the data range's length that radii are drawn up to, and samples drawn for each.
RADII, SAMPLES = (0.0, 0.001, 0.02, 0.3, 1.0), 4
# Of logits and weights: the file's margins and the bounds are rounded to float64 here.
ROOM = 2.0**-30


def check_certifying(
    root: Path,
    files: set[str],
    certificates: Mapping[str, Mapping[str, Any]],
    budget: ResourceBudget,
) -> None:
    """Refutes a certifying file that is not of the network, or whose margins are no bounds of it.

    Data range and samples are those of the certificate of its network, by whose folder
    `certificates` are given. Unchecked where it is larger, or made of other operators, than is
    known here.
    """
    for folder, of in FILES.items():
        have = of.file in files
        need(have is (of.record in files), f"of {of.file} and {of.record} one is missing")
        if have:
            need(folder in certificates, f"{of.file} is of a network without a certificate")
            samples = f"{folder}/{INPUTS}" if f"{folder}/{INPUTS}" in files else ""
            _check_one(root, of, samples, certificates[folder], budget)


def _check_one(
    root: Path,
    of: Certifying,
    inputs: str,
    certificate: Mapping[str, Any],
    budget: ResourceBudget,
) -> None:
    """Refutes one certifying file; `inputs` names the samples of its network, "" without any."""
    record, data = read_json(root / of.record), read_file(root / of.file)
    network, twin = onnx.ModelProto(), onnx.ModelProto()
    with reading(of.file):
        network.ParseFromString(read_file(root / of.network))
        twin.ParseFromString(data)
    stated = record.get("content_sha256"), record.get("network_sha256"), record.get("contract")
    contract = "fp32"
    if of != FILES["certificate"]:
        contract = str(certificate["contract"]["name"])
        need(
            contract in FURTHER, f"{of.file} is of a network under a contract that has no such file"
        )
    found = content_sha256(twin), content_sha256(network), contract
    need(stated == found, f"{of.record} is about other files than {of.file} and {of.network}")
    clip: Any = record.get("clip")
    fits = isinstance(clip, list) and len(clip) == 2 and np.isfinite(clip).all()
    need(fits and clip[0] < clip[1], f"{of.record} states no data range")
    same = clip == certificate["property"]["clip"]
    need(same, f"{of.record}: clip is another data range than the certificate's")
    _check_made_of(of, twin, network)
    _check_built(of, twin, network)
    _check_sizes(of, twin)
    model = Model(network, budget)
    held = read_inputs(root / inputs, prod(model.shape), budget) if inputs else {}
    samples = np.array(list(held.values()), np.float32).reshape(-1, *model.shape)
    epsilon = exact(str(certificate["property"]["epsilon"]))
    bounds = CheckedModel(model, ErrorTerms(model, CONTRACTS[contract]), of)
    _check_margins(twin, bounds, (float(clip[0]), float(clip[1])), samples, float(epsilon))


class CheckedModel(NamedTuple):
    """The network of a certifying file, and what its contract grants each of its operators."""

    model: Model
    errors: ErrorTerms
    of: Certifying


def _check_made_of(of: Certifying, twin: onnx.ModelProto, network: onnx.ModelProto) -> None:
    """Refutes another interface, and a file that does not hold the network as it stands."""
    ends = [value.name for value in twin.graph.input], [value.name for value in twin.graph.output]
    need(ends == INTERFACE, f"{of.file} has other inputs or outputs than a certifying file")
    for part in ("node", "initializer", "input", "output"):
        there = {one.SerializeToString(deterministic=True) for one in getattr(twin.graph, part)}
        own = [one.SerializeToString(deterministic=True) for one in getattr(network.graph, part)]
        need(
            there.issuperset(own),
            f"{of.file} does not hold the {part}s of {of.network} as they stand",
        )
    same = list(twin.opset_import) == list(network.opset_import) and not twin.functions
    need(same, f"{of.file} has another operator set than {of.network}, or functions")


def _check_built(of: Certifying, twin: onnx.ModelProto, network: onnx.ModelProto) -> None:
    """Refutes a file whose added nodes are not connected as those of certifying files are.

    With these connections nothing but the ranges of input and radius, and the class, chooses
    between values: what else a margin is made of it is made of everywhere.
    """
    own = {one.SerializeToString(deterministic=True) for one in network.graph.node}
    nodes = [one for one in twin.graph.node if one.SerializeToString(deterministic=True) not in own]
    made = [name for node in twin.graph.node for name in node.output]
    tensors = [one.name for one in twin.graph.initializer]
    unique = {*made, *tensors, *INTERFACE[0]}
    need(
        len(unique) == len(made) + len(tensors) + len(INTERFACE[0])
        and not twin.graph.sparse_initializer,
        f"{of.file} gives a tensor twice, or sparse ones",
    )
    theirs = {one.name for one in network.graph.initializer}
    names = [one.name for one in nodes] + [name for name in tensors if name not in theirs]
    ends = {"margin": "Where", "class": "Squeeze"}
    outputs = [(name, node.op_type) for node in nodes for name in node.output]
    names += [name for name, kind in outputs if ends.get(name) != kind]
    need(
        all(name.startswith(PREFIX) for name in names),
        f"{of.file} has nodes or tensors that are neither the network's nor called {PREFIX}*",
    )
    counts = Counter(node.op_type for node in nodes)
    need(
        all(counts[kind] == 1 for kind in ONCE),
        f"{of.file} does not have each of {', '.join(ONCE)} once beside the network",
    )
    inside = {name for node in network.graph.node for name in node.output} | set(INTERFACE[0])
    reads = Counter((name, node.op_type) for node in nodes for name in node.input if name in inside)
    need(reads == READERS, f"{of.file} reads the network's tensors in other places")
    readers = Counter((name, node.op_type) for node in nodes for name in node.input)
    for kind, reader in RANGES:
        (output,) = next(node.output for node in nodes if node.op_type == kind)
        found = {pair: count for pair, count in readers.items() if pair[0] == output}
        need(
            found == {(output, reader): 1},
            f"{of.file} uses whether input and radius are within their ranges in other places",
        )
    (last,) = (node for node in nodes if node.op_type == "Where")
    need(list(last.output) == ["margin"], f"{of.file} chooses something else than its margin")


def _check_sizes(of: Certifying, twin: onnx.ModelProto) -> None:
    """Unchecked where an operator is not known, or a tensor's size is not, or is too large."""
    graph = twin.graph
    kinds = {node.op_type for node in graph.node if node.domain in ("", "ai.onnx")}
    plain = all(node.domain in ("", "ai.onnx") for node in graph.node)
    known(
        plain and kinds <= KINDS, f"{of.file} has operators that certifying files are not made of"
    )
    known(len(graph.node) <= MAX_NODES, f"{of.file} has more operators than are evaluated")
    with reading(of.file):
        fixed = onnx.ModelProto()
        fixed.CopyFrom(twin)
        for value in (*fixed.graph.input, *fixed.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if not dim.HasField("dim_value"):
                    dim.dim_value = SAMPLES
        inferred = onnx.shape_inference.infer_shapes(fixed, check_type=True, data_prop=True)
    shapes = {one.name: one.type.tensor_type.shape for one in inferred.graph.value_info}
    shapes |= {one.name: one.type.tensor_type.shape for one in inferred.graph.output}
    for node in graph.node:
        for name in node.output:
            sizes = [dim.dim_value for dim in shapes[name].dim] if name in shapes else [0]
            fits = name in shapes and prod(sizes) <= MAX_TENSOR and all(size > 0 for size in sizes)
            known(fits, f'{of.file} makes "{name:.60}" of a size that is not known, or too large')


def _near(draw: np.random.Generator, samples: Any, clip: tuple[float, float]) -> Any:
    """Returns samples [SAMPLES, …] drawn from those given: two as they are, a mixture, a change.

    A change is of a few elements, or of all by little.
    """
    x = samples[draw.integers(len(samples), size=SAMPLES)].astype(np.float64)
    x[2] += draw.uniform() * (samples[draw.integers(len(samples))] - x[2])
    few = draw.random(x[3].shape) < draw.choice([0.02, 0.2, 1.0])
    x[3] += few * draw.uniform(-1, 1, x[3].shape) * draw.choice([0.01, 0.1]) * (clip[1] - clip[0])
    return x.astype(np.float32).clip(*clip)


def _check_margins(
    twin: onnx.ModelProto,
    about: CheckedModel,
    clip: tuple[float, float],
    samples: Any,
    epsilon: float,
) -> None:
    """Refutes a margin above the checker's own bound, and a class that is not the largest's.

    `samples` [n, …] are those of the certificate, and `epsilon` is its radius.
    """
    model, errors, of = about
    with reading(of.file):
        evaluator = ReferenceEvaluator(_wide(twin))
    largest = max(float(np.abs(one).max(initial=0)) for one in model.parameters.values())
    draw = np.random.default_rng()
    trials = []
    for share in RADII:
        radius = np.float32(share * draw.uniform(0.5, 1) * (clip[1] - clip[0]))
        x = draw.uniform(*clip, (SAMPLES, *model.shape)).astype(np.float32).clip(*clip)
        corners = draw.random(x.shape) < 0.5
        x[0] = np.where(corners[0], x[0], draw.choice(clip, x[0].shape)).astype(np.float32)
        inner = sorted(draw.uniform(*clip, 2).tolist())
        x[1] = draw.uniform(inner[0], inner[1], x[1].shape).astype(np.float32).clip(*clip)
        trials.append((x, radius))
    longest = np.nextafter(np.float32(clip[1] - clip[0]), np.float32(0))
    for radius in [*(radius for _, radius in trials), min(np.float32(epsilon), longest)]:
        if len(samples):
            trials.append((_near(draw, samples, clip), radius))
    drawn = None
    if _is_quantised(twin):
        classes = twin.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
        known(1 < classes <= MAX_TENSOR, f"{of.file} has logits of an unknown number")
        drawn = np.zeros((SAMPLES, classes))
        drawn[np.arange(SAMPLES), draw.integers(classes, size=SAMPLES)] = 1
    for x, radius in trials:
        logits, classes, margins = _evaluated(of, evaluator, x, radius, drawn)
        need((classes == logits.argmax(1)).all(), f"{of.file} names another class than the first")
        need(
            np.isfinite(margins).all(), f"{of.file} returns no margin for an input within its range"
        )
        ball = ClaimedRegion("linf", Fraction(float(radius)), Fraction(0), Fraction(0), clip)
        least = _least_margins(model, errors, SampleRegions(ball, x.reshape(SAMPLES, -1)), classes)
        room = ROOM * (1 + np.abs(logits).max()) * max(largest, 1.0)
        need(
            (margins <= least + room).all(),
            f"{of.file} returns the margin {margins.max():.6g} at epsilon {radius:.6g}, above what "
            f"intervals prove: it does not bound {of.network}",
        )
    low, high = clip
    for value, wrong in (
        *((one, 0.0) for one in (np.nan, -np.inf, np.inf, low - 1e-6, high + 1e-6)),
        *((low, one) for one in (np.nan, np.inf, -1e-6, (high - low) * (1 + 1e-6))),
    ):
        x = draw.uniform(*clip, (SAMPLES, *model.shape)).astype(np.float32).clip(*clip)
        x.reshape(SAMPLES, -1)[:, draw.integers(x[0].size)] = value
        margins = _evaluated(of, evaluator, x, np.float32(wrong), drawn)[2]
        need(
            (margins == -np.inf).all(),
            f"{of.file} returns a margin for inputs with {value:g} and epsilon {wrong:g}, "
            "about which nothing is proved",
        )


def _evaluated(
    of: Certifying,
    evaluator: ReferenceEvaluator,
    x: FloatArray,
    radius: np.floating[Any],
    drawn: FloatArray | None = None,
) -> tuple[Any, Any, Any]:
    """Returns logits, classes and margins of samples x at a radius, in float64.

    `drawn` are logits that are given to a file whose network is not executed.
    """
    with reading(of.file), np.errstate(all="ignore"):
        feed = {"input": x.astype(np.float64), "epsilon": np.array(radius, np.float64)}
        if drawn is not None:
            made = evaluator.run(["class", "margin"], feed | {"logits": drawn})
            logits, classes, margins = (np.asarray(one) for one in (drawn, *made))
        else:
            logits, classes, margins = (np.asarray(one) for one in evaluator.run(None, feed))
        shapes = logits.shape[0], classes.shape, margins.shape
        need(shapes == (SAMPLES, (SAMPLES,), (SAMPLES,)), f"{of.file} returns other shapes")
    return logits, classes, margins


def _least_margins(
    model: Model, errors: ErrorTerms, region: SampleRegions, classes: Any
) -> FloatArray:
    """Returns lower bounds [n] of the least margins of classes [n], by intervals alone."""
    wide = SampleRegions(region.claimed, region.x.astype(np.float64))
    bounds = Bounds(model, errors, wide, refine=False)
    rows = bounds.margins(np.asarray(classes), fold_only=True)[1]
    least: FloatArray = rows.reshape(len(wide.x), -1).min(axis=1)
    return least


def _is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a file's network is on integers, which this evaluator executes in no operator set."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _wide(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the file with its float32 numbers in float64, in which it is then evaluated.

    Of a quantised network the nodes are left out, and its logits are an input.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    if _is_quantised(model):
        added = [node for node in wide.graph.node if node.name.startswith(PREFIX)]
        del wide.graph.node[:]
        wide.graph.node.extend(added)
        wide.graph.input.append(wide.graph.output.pop(0))
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return wide
