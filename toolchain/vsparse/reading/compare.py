"""A file against its reading: shapes by ONNX's strict inference, values by ONNX Runtime at every optimisation level.

Levels that leave the graph alone are compared node by node: each value must lie in what the node, as it was read, makes of the values
that the runtime itself fed in. Optimised graphs have no such values, and their output must lie in the enclosure of the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsparse.bounds import Box
from vsparse.errors import GateError, InputError
from vsparse.files import read_bytes
from vsparse.graph.cost import macs
from vsparse.graph.from_onnx import Reading, read_onnx
from vsparse.graph.ir import Graph, Node
from vsparse.graph.onnx_file import MAX_ONNX_BYTES, in_order, label
from vsparse.graph.shapes import show
from vsparse.reading.enclosure import Enclosure
from vsparse.reading.evidence import ReadingEvidence
from vsparse.reading.integer_kernels import adds_bytes_exactly
from vsparse.reading.points import Asked, probes
from vsparse.reading.runtime import LEVELS, VERSION, Level, Runtime
from vsparse.reading.shapes import compare_shapes, inferred, is_float

THREADS = (1, 2)
# Why a file in TensorRT's form is not executed in ONNX Runtime's integer kernels.
FOR_TENSORRT = "8-bit weights are TensorRT's: ONNX Runtime's integer kernels saturate them on processors without VNNI"
SATURATES = "8-bit weights: ONNX Runtime's integer kernels saturate their products on this processor"
# Points are executed one, three, one, three … at a time where a file's batch is symbolic.
BATCHES = (1, 3)
# How many points: as many as this many multiply-accumulates allow, within these limits.
WORK, FEWEST, MOST = 2e8, 3, 32
# Activations of all points that are held at a time.
HELD = 2**23
# Values that are exposed one by one in an optimised graph to find the first that differs; beyond, by halving.
ONE_BY_ONE = 24


def check_reading(
    source: Path | bytes, reading: Reading | None = None, *, where: str = "", asked: Asked | None = None, optimised: bool = True
) -> ReadingEvidence:
    """Executes an ONNX file and compares it with its reading; returns the evidence that nothing differs.

    `source` is a path or the file's bytes, `reading` what `read_onnx` made of it (default: read here), `where` its name in errors and
    `asked` the region that is asked about. Each value at up to `MOST` points (fewer of large networks) must lie in the enclosure that
    docs/numerics.md, section 9.1, describes; where an enclosure is infinite, as an overflow is possible, nothing is compared. Work is
    bounded, and the same file gives the same evidence. Without `optimised` only the file itself is executed, and not what a runtime's
    optimisers make of it: a claim under the contract `real` is about no execution.

    Raises InputError where the file is not read as the runtime reads it, GateError where only an optimised graph computes something else;
    both name the first node that differs and its operator.
    """
    where = where or (f"model {source}" if isinstance(source, Path) else "the model")
    data = source if isinstance(source, bytes) else read_bytes(source, "model", MAX_ONNX_BYTES)
    reading = reading or read_onnx(data, where.removeprefix("model "))
    model = onnx.ModelProto()
    model.ParseFromString(data)
    _sort(model.graph)
    producers = {name: label(node, index) for index, node in enumerate(model.graph.node) for name in node.output}
    types = inferred(model, where)
    shapes = compare_shapes(model, types, reading, where, producers)
    levels, unchecked = tuple(LEVELS) if optimised else tuple(LEVELS)[:1], ""
    try:
        enclosure = Enclosure(reading.graph)
    except InputError as refusal:
        levels, unchecked = levels[:1], str(refusal)
        try:
            enclosure = Enclosure(reading.graph, one_by_one=True)
        except InputError:
            return ReadingEvidence(
                contract="",
                levels=(),
                threads=(),
                batches=(),
                points=0,
                executions=0,
                shapes_compared=shapes,
                values_compared=0,
                largest_share=0.0,
                largest_share_at="",
                unchecked=unchecked,
            )
    if enclosure.contract.name == "int8-tensorrt":
        levels, unchecked = levels[:1], FOR_TENSORRT
    elif enclosure.contract.name == "int8-exact" and optimised and not adds_bytes_exactly():
        levels, unchecked = levels[:1], SATURATES
    return _Comparison(data, model, reading, where, producers, types, enclosure, asked or Asked(), levels).evidence(shapes, unchecked)


@dataclass
class _Comparison:
    """One file under comparison."""

    data: bytes
    model: onnx.ModelProto
    reading: Reading
    where: str
    producers: Mapping[str, str]
    types: Mapping[str, onnx.TypeProto]
    enclosure: Enclosure
    asked: Asked
    levels: tuple[Level, ...]
    executions: int = 0
    values: int = 0
    fraction: float = 0.0
    fraction_at: str = ""
    tensors: dict[str, list[str]] = field(default_factory=dict)

    def evidence(self, shapes: int, unchecked: str) -> ReadingEvidence:
        """Executes everything and returns what was done; raises where something differs."""
        graph = self.reading.graph
        held = sum(node.size for node in graph.nodes) + 1
        points = probes(graph.input_shape, self.asked, point_count(graph))
        for name in (name for node in self.model.graph.node for name in node.output):
            read = self.reading.tensors.get(name)
            if read is not None and read.activation not in (None, graph.input) and (name not in self.types or is_float(self.types[name])):
                self.tensors.setdefault(str(read.activation), []).append(name)
        with torch.no_grad():
            step = max(1, HELD // held)
            if self.tensors:
                exposed = Runtime(self.exposing([name for names in self.tensors.values() for name in names]), "disable")
                for start in range(0, len(points), step):
                    self.compare_nodes(exposed, points[start : start + step])
            output = self.model.graph.output[0].name
            boxes = [self.enclosure.at(_wide(points[start : start + step]))[graph.output] for start in range(0, len(points), step)]
            box = torch.cat([lower for lower, _ in boxes]), torch.cat([upper for _, upper in boxes])
            for level in self.levels:
                for threads in THREADS[1:] if level == "disable" and self.tensors else THREADS:  # with one it was compared node by node
                    self.compare_output(level, threads, points, output, box)
        batches = BATCHES if self.reading.batch is None else BATCHES[:1]
        return ReadingEvidence(
            contract=self.enclosure.contract.name,
            levels=self.levels,
            threads=THREADS,
            batches=batches,
            points=len(points),
            executions=self.executions,
            shapes_compared=shapes,
            values_compared=self.values,
            largest_share=float(f"{self.fraction:.3g}"),
            largest_share_at=self.fraction_at,
            unchecked=unchecked,
        )

    def compare_nodes(self, runtime: Runtime, points: NDArray[np.float32]) -> None:
        """Compares every exposed value of points [n, *shape] with what its node makes of the values that were fed in."""
        graph, rounding = self.reading.graph, self.enclosure.rounding
        seen = self.run(runtime, points, [name for names in self.tensors.values() for name in names], "disable", 1)
        boxes = self.enclosure.start(_wide(points))
        for node in graph.nodes:
            boxes[node.name] = self.enclosure.step(node, boxes)
            for position, name in enumerate(self.tensors.get(node.name, [])):
                value = torch.from_numpy(seen[name]).double().view(len(points), *node.shape)
                slack = rounding.read_error(node.name, value)
                self.within(value, boxes[node.name], slack, name, "disable", 1, points)
                if position == len(self.tensors[node.name]) - 1:
                    unknown = ~torch.isfinite(value)
                    boxes[node.name] = (
                        (value - slack).masked_fill(unknown, -torch.inf),
                        (value + slack).masked_fill(unknown, torch.inf),
                    )

    def compare_output(self, level: Level, threads: int, points: NDArray[np.float32], output: str, box: Box) -> None:
        """Compares the output at one level with the enclosure of the whole network."""
        seen = self.run(Runtime(self.data, level, threads), points, [output], level, threads)[output]
        value = torch.from_numpy(seen).double().view(box[0].shape)
        slack = self.enclosure.rounding.read_error(self.reading.graph.output, value)
        wrong = outside(value, box, slack)
        if wrong.any() and level != "disable":
            self.locate(level, threads, points[int(wrong.flatten(1).any(1).nonzero()[0])])
        self.within(value, box, slack, output, level, threads, points)

    def locate(self, level: Level, threads: int, point: NDArray[np.float32]) -> None:
        """Finds the first value that differs in an optimised graph, where exposing it does not undo the difference; raises for it."""
        boxes = self.enclosure.at(_wide(point[None]))
        names = [(node, name) for node in self.reading.graph.nodes for name in self.tensors.get(node.name, [])[:1]]

        def differs(position: int) -> bool:
            return self.shown(names[position], boxes, level, threads, point, raising=False)

        indices: Iterator[int] = iter(range(len(names)))
        if len(names) > ONE_BY_ONE:
            low, high = -1, len(names)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if differs(middle) else (middle, high)
            indices = iter(range(high, min(high + 1, len(names))))
        for position in indices:
            if differs(position):
                self.shown(names[position], boxes, level, threads, point, raising=True)

    def shown(
        self, at: tuple[Node, str], boxes: Mapping[str, Box], level: Level, threads: int, point: NDArray[np.float32], raising: bool
    ) -> bool:
        """Returns whether one exposed value leaves its enclosure, or raises for it."""
        node, name = at
        seen = self.run(Runtime(self.exposing([name]), level, threads), point[None], [name], level, threads)[name]
        value = torch.from_numpy(seen).double().view(1, *node.shape)
        slack = self.enclosure.rounding.read_error(node.name, value)
        if raising:
            self.within(value, boxes[node.name], slack, name, level, threads, point[None])
        return bool(outside(value, boxes[node.name], slack).any())

    def exposing(self, names: Sequence[str]) -> bytes:
        """Returns the file with further tensors as outputs."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        there = {value.name for value in model.graph.output}
        half = self.reading.graph.storage == "fp16"
        for name in names:
            if name not in there:
                kind = self.types[name].tensor_type.elem_type if name in self.types else 0
                kind = kind or (onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT)
                model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
        return bytes(model.SerializeToString())

    def run(
        self, runtime: Runtime, points: NDArray[np.float32], names: list[str], level: Level, threads: int
    ) -> dict[str, NDArray[np.float32]]:
        """Returns tensors [n, elements] by name for points, executed in turns of the batches; raises where a shape is another than read."""
        rows: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
        for piece in _pieces(len(points), BATCHES if self.reading.batch is None else (1,)):
            try:
                found = runtime.run_once(points[piece], names)
            except InputError as error:
                raise InputError(f"{self.where}: {error}; export it again") from error
            count = len(points[piece])
            self.executions += count
            for name, value in zip(names, found, strict=True):
                read = self.reading.tensors[name].shape
                wanted = tuple(count if size is None else size for size in read)
                if value.shape != wanted:
                    raise InputError(
                        f"{self.where} reads differently from ONNX Runtime {VERSION} at {self.producers[name]}: its output has the shape "
                        f"{list(value.shape)} there, and {list(wanted)} as it is read; export it with explicit axes, pads and shapes"
                    )
                rows[name].append(value.reshape(count, -1))
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def within(self, value: Tensor, box: Box, slack: Tensor, name: str, level: Level, threads: int, points: NDArray[np.float32]) -> None:
        """Raises where a value [n, *shape] leaves its box; keeps count of what was compared."""
        known = torch.isfinite(box[0]) & torch.isfinite(box[1])
        self.values += int(known.sum())
        wrong = outside(value, box, slack)
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            lower, upper = float((box[0] - slack)[first]), float((box[1] + slack)[first])
            got = f"{float(value[first]):.9g} where the file as it is read allows {lower:.9g} to {upper:.9g}"
            at = self.producers.get(name, f'the output "{show(name)}"')
            point = points[first[0]]
            about = f"on an input from {float(point.min()):.3g} to {float(point.max()):.3g}"
            if level == "disable":
                raise InputError(
                    f"{self.where} reads differently from ONNX Runtime {VERSION} at {at}: {about} it computes {got}; "
                    "export the network with another operator there, or with another opset"
                )
            raise GateError(
                f"{self.where} is executed as another network by ONNX Runtime {VERSION} at optimisation level {level} with {threads} "
                f"thread(s): {about} {at} comes out as {got}; export the network with another operator there"
            )
        half = (box[1] - box[0]) * 0.5 + slack
        used = torch.where(known & (half > 0), (value - (box[0] + half - slack)).abs() / half, 0.0)
        if used.numel() and (most := min(1.0, float(used.max()))) > self.fraction:
            self.fraction, self.fraction_at = most, self.producers.get(name, show(name))


def point_count(graph: Graph) -> int:
    """Returns how many points of a network are executed: as many as bounded work allows."""
    return int(min(MOST, max(FEWEST, WORK // (macs(graph) + 8 * sum(node.size for node in graph.nodes) + 1))))


def outside(value: Tensor, box: Box, slack: Tensor) -> Tensor:
    """Returns where a value leaves a finite box, widened by `slack`; so written that a NaN is outside."""
    known = torch.isfinite(box[0]) & torch.isfinite(box[1])
    return known & ~((value >= box[0] - slack) & (value <= box[1] + slack))


def _pieces(count: int, batches: Sequence[int]) -> Iterator[slice]:
    start, turn = 0, 0
    while start < count:
        stop = min(count, start + batches[turn % len(batches)])
        yield slice(start, stop)
        start, turn = stop, turn + 1


def _wide(points: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(points)).double()


def _sort(graph: onnx.GraphProto) -> None:
    """Puts the nodes in the order in which they are executed, as inference wants them."""
    nodes = list(graph.node)
    order = in_order(nodes, {*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)})
    if any(one is not other for one, other in zip(nodes, order, strict=True)):
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
        del graph.node[:]
        graph.node.extend(kept)
