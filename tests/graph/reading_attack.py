"""One random file against ONNX Runtime: every tensor that was read, its shape and its values, at several points and batches."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from reading_graphs import File

from vsparse.bounds import Rounding, interval
from vsparse.bounds.interval import propagate
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.graph import Reading, read_onnx
from vsparse.graph.quantised import check_integer_execution
from vsparse.stages.export.runtime_form import foldable

onnxruntime.set_default_logger_severity(4)
LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
Array = NDArray[np.generic]


@dataclass
class Outcome:
    """What became of a file: "computed", "refused" (by the reader), "refused by runtime" or "different"; why; what was compared."""

    kind: str
    why: str = ""
    values: int = 0
    integers: bool = False  # a quantised file was compared as optimised, with what the contract int8 allows
    compared: set[str] = field(default_factory=set)


def points(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns three float32 inputs: numbers, quarters (ties of what is quantised), and large ones among zeros."""
    plain, quarters = rng.normal(size=shape), np.round(rng.normal(size=shape) * 8) / 4
    large = np.where(rng.random(shape) < 0.5, 0.0, rng.normal(size=shape) * 20)
    return np.stack([plain, quarters, large]).astype(np.float32)


def enclosures(reading: Reading, x: NDArray[np.float32], half: bool) -> dict[str, tuple[Array, Array]]:
    """Returns lower and upper values of every activation at points x: float64 intervals, widened after each operator by far more than what
    float32 (float16) loses, and by far less than what another function differs. Where an interval spans a tie of a quantisation, both
    steps are in it."""
    graph, share = reading.graph, 4e-3 if half else 1e-5
    params = graph.tensors(torch.float64)
    start = torch.from_numpy(x).double()
    slack = share * (1 + start.abs()) if half else 0 * start
    boxes = {graph.input: (start - slack, start + slack)}
    for node in graph.nodes:
        lower, upper = propagate(node, params, [boxes[name] for name in node.inputs])
        scale = max(
            [
                1.0,
                *(float(end.abs().max()) for name in node.inputs for end in boxes[name]),
                float(lower.abs().max()),
                float(upper.abs().max()),
            ]
        )
        boxes[node.name] = (lower - share * scale, upper + share * scale)
    return {name: (lower.numpy(), upper.numpy()) for name, (lower, upper) in boxes.items()}


def integer_enclosures(reading: Reading, data: bytes, x: NDArray[np.float32]) -> dict[str, tuple[Array, Array]] | None:
    """Returns what any kernels on integers or floats may compute of a quantised file at points x; None where the contract refuses it.

    So it does where weights in integers do not meet a quantised activation itself: ONNX Runtime then has a kernel that quantises what it
    reads in its own way, which the comparison of its graph finds (docs/numerics.md, section 10.3, rule 10).
    """
    box = torch.from_numpy(x).double()
    if any(place.startswith("rule 10") for place in foldable(onnx.ModelProto.FromString(data))):
        return None
    try:
        check_integer_execution(reading.graph)
        rounding = Rounding(reading.graph, CONTRACTS["int8"])
        boxes = interval(reading.graph, rounding.params, (box, box), rounding)
    except InputError:
        return None
    return {name: (lower.numpy(), upper.numpy()) for name, (lower, upper) in boxes.items()}


def session(data: bytes, level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def opened(data: bytes) -> tuple[bytes, list[str], dict[str, str]]:
    """Returns the file with every tensor that a node makes as an output, the names of these, and which operator makes each."""
    model = onnx.ModelProto.FromString(data)
    makers = {name: node.op_type for node in model.graph.node for name in node.output if name}
    given = {value.name for value in model.graph.output}
    for name in makers:
        if name not in given:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model.SerializeToString(), [value.name for value in model.graph.output], makers


def attack(file: File, rng: np.random.Generator) -> Outcome:
    """Returns what became of a file."""
    try:
        reading = read_onnx(file.data)
    except InputError as error:
        return Outcome("refused", reason(str(error)))
    data, names, makers = opened(file.data)
    try:
        plain, best = session(data, LEVELS[0]), session(file.data, LEVELS[1])
    except Exception as error:
        return Outcome("refused by runtime", reason(str(error)))
    x = points(file.shape, rng)
    boxes = enclosures(reading, x, file.half)
    # Optimised, a file with integers is executed by other kernels, or with merged quantisations: only the contract says what these may do.
    integers = QUANTISED & set(makers.values())
    optimised = integer_enclosures(reading, file.data, x) if integers else boxes
    outcome = Outcome("computed", compared=set(makers.values()), integers=bool(integers) and optimised is not None)
    rows = [slice(i, i + 1) for i in range(len(x))] if file.batch == 1 else [slice(0, len(x)), slice(0, 1)]
    result = onnx.ModelProto.FromString(file.data).graph.output[0].name
    for part in rows:
        for model, wanted, allowed in ((plain, names, boxes), (best, [result], optimised)):
            try:
                found = dict(zip(wanted, model.run(wanted, {"x": x[part]}), strict=True))
            except Exception as error:
                return Outcome("refused by runtime", reason(str(error)))
            for name in (one for one in makers if one in found):
                problem = compare(reading, name, found[name], allowed, part)
                if problem:
                    where = "as it stands" if model is plain else "optimised"
                    return Outcome("different", f'{makers[name]} makes "{name}" {where}, batch {part.stop - part.start}: {problem}')
                outcome.values += found[name].size
    return outcome


def compare(reading: Reading, name: str, value: Array, boxes: dict[str, tuple[Array, Array]] | None, part: slice) -> str:
    """Returns how a tensor of the runtime differs from what was read, or nothing; without boxes only its shape is compared."""
    if name not in reading.tensors:
        return ""
    tensor, count = reading.tensors[name], part.stop - part.start
    shape = tuple(count if size is None else size for size in tensor.shape)
    if value.shape != shape:
        return f"shape {value.shape}, read as {shape}"
    if tensor.activation is None or boxes is None:
        return ""
    lower, upper = (end[part].reshape(shape) for end in boxes[tensor.activation])
    wide = value.astype(np.float64)
    outside = ~((lower <= wide) & (wide <= upper))
    if outside.any():
        i = int(np.argmax(outside))
        return f"{wide.flat[i]!r} outside of [{lower.flat[i]!r}, {upper.flat[i]!r}] ({int(outside.sum())} of {outside.size} values)"
    return ""


def reason(text: str) -> str:
    """Returns an error without names and numbers, so that equal reasons can be counted."""
    text = text.split("cannot be read: ", 1)[-1].replace("\n", " ")
    text = re.sub(r"\S*/(?=file\.onnx)", "", text)  # the folder of a temporary file
    text = re.sub(r'"[^"]*"|\'[^\']*\'|[-+]?\d[\d.e+-]*', "#", text)
    return re.sub(r"[\[({][#, ]*[\])}]", "#", text)[:140]
