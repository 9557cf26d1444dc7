"""What fingerprints know of a function of one number that has no identities: the name of its ONNX operator, and its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsparse.graph import Graph, Unary
from vsparse.graph.rules import onnx_form


def described(kind: str, attributes: Mapping[str, Any]) -> str:
    """Returns a text for an ONNX operator and its attributes, with those that are left out as ONNX's description has them.

    Two calls have one text if and only if they compute one function.
    """
    known = onnx.defs.get_schema(kind).attributes
    defaults = {name: onnx.helper.get_attribute_value(one.default_value) for name, one in known.items() if one.default_value.name}
    parts = sorted({**defaults, **attributes}.items())
    return " ".join([kind, *(f"{name}={_text(value)}" for name, value in parts)])


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    # Files hold attributes in float32.
    return np.float32(value).item().hex() if isinstance(value, float) else str(value)


class _NoNames:
    """A writer for nodes that are attributes and nothing else."""

    float_type: type[np.floating[Any]] = np.float32

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def param(self, name: str, transposed: bool = False) -> str:
        raise ValueError(f'a function of one number has the parameter "{name}"')

    def store(self, name: str, value: NDArray[Any]) -> str:
        raise ValueError(f'a function of one number has the constant "{name}"')


def function_name(node: Unary, graph: Graph) -> str:
    """Returns the text of the ONNX operator that a node is."""
    kind, _, attributes = onnx_form(node, _NoNames(graph))
    return described(kind, attributes)
