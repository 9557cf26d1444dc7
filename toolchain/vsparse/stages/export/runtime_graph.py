"""The graph that ONNX Runtime executes against the graph that was verified, operator by operator (docs/numerics.md, section 10)."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import LevelReport, RuntimeGraphReport
from vsparse.errors import GateError, InputError
from vsparse.graph import BatchNorm, Graph, macs
from vsparse.graph.fold import fold_batch_norm
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.quantised import integer_contract, is_quantised
from vsparse.graph.shapes import show
from vsparse.graph.to_onnx import to_onnx
from vsparse.stages.export.runtime_blocks import BLOCKS, in_rows
from vsparse.stages.export.runtime_context import NCHWC, Unknown
from vsparse.stages.export.runtime_form import foldable
from vsparse.stages.export.runtime_formats import require_one_value
from vsparse.stages.export.runtime_hashes import Algebra, Fingerprint
from vsparse.stages.export.runtime_reader import RuntimeFingerprints, called, read_runtime_graph
from vsparse.stages.export.runtime_reference import Reference

# The first one is the file itself, as the runtime loads it: it is compared to see that the file was read right.
LEVELS: dict[str, Any] = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
THREADS = (1, 2)
# Multiplications up to which two samples at once are read too, where the batch is free: what would mix them shows.
TWO_SAMPLES = 2**21


def check_runtime_graph(path: Path) -> RuntimeGraphReport:
    """Compares the network that ONNX Runtime executes, at each optimisation level, with the network as it is read from the file.

    Of both, each output is an expression of the inputs (`runtime_hashes`); they must be the same, weight by weight and operator by
    operator, up to what contracts leave open: the order inside a sum, terms that `bounds/fusion.py` charges as one sum, and identities
    that hold exactly. CPU provider, one and two threads; nothing is executed. At the level `disabled` this compares the reading of the
    file with the file; it is the only one for a file in the form that TensorRT reads.
    Raises GateError that names the first node of the runtime's graph that differs and the level, InputError for a file that cannot
    be read or that ONNX Runtime cannot load.
    """
    model = parse_model(path)
    comparison = GraphComparison(from_onnx(path), fixed_batch=_fixed_batch(model))
    norm = next((node for node in comparison.graph.nodes if isinstance(node, BatchNorm)), None)
    if norm is not None:
        raise GateError(
            f'ONNX Runtime folds the batch normalisation "{show(norm.name)}" of {path} into other weights, as it likes, so what runs is '
            f"not what is verified{_way_out(comparison.graph)}"
        )
    names = {tensor.name for tensor in model.graph.initializer}
    elsewhere = is_quantised(comparison.graph) and integer_contract(comparison.graph) == "int8-tensorrt"
    levels = list(LEVELS.items())[:1] if elsewhere else list(LEVELS.items())
    reports = []
    seen: set[bytes] = set()  # graphs that are the same network: levels and threads often make one
    with tempfile.TemporaryDirectory(prefix="vsparse-runtime-graph-") as folder:
        for level, setting in levels:
            for threads in THREADS:
                where = f"ONNX Runtime {onnxruntime.__version__} at optimisation level {level}"
                optimised = _optimise(path, setting, threads, Path(folder) / f"{level}.{threads}.onnx")
                digest = hashlib.sha256(optimised.graph.SerializeToString(deterministic=True)).digest()
                if digest in seen:
                    continue
                difference = comparison.difference(optimised)
                if difference is not None and level == "disabled" and not difference.unknown:
                    raise GateError(
                        f"{path} is read as another network than ONNX Runtime executes: {difference}; nothing can be said about this file, "
                        "whose reading is a fault in vsparse; please report it, and export the network with other operators there"
                    )
                if difference is not None:
                    raise GateError(
                        f"{where} executes another network than the one in {path}: {difference}; so what runs is not what is verified"
                        + _way_out(comparison.graph)
                    )
                require_one_value(optimised, where)
                seen.add(digest)
            reports.append(_level(level, model, optimised))
    return RuntimeGraphReport(
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        content_sha256=content_sha256(model),
        initializers=len(names),
        levels=tuple(reports[1:]),
        unoptimised=reports[0],
        threads=THREADS,
        batches=comparison.batches,
        compared=prod(comparison.graph.shape_of(comparison.graph.output)),
        foldable=foldable(model),
    )


@dataclass(frozen=True)
class Difference:
    """Where a runtime's graph is another network, in words; `unknown` where it only cannot be followed."""

    text: str
    unknown: bool = False

    def __str__(self) -> str:
        return self.text


