"""How one ONNX operator is read: the attributes it may have, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vsparse_check.op import Op
from vsparse_check.tensors import OnnxNode, ShapedActivation, TensorTable

# An operator; or an activation under another shape, where a node moves and computes nothing; or
# nothing, where a node only says how something is stored.
OnnxReading = Op | ShapedActivation | None


class OnnxRule(NamedTuple):
    """One line of the table ONNX in operators/__init__.py.

    `attributes`: those it may have; one with a value must have exactly it. `inputs`: at most so
    many. `commutes`: a parameter may be its first input, and the activation its second.
    """

    read: Callable[[OnnxNode, TensorTable], OnnxReading]
    attributes: Mapping[str, Any]
    inputs: int = 1
    commutes: bool = False
