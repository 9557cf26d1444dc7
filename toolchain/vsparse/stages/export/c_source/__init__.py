"""The network as plain C99 (model.c, model.h), in the one order of summation of the contract `sequential`."""

from vsparse.stages.export.c_source.compile import CompiledModel, compiler_version, find_compiler
from vsparse.stages.export.c_source.emit import HEADER, SOURCE, WEIGHTS, CSource, emit_c, require_c_form
from vsparse.stages.export.c_source.simulation import simulate

__all__ = [
    "HEADER",
    "SOURCE",
    "WEIGHTS",
    "CSource",
    "CompiledModel",
    "compiler_version",
    "emit_c",
    "find_compiler",
    "require_c_form",
    "simulate",
]
