"""Fast paths that are broken on purpose: an attack that finds nothing in them is no attack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from vsparse.bounds.choices import Choices
from vsparse.graph.ir import Affine, Conv

# The package offers functions under the names of some of its modules.
affine, both_ends, convolution, crown, last_layers, piecewise, pooling, proof, windows = (
    import_module(f"vsparse.bounds.{name}")
    for name in (
        "operators.affine",
        "both_ends",
        "convolution",
        "crown",
        "last_layers",
        "operators.piecewise",
        "operators.pooling",
        "proof",
        "windows",
    )
)

# What each mutation breaks.
PATH_MUTATIONS: dict[str, str] = {
    "padding between convolutions": "on receptive fields, positions in the padding of a convolution get its bias and its weights",
    "other end without slack": "the other end of a row forgets how far a ReLU may be above the line below it",
    "windows shifted": "receptive fields count the padding of the other side",
    "matrix of another order": "the matrix of a small transposed convolution has its rows reversed",
    "pieces of another sample": "pieces of a batch take the boxes of the first samples",
    "folded without bias": "rows folded into the last layers forget their biases",
    "stable too early": "a ReLU counts as active from −1/4 of its upper bound on",
    "scaling without bias": "a convolution of single numbers forgets its bias",
    "splits turned round": "a part of the region where a ReLU's input is positive takes it as off, and the other way round",
    "leaves thrown away": "a part of the region counts as empty although its split can hold",
}


def mutated_path(name: str, patch: Callable[[Any, str, Any], None]) -> None:
    """Breaks a fast path by the mutation of that name; `patch` is `setattr`, or undoes itself."""
    if name == "padding between convolutions":
        made = windows.Windows.__init__

        def unmasked(self: Any, *arguments: Any) -> None:
            made(self, *arguments)
            self.padding = {}

        patch(windows.Windows, "__init__", unmasked)
    elif name == "other end without slack":
        lines = both_ends.relu_lines
        for owner in (both_ends, windows):
            patch(owner, "relu_lines", lambda *given: lines(*given)._replace(gap=torch.zeros_like(given[0][0])))
    elif name == "windows shifted":
        geometry = windows._geometry
        turned = lambda node: replace(node, pads=node.pads[2:] + node.pads[:2]) if isinstance(node, Conv) else node  # noqa: E731
        patch(windows, "_geometry", lambda chain, params: geometry([turned(node) for node in chain], params))
    elif name == "matrix of another order":
        right, small = convolution.transposed_convolution, convolution.by_matrix

        def reversed_(geometry: Any, weight: Any, a: Any, shape: Any) -> Any:
            return right(geometry, weight, a.flatten(1).flip(1).view_as(a) if small(geometry, weight, a, shape) else a, shape)

        for module in (affine, pooling):
            patch(module, "transposed_convolution", reversed_)
    elif name == "pieces of another sample":
        patch(crown, "_samples", lambda box, start, count: tuple(end[: len(end[start : start + count])] for end in box))
    elif name == "folded without bias":
        bounded = last_layers.crown
        bare = lambda graph: replace(  # noqa: E731
            graph, nodes=tuple(replace(node, bias=None) if isinstance(node, Affine) else node for node in graph.nodes)
        )
        patch(last_layers, "crown", lambda graph, *arguments: bounded(bare(graph), *arguments))
    elif name == "stable too early":
        right = piecewise.relu_relaxation
        early = lambda low, up, outward: right(torch.where(low > -up / 4, low.clamp(min=0), low), up, outward)  # noqa: E731
        patch(piecewise, "relu_relaxation", early)
    elif name == "scaling without bias":
        scaling = affine.scaling
        patch(affine, "scaling", lambda weight, x, bias=None: scaling(weight, x))
    elif name == "splits turned round":
        chosen = Choices.relu_relaxation

        def turned_round(self: Choices, *arguments: Any) -> Any:
            return chosen(replace(self, splits={key: -value for key, value in self.splits.items()}), *arguments)

        patch(Choices, "relu_relaxation", turned_round)
    elif name == "leaves thrown away":
        bounds = proof.leaf_bounds

        def shrunk(graph: Any, rounding: Any, box: Any, boxes: Any, *arguments: Any, **named: Any) -> Any:
            halved = {key: (lower + 0.75 * (upper - lower), upper) for key, (lower, upper) in boxes.items()}
            return bounds(graph, rounding, box, halved, *arguments, **named)

        patch(proof, "leaf_bounds", shrunk)
        patch(import_module("vsparse.search.branch_and_bound"), "leaf_bounds", shrunk)
    else:
        raise KeyError(name)
