"""Properties in VNN-LIB 1.0: untrusted files read into exact numbers, and written."""

from vsparse.vnnlib.parse import read_vnnlib
from vsparse.vnnlib.query import Case, Conjunction, Constraint, InputBox, Query, rounded_up, satisfied
from vsparse.vnnlib.write import decimal, vnnlib_text, write_vnnlib

__all__ = [
    "Case",
    "Conjunction",
    "Constraint",
    "InputBox",
    "Query",
    "decimal",
    "read_vnnlib",
    "rounded_up",
    "satisfied",
    "vnnlib_text",
    "write_vnnlib",
]
