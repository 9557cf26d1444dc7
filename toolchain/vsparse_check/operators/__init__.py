"""All kinds of operators: how each is read, executed and bounded, a file for each family.

RULES: by kind (`Op.kind`), the steps of the theorem. ONNX: by ONNX operator, how it is read. To
add an operator, write its functions into the file of its family, and its lines into the tables
there.
"""

from __future__ import annotations

from vsparse_check.onnx_rules import OnnxRule
from vsparse_check.operators import (
    affine,
    arithmetic,
    moves,
    piecewise,
    pooling,
    quantised,
    sigmoidal,
)
from vsparse_check.rules import OperatorRules

FAMILIES = (affine, pooling, arithmetic, moves, piecewise, sigmoidal, quantised)
RULES: dict[str, OperatorRules] = {
    kind: rules for family in FAMILIES for kind, rules in family.RULES.items()
}
ONNX: dict[str, OnnxRule] = {
    name: rule for family in FAMILIES for name, rule in family.ONNX.items()
}
