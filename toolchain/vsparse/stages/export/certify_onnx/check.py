"""Executes a certifying file at every optimisation level, and holds what it returns against the toolchain's own bounds.

Margins must not exceed the float64 interval bound under the same contract, whatever a runtime's optimisers make of the file, nor fall below
what the file says in float64 by more than it charges for rounding (docs/numerics.md, section 15).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from vsparse.artifact.models import CertifiedAtRadius
from vsparse.bounds import Rounding, ball, interval
from vsparse.bounds.last_layers import last_layer_folding
from vsparse.bounds.margins import margin_rows
from vsparse.contract import contract
from vsparse.errors import GateError, InputError
from vsparse.graph.core import Graph
from vsparse.graph.quantised import is_quantised
from vsparse.graph.to_onnx import INPUT, OUTPUT
from vsparse.reading.runtime import LEVELS, Level, first_line
from vsparse.stages.export.certify_onnx.build import certifying_model, network_of
from vsparse.stages.export.certify_onnx.names import CLASS, EPSILON, MARGIN, PREFIX

THREADS = (1, 2)
# How many times a file pays for roundings that says how far margins may fall (docs/numerics.md, section 15.9).
SLACK = 4.0
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class CertifyingRuns:
    """What was executed: sessions times radii times ways to feed the samples, and how many samples each radius certifies."""

    executions: int
    radii: tuple[CertifiedAtRadius, ...]


class CertifyingSession:
    """One session of a certifying file in ONNX Runtime."""

    def __init__(self, data: bytes, level: Level = "all", threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.intra_op_num_threads, options.inter_op_num_threads = LEVELS[level], threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, which share no base but Exception
            raise InputError(f"onnxruntime cannot load the certifying file ({first_line(error)})") from error

    def run(self, x: Floats, epsilon: float | np.float32) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Returns logits [n, classes], classes [n] and margins [n] of inputs [n, *shape]."""
        logits, classes, margins = self._session.run([OUTPUT, CLASS, MARGIN], {INPUT: x, EPSILON: np.array(epsilon, np.float32)})
        return logits, classes, margins


