"""Half-precision networks: every parameter rounded to float16, the graph marked as storing fp16 (docs/numerics.md, section 8)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vsparse.errors import InputError
from vsparse.graph import Graph, validate
from vsparse.graph.quantised import is_quantised
from vsparse.graph.shapes import show


def half(graph: Graph) -> Graph:
    """Returns the graph with parameters that are float16 numbers; those below the smallest one become zero.

    Raises InputError that names a parameter that is too large, and for a quantised graph.
    """
    if is_quantised(graph):
        raise InputError("the network is quantised; round the float32 one to half precision")
    params = {}
    for name, value in graph.params.items():
        with np.errstate(over="ignore", under="ignore"):
            params[name] = value.astype(np.float16).astype(np.float32)
        if not np.isfinite(params[name]).all():
            raise InputError(f'the parameter "{show(name)}" is beyond 65504, the largest float16 number; leave fp16 out, or rescale')
    return validate(replace(graph, params=params, integers={}, storage="fp16"))
