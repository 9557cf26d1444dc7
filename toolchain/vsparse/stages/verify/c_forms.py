"""The networks in C by the name of their form: what their certificates follow from, and what their audits execute."""

from __future__ import annotations

from vsparse.artifact.forms import INT8_C, SEQUENTIAL
from vsparse.contract import CONTRACTS
from vsparse.stages.export.c_int8 import simulate_integers
from vsparse.stages.export.c_int8.stage import int8_prefix_of
from vsparse.stages.verify.sequential import FLOAT_C, CForm

INTEGER_C = CForm(
    "model.int8.c",
    CONTRACTS["int8"],
    CONTRACTS["int8"],
    {"runtime": "model.int8.c", "fused_multiply_add": "no", "batch": "1"},
    "what is certified here was proved for every execution within contract int8; that of model.int8.c is one of them",
    simulate_integers,
    int8_prefix_of,
    "model.int8.c does not compute what it states",
)
C_FORMS: dict[str, CForm] = {SEQUENTIAL.name: FLOAT_C, INT8_C.name: INTEGER_C}