class MarginBounds:
    """Bounds in float64, under the contract of the network, that what a certifying file returns is held against."""

    def __init__(self, graph: Graph, model: onnx.ModelProto, clip: tuple[float, float], contract_name: str = "fp32") -> None:
        self.graph, self.clip = graph, clip
        self.rounding = Rounding(graph, contract(contract_name))
        self.real = Rounding(graph, contract("real"))
        self._written = ReferenceEvaluator(_in_float64(model))
        # What is rounded to a step may end a step away: of such networks the same file that pays more is the lower end.
        self._loose: ReferenceEvaluator | None = None
        if is_quantised(graph):
            looser = certifying_model(network_of(model), clip, contract_name=contract_name, slack=SLACK)
            self._loose = ReferenceEvaluator(_in_float64(looser))
        self.room = 2.0**-40 * self._scale()
        self._known: dict[tuple[float, bytes], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def _scale(self) -> float:
        """Returns what float64 rounds relative to, beside bounds themselves: magnitudes over the data range times those of weights.

        The host's bound pays for its own float64 too, which is all that it pays where float32 rounds nothing.
        """
        low, high = (torch.full((1, *self.graph.input_shape), end, dtype=torch.float64) for end in self.clip)
        with torch.no_grad():
            boxes = interval(self.graph, self.rounding.params, (low, high), self.rounding)
        size = max(float(end.abs().max()) for box in boxes.values() for end in box)
        weights = [float(value.abs().flatten(1).sum(1).max()) for value in self.rounding.params.values() if value.dim() > 1]
        return (1 + size) * (1 + max(weights, default=0.0))

    def range_of(self, x: Floats, radius: np.float32, classes: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns what the margins [n] of these samples, always the same, lie between at a radius; the upper end is the host's bound.

        The lower end is what the file says in float64, less what it charges for rounding, base and twin together: four times that, as the
        charges of a layer may pass the next ones in one direction alone. Of a quantised network it is what the file says in float64 that
        pays four times as much: what float32 rounds is at most what is charged for the network's own roundings.
        """
        key = (float(radius), classes.tobytes())
        if key not in self._known:
            epsilon = Fraction(float(radius))
            host, exact = self.host(x, epsilon, classes), self._least(x, epsilon, classes, self.real)
            if self._loose is not None:
                least = _executed(self._loose, x, float(radius), _one_hot(classes, self.graph))[1]
            else:
                written_class, written = self.written(x, float(radius))
                # Of a tie float64 may name another class.
                least = np.where(written_class == classes, written - 4 * (exact - written), -np.inf)
            self._known[key] = (least, host)
        return self._known[key]

    def host(self, x: Floats, epsilon: Fraction, classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns lower bounds [n] of the least margin as any device computes it: float64 intervals, the last layers folded."""
        return self._least(x, epsilon, classes, self.rounding)

    def logits(self, x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns the ends [n, classes] of what devices compute at the points themselves."""
        low, high = self._boxes(x, Fraction(0), self.rounding)[self.graph.output]
        return low.numpy(), high.numpy()

    def written(self, x: Floats, epsilon: float, classes: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns class and margin [n] as the file computes them where nothing is rounded to less than float64.

        `classes` [n] are those that a quantised network names, which is not executed here.
        """
        logits = None if classes is None or self._loose is None else _one_hot(classes, self.graph)
        return _executed(self._written, x, epsilon, logits)

    def _boxes(self, x: Floats, epsilon: Fraction, rounding: Rounding) -> dict[str, tuple[Tensor, Tensor]]:
        with torch.no_grad():
            return interval(self.graph, rounding.params, ball(torch.from_numpy(x), epsilon, self.clip), rounding)

    def _least(self, x: Floats, epsilon: Fraction, classes: NDArray[np.int64], rounding: Rounding) -> NDArray[np.float64]:
        boxes = self._boxes(x, epsilon, rounding)
        rows = margin_rows(torch.from_numpy(classes), self.graph.shape_of(self.graph.output)[0])
        with torch.no_grad():
            least: NDArray[np.float64] = last_layer_folding(self.graph, rounding.params, rows, boxes, rounding).min(1).values.numpy()
        return least


def _one_hot(classes: NDArray[np.int64], graph: Graph) -> NDArray[np.float64]:
    """Returns logits [n, classes] of which these are the largest."""
    return np.eye(graph.shape_of(graph.output)[0])[classes]


def _executed(
    file: ReferenceEvaluator, x: Floats, epsilon: float, logits: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns class and margin [n] of an execution of a file in float64; `logits` [n, classes] where they are an input."""
    feed = {INPUT: x.astype(np.float64), EPSILON: np.array(epsilon, np.float64)}
    feed |= {} if logits is None else {OUTPUT: logits}
    with np.errstate(all="ignore"):
        classes, margins = file.run([CLASS, MARGIN], feed)
    return np.asarray(classes), np.asarray(margins, np.float64)


def check_certifying(
    model: onnx.ModelProto,
    graph: Graph,
    clip: tuple[float, float],
    samples: Floats,
    radii: Sequence[np.float32],
    contract_name: str = "fp32",
) -> CertifyingRuns:
    """Executes a certifying file at every level, with one thread and two, alone and in batches, and on inputs that it must refuse.

    `samples` are float32 [n, *shape] within `clip`. Raises GateError for a margin above its bound, or one that another network than the
    written one would have; for logits outside their enclosure; for another class than that of the largest logit; and for a bound where
    there must be none.
    """
    bounds, data = MarginBounds(graph, model, clip, contract_name), model.SerializeToString()
    low, high = bounds.logits(samples)
    executions = 0
    rows: dict[np.float32, CertifiedAtRadius] = {}
    for level in LEVELS:
        for threads in THREADS:
            session = CertifyingSession(data, level, threads)
            where = f"optimisation level {level}, {threads} thread(s)"
            _check_refusals(session, samples[:1], clip, where)
            for radius in radii:
                whole = session.run(samples, radius)
                alone = [session.run(samples[i : i + 1], radius) for i in range(len(samples))]
                executions += 1 + len(alone)
                for logits, classes, margins in (whole, tuple(np.concatenate(parts) for parts in zip(*alone, strict=True))):
                    _check_logits(logits, classes, low, high, where)
                    host = _check_margins(bounds, samples, radius, classes, margins, where)
                    rows[radius] = CertifiedAtRadius(
                        epsilon=float(radius), certified=int((margins > 0).sum()), by_intervals=int((host > 0).sum())
                    )
    return CertifyingRuns(executions, tuple(rows.values()))


def _check_logits(logits: Floats, classes: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64], where: str) -> None:
    if not ((low <= logits) & (logits <= high)).all():
        raise GateError(f"the certifying file returns logits outside their enclosure ({where}); report this, and leave deploy.live out")
    if (classes != logits.argmax(1)).any():
        raise GateError(f"the certifying file names another class than that of the largest logit ({where}); leave deploy.live out")


def _check_margins(
    bounds: MarginBounds,
    samples: Floats,
    radius: np.float32,
    classes: NDArray[np.int64],
    margins: Floats,
    where: str,
) -> NDArray[np.float64]:
    """Returns the host's bounds, once the margins were found to be none above these, and none far below what the file says."""
    least, host = bounds.range_of(samples, radius, classes)
    above, below = margins > host + bounds.room, margins < least - bounds.room
    if (wrong := above | below | np.isnan(margins)).any():
        i = int(wrong.argmax())
        raise GateError(
            f"the certifying file returns the margin {margins[i]:.6g} at epsilon {float(radius):.6g}, where it stands for one from "
            f"{least[i]:.6g} to {host[i]:.6g} ({where}); the runtime executes something else: report this, and leave deploy.live out"
        )
    return host


def _check_refusals(session: CertifyingSession, sample: Floats, clip: tuple[float, float], where: str) -> None:
    """Raises GateError where a bound is returned for an input outside the data range, a radius that is none, or a NaN."""
    outside = [np.nextafter(np.float32(clip[0]), np.float32(-np.inf)), np.nextafter(np.float32(clip[1]), np.float32(np.inf))]
    cases: list[tuple[Any, Any]] = [(value, 0.0) for value in (np.nan, np.inf, -np.inf, *outside)]
    longest = np.float32(clip[1] - clip[0])
    cases += [(None, radius) for radius in (np.nan, np.inf, -np.inf, np.float32(-1e-30), np.nextafter(longest, np.float32(np.inf)))]
    for value, radius in cases:
        x = sample.copy()
        if value is not None:
            x.reshape(-1)[-1] = value
        margin = session.run(x, radius)[2]
        if not (margin == -np.inf).all():
            raise GateError(
                f"the certifying file returns the margin {margin[0]:g} where it must return none ({where}; input {value}, epsilon {radius})"
                "; report this, and leave deploy.live out"
            )


def _in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the file with its float32 numbers in float64: the reference evaluator computes in the type that it is given.

    A network in float16 stays as it is, and so does what it makes of the input; of a quantised one the logits become an input.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    if any(node.op_type == "QuantizeLinear" for node in wide.graph.node):
        own = [node for node in wide.graph.node if node.name.startswith(PREFIX)]
        del wide.graph.node[:]
        wide.graph.node.extend(own)
        logits = wide.graph.output.pop(next(i for i, one in enumerate(wide.graph.output) if one.name == OUTPUT))
        wide.graph.input.append(logits)
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return wide
