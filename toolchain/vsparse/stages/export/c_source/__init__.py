"""The network as plain C99 (model.c, model.h), in the one order of summation of the contract `sequential`."""

from vsparse.stages.export.c_source.compile import CompiledModel, compiler_version, find_compiler
from vsparse.stages.export.c_source.emit import HEADER, SOURCE, CSource, emit_c
from vsparse.stages.export.c_source.simulation import simulate

__all__ = ["HEADER", "SOURCE", "CSource", "CompiledModel", "compiler_version", "emit_c", "find_compiler", "simulate"]
