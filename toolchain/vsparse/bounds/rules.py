"""The rules of an operator that the engines of bounds walk over, and the table that they are looked up in.

Each module of `vsparse.bounds.operators` holds the rules of one family and puts them into the table; engines know no operator by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from vsparse.bounds.affine_forms import AffineForm, ZonotopePass
from vsparse.bounds.backward import CrownPass
from vsparse.bounds.ball import Box
from vsparse.bounds.error_model import ErrorModel, SumKernels
from vsparse.bounds.float64 import magnitude
from vsparse.errors import InputError
from vsparse.graph.ir import Node, Shape

Params = Mapping[str, Tensor]
N = TypeVar("N", bound=Node)
Rule = Literal["interval", "backward", "zonotope", "error"]
# Each engine's message about a node whose operator has no rule for it.
MISSING: dict[Rule, str] = {
    "interval": "for which there are no bounds",
    "backward": "through which no linear bound is known",
    "zonotope": "for which no zonotope is known",
    "error": "for which no rounding error is known",
}


class BoundRules(Generic[N]):
    """What the engines know of one operator; one that has no rule for an engine is refused by it (`require`).

    `interval`, `backward`, `zonotope` and `error` are the rules; the rest has defaults, which are those of an operator that is linear or
    that no box shapes the bounds of.
    """

    # Whether it is an affine map of its inputs, so that rows of coefficients pass through it without any relaxation.
    linear: ClassVar[bool] = False
    # What a runtime may make of it in one sum (`fusion`): it starts one as an affine operator does, adds its inputs and parameters to one,
    # or hands one on.
    in_sums: ClassVar[Literal["starts", "adds", "passes"] | None] = None
    # Whether its execution rounds nothing under any contract without integers: E is 0 wherever nothing overflows.
    exact: ClassVar[bool] = False

    def __init__(self) -> None:
        self.known = frozenset(rule for rule in MISSING if getattr(type(self), rule) is not getattr(BoundRules, rule))

    def interval(self, node: N, params: Params, inputs: list[Box]) -> Box:
        """Returns the box of the output from those of the inputs, in plain arithmetic of any dtype, differentiable."""
        raise refusal(node, "interval")

    def backward(self, node: N, a: Tensor, state: CrownPass) -> None:
        """Passes the coefficients a [batch, rows, size] of the output on to the inputs."""
        raise refusal(node, "backward")

    def zonotope(self, node: N, inputs: list[AffineForm], box: Box, state: ZonotopePass) -> AffineForm:
        """Returns the form of the exact operator on deployed inputs, with float64's rounding in its rest; `box` is its interval."""
        raise refusal(node, "zonotope")

    def error(self, node: N, model: ErrorModel, boxes: Mapping[str, Box], box: Box) -> tuple[Tensor, Tensor]:
        """Returns E and the largest magnitude on the way, each [batch, *node.shape]; `boxes` and `box` as for `Rounding.error`."""
        raise refusal(node, "error")

    def unstable(self, node: N, lower: Tensor, upper: Tensor) -> Tensor | None:
        """Returns where the relaxation over the input's box [lower, upper] is not exact (bool), None for an operator that needs none."""
        return None

    def kernels(self, node: N, model: ErrorModel) -> SumKernels | None:
        """Returns the kernels of its error where it is a sum of products, None elsewhere."""
        return None

    def check(self, node: N, model: ErrorModel) -> None:
        """Raises InputError where the operator's error is not known under the model's contract."""

    def overlap(self, node: N, shapes: Sequence[Shape]) -> int:
        """Returns how many coefficients of outputs may be added up for one input, as far as no kernel covers it: 0 where none are.

        `shapes` are those of the inputs.
        """
        return 0


_RULES: dict[type[Node], BoundRules[Any]] = {}
_NONE: BoundRules[Any] = BoundRules()
R = TypeVar("R", bound="type[BoundRules[Any]]")


def register(*kinds: type[Node]) -> Callable[[R], R]:
    """Puts the rules of a class into the table, for nodes of these types and for those derived from them."""

    def put(rules: R) -> R:
        for kind in kinds:
            _RULES[kind] = rules()
        return rules

    return put


def rules_of(node: Node) -> BoundRules[Any]:
    """Returns the rules of a node's type, or of the nearest type that it is derived from; those without any where there are none."""
    kind = type(node)
    found = _RULES.get(kind)
    return found if found is not None else next((_RULES[base] for base in kind.__mro__ if base in _RULES), _NONE)


def refusal(node: Node, rule: Rule) -> InputError:
    """Returns the refusal of a node by an engine, which names it."""
    return InputError(f'node "{node.name}" has type {type(node).__name__}, {MISSING[rule]}')


def has_rule(node: Node, rule: Rule) -> bool:
    """Returns whether a node's operator has a rule for an engine."""
    return rule in rules_of(node).known


def require(nodes: Iterable[Node], rule: Rule) -> None:
    """Raises InputError, which names the node, unless all nodes have a rule: an engine asks before it does any work."""
    for node in nodes:
        if not has_rule(node, rule):
            raise refusal(node, rule)


def is_relaxed(node: Node) -> bool:
    """Returns whether a node's bounds are shaped by the box of its input."""
    return type(rules_of(node)).unstable is not BoundRules.unstable


def exact_error(box: Box) -> tuple[Tensor, Tensor]:
    """Returns E and the magnitude of an operator that rounds nothing, for the box of its output."""
    out = magnitude(box)
    return torch.zeros_like(out), out