class GraphComparison:
    """A graph, as it was read, ready to be compared with what a runtime made of its file."""

    def __init__(self, graph: Graph, fixed_batch: bool) -> None:
        self.graph = graph
        small = macs(graph) <= TWO_SAMPLES
        self.batches = (1, 2) if small and not fixed_batch else (1,)
        self._algebra, self._one_sample = Algebra(), fixed_batch
        self._references: dict[int, Reference] = {}

    def difference(self, optimised: onnx.ModelProto) -> Difference | None:
        """Returns in words where the runtime's graph computes something else than the graph, None where it is the same network."""
        for batch in self.batches:
            if batch not in self._references:
                self._references[batch] = Reference(self.graph, self._algebra, batch, self._one_sample)
            reference = self._references[batch]
            try:
                found = read_runtime_graph(optimised, reference, block_size(optimised, self.graph))
            except Unknown as reason:
                return Difference(str(reason), unknown=True)
            if not same(found.output, reference.output):
                return Difference(first_difference(found, optimised) + ("" if batch == 1 else f" (in a batch of {batch})"))
        return None


def same(found: Any, wanted: Fingerprint) -> bool:
    """Returns whether two outputs are the same expressions."""
    return isinstance(found, Fingerprint) and not found.integers and np.array_equal(found.hashes, wanted.hashes)


def first_difference(found: RuntimeFingerprints, model: onnx.ModelProto) -> str:
    """Names the first node from which on nothing that the output is made of is in the file's network."""
    lost = {model.graph.output[0].name}
    named = None
    for node in reversed(found.nodes):
        if any(name in lost for name in node.output) and not found.is_known(node):
            named = node
            lost.update(node.input)
    if named is None:
        last = found.nodes[-1] if found.nodes else None
        return "the elements of its output" + (f", made by {called(last)}," if last is not None else "") + " are others of the network's"
    return f"{called(named)} computes what is nowhere in the network as it was read"


def block_size(optimised: onnx.ModelProto, graph: Graph) -> int:
    """Returns how many channels a block of the runtime's vector kernels has: the size that gives most of the file's weights back.

    A factor for each channel, which the runtime makes a Conv of, is no weight of the file: there the size is one that its rows fit.
    """
    tensors = {tensor.name: tensor for tensor in optimised.graph.initializer}
    ours = [array for array in graph.params.values() if array.ndim == 4]
    found, fitting = dict.fromkeys(BLOCKS, 0), dict.fromkeys(BLOCKS, 0)
    for node in optimised.graph.node:
        if node.domain != NCHWC or node.op_type != "Conv" or node.input[1] not in tensors:
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        for block in BLOCKS:
            try:
                rows = in_rows(weight, block, groups)
            except Unknown:
                continue
            fitting[block] += 1
            found[block] += any(np.array_equal(rows[: one.shape[0], : one.shape[1]], one) for one in ours)
    return max(BLOCKS, key=lambda block: (found[block], fitting[block]))


def _fixed_batch(model: onnx.ModelProto) -> bool:
    constants = {tensor.name for tensor in model.graph.initializer}
    value = next(one for one in model.graph.input if one.name not in constants)
    return bool(value.type.tensor_type.shape.dim[0].HasField("dim_value"))


def _optimise(path: Path, level: Any, threads: int, out: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(out)
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # it warns that a model optimised for this machine should not be moved: it is not
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception types share no base class but Exception
        raise InputError(
            f"model {path} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {show(str(error).splitlines()[0], 300)}"
        ) from error
    return parse_model(out)


def _level(level: str, model: onnx.ModelProto, optimised: onnx.ModelProto) -> LevelReport:
    def contents(one: onnx.ModelProto) -> list[bytes]:
        tensors = [(numpy_helper.to_array(tensor), tensor.data_type) for tensor in one.graph.initializer]
        # What is stored in bfloat16 a runtime may keep in float32, which changes no number.
        arrays = [array.astype(np.float32) if kind == onnx.TensorProto.BFLOAT16 else array for array, kind in tensors]
        return [f"{array.dtype.str}{array.shape}".encode() + array.tobytes() for array in arrays]

    ours, theirs = set(contents(model)), contents(optimised)
    identical = sum(one in ours for one in theirs)
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in optimised.graph.node)
    return LevelReport(
        level=level,
        identical=identical,
        reordered=len(theirs) - identical,
        operators=dict(sorted(operators.items())),
        activations=len(optimised.graph.node),
    )


def _way_out(graph: Graph) -> str:
    """Returns an advice that was tried: the export, where the file that it writes passes; else the contract about no runtime."""
    with tempfile.TemporaryDirectory(prefix="vsparse-runtime-graph-") as folder:
        path = Path(folder) / "folded.onnx"
        try:
            folded = fold_batch_norm(graph, constants=True)
            path.write_bytes(to_onnx(folded).SerializeToString())
            batch = GraphComparison(from_onnx(path), fixed_batch=True)
            passes = all(
                batch.difference(_optimise(path, setting, 1, path.with_suffix(f".{level}"))) is None for level, setting in LEVELS.items()
            )
        except (GateError, InputError):
            passes = False
    if passes:
        return "; `vsparse export MODEL` writes a file that it leaves alone"
    return "; `--contract real` asks about the network in the file, without a runtime"
