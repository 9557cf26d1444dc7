"""A quantised network as plain C99 (model.int8.c, .h and its weights), within the contract `int8`."""

from vsparse.stages.export.c_int8.emit import Int8Source, emit_int8_c, int8_prefix, require_int8_c_form
from vsparse.stages.export.c_int8.simulation import simulate_integers

__all__ = ["Int8Source", "emit_int8_c", "int8_prefix", "require_int8_c_form", "simulate_integers"]
