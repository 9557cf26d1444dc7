"""What the export stage writes for a target that lists C: model.c and model.h beside the ONNX file, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from vsparse.artifact.document import read_if_there, write_document
from vsparse.artifact.hashes import content_sha256, parse_model
from vsparse.artifact.models import CAnalysis, CFootprint, CSourceRecord
from vsparse.c_prefix import DEFAULT_PREFIX
from vsparse.errors import InputError, UnavailableError
from vsparse.graph.from_onnx import from_onnx
from vsparse.graph.ir import Graph
from vsparse.stages.export.c_source.costs import COSTS, KernelCosts
from vsparse.stages.export.c_source.emit import SOURCE, CSource, emit_c
from vsparse.stages.export.c_source.eva import EvaRequest, analyse
from vsparse.stages.export.c_source.text import CFiles
from vsparse.stages.export.c_source.weights import Notation
from vsparse.stages.export.firmware.link import OPTIONS, footprint

RECORD = "c_source.json"
F = TypeVar("F", bound=CFiles)


@dataclass(frozen=True)
class CRequest:
    """How C is written: what its names begin with, the notation of its weights, and what is to be recorded of it beside.

    `machine` are the compiler's options for a microcontroller: what the C takes of it is recorded too, where its compiler is at hand.
    `costs` choose the kernels of the text with vectors. `eva` is what is asked of Frama-C, where it is at hand.
    """

    prefix: str = DEFAULT_PREFIX
    machine: tuple[str, ...] = ()
    costs: KernelCosts = COSTS
    weights: Notation = "auto"
    eva: EvaRequest | None = None


AS_IT_COMES = CRequest()


def write_c(model: Path, title: str, asked: CRequest = AS_IT_COMES, emit: Callable[..., CSource] = emit_c) -> bool:
    """Writes model.c, model.h and c_source.json beside an ONNX file, from that file as it is on disk; returns whether it has a C form.

    `emit` makes the files, as `emit_c` does. A network with an operator that has no C form is deployed as ONNX alone, and c_source.json
    says why.
    """

    def emitted(graph: Graph, model_sha256: str, weights: Notation = asked.weights) -> CSource:
        return emit(graph, model_sha256, title, asked.prefix, asked.costs, weights)

    def as_text() -> Mapping[str, str | bytes]:
        return emitted(from_onnx(model), content_sha256(parse_model(model)), "text").files()

    def recorded(source: CSource) -> CSourceRecord:
        return CSourceRecord(
            written=True,
            reason="",
            files=tuple(source.files()),
            contract="sequential",
            constant_bytes=source.vector.constant_bytes,
            static_bytes=source.vector.arena_bytes,
            scalar_constant_bytes=source.scalar.constant_bytes,
            scalar_static_bytes=source.scalar.arena_bytes,
            prefix=asked.prefix,
            footprint=footprint_of(model.with_name(SOURCE), asked.prefix, asked.machine),
            analysis=analysis_of(as_text, SOURCE, asked.prefix, asked.eva),
        )

    return write_recorded(model, RECORD, emitted, recorded)


def write_recorded(model: Path, record: str, emit: Callable[[Graph, str], F], recorded: Callable[[F], CSourceRecord]) -> bool:
    """Writes the C of an ONNX file beside it, and the record of that name; returns whether it has a C form: the record says why not."""
    path = model.with_name(record)
    try:
        source = emit(from_onnx(model), content_sha256(parse_model(model)))
    except InputError as error:
        write_document(path, CSourceRecord(written=False, reason=str(error)))
        return False
    source.write(model.parent)
    write_document(path, recorded(source))
    return True


def prefix_of(source: Path, name: str = RECORD) -> str:
    """Returns the prefix that the recipe gave the names of a C source, by the record beside it; the default where there is none."""
    record = read_if_there(CSourceRecord, source.with_name(name))
    return DEFAULT_PREFIX if record is None else record.prefix


def footprint_of(source: Path, prefix: str, machine: Sequence[str]) -> CFootprint | None:
    """Returns what a network in C takes of a microcontroller; None for another machine, and where its compiler is not at hand."""
    if not machine:
        return None
    try:
        found = footprint(machine, source, prefix)
    except UnavailableError:
        return None
    return CFootprint(**{**asdict(found), "stack_bytes": found.stack_bytes or None}, options=(*machine, *OPTIONS))


def analysis_of(files: Callable[[], Mapping[str, str | bytes]], source: str, prefix: str, asked: EvaRequest | None) -> CAnalysis | None:
    """Returns what Frama-C says of a network in C whose `files` have weights as text; None where it is not asked, or not at hand."""
    if asked is None:
        return None
    try:
        return analyse(files(), source, prefix, asked)
    except UnavailableError:
        return None
