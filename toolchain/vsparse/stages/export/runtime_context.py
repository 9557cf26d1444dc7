"""Shared by the readers of the runtime's operators: queries on their inputs, and the table in which readers are registered.

An operator reads activations, as fingerprints, and constant arrays, and makes such. Fused operators are read as the operators they replace,
in their order; what is not known by name, or would compute something that no contract charges (a factor moved behind a product, a scale of
its own), is `Unknown` (docs/numerics.md, section 10.2).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vsparse.graph import Graph
from vsparse.graph.quantised import BIAS_SCALE_TOLERANCE
from vsparse.stages.export.runtime_hashes import Fingerprint, QuantisationGrid
from vsparse.stages.export.runtime_reference import Reference
from vsparse.stages.export.runtime_windows import HashArray

Attributes = dict[str, Any]
NCHWC, MICROSOFT = "com.microsoft.nchwc", "com.microsoft"
RANGES = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
# How many elements decide at first which of several forms of a sum is the file's.
SAMPLE = 64


class Unknown(Exception):
    """An operator, or a use of one, that cannot be told to be the file's; carries the reason."""


class RuntimeContext:
    """The file's own network, and what may be asked of the inputs of an operator; `block` is the number of channels of a block."""

    def __init__(self, reference: Reference, block: int) -> None:
        self.reference, self.algebra, self.block = reference, reference.algebra, block
        self.graph: Graph = reference.graph

    def numbers(self, value: Any) -> NDArray[np.float32]:
        """Returns a constant of float32 or float16 in float32."""
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise Unknown("reads an activation, or integers, where a constant is wanted")
        return value.astype(np.float32)

    def value(self, value: Any) -> Fingerprint:
        """Returns an activation that holds numbers, not the integers of quantised ones."""
        if not isinstance(value, Fingerprint):
            raise Unknown("is applied to a constant")
        if value.integers:
            raise Unknown("computes on quantised integers")
        return value

    def integers(self, value: Any) -> list[int]:
        """Returns a constant list of integers."""
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise Unknown("needs constant integers")
        return [int(one) for one in value.reshape(-1)]

    def known(self, hashes: HashArray) -> NDArray[np.bool_]:
        """Returns which elements are elements of the file's network."""
        found = np.searchsorted(self.reference.known, hashes)
        return np.asarray(self.reference.known[np.minimum(found, len(self.reference.known) - 1)] == hashes)

    def is_known(self, hashes: HashArray) -> bool:
        """Returns whether all elements are, padding (0) left out."""
        flat = hashes.reshape(-1)
        first = flat[:: max(1, len(flat) // SAMPLE)]
        return bool((self.known(first) | (first == 0)).all() and (self.known(flat) | (flat == 0)).all())

    # Sums --------------------------------------------------------------------------------------------------------------

    def total(self, operands: list[tuple[Fingerprint, int]], start: HashArray | None = None) -> Fingerprint:
        """Returns a sum of activations times ±1 and of `start`, terms of a sum.

        An operand may be a sum whose terms the file's network adds up at once. Computing it first is one execution of that, so each
        element takes the form that the file's network has, and the longest where there is none.
        """
        forms: list[Fingerprint] = []
        choices = [[value.hashes, value.terms] if value.total is not None else [value.hashes] for value, _ in operands]
        for choice in product(*choices):
            total = np.uint64(0) if start is None else start
            for terms, (_, sign) in zip(choice, operands, strict=True):
                total = total + terms if sign > 0 else total - terms
            forms.append(self.algebra.summed(np.asarray(total)))
            if self.is_known(forms[-1].hashes):
                return forms[-1]
        return self._by_element(forms[::-1])

    def _by_element(self, forms: list[Fingerprint]) -> Fingerprint:
        hashes, total = forms[0].hashes.copy(), forms[0].terms.copy()
        missing = ~self.known(hashes)
        for form in forms[1:]:
            better = missing & self.known(form.hashes)
            hashes[better], total[better] = form.hashes[better], form.terms[better]
            missing &= ~better
        return Fingerprint(hashes, total)

    def plus_constant(self, x: Fingerprint, constant: NDArray[np.float32]) -> Fingerprint:
        """Returns x + c, in the form that the file's network has."""
        x = self.widened(x, constant)
        forms = [self.algebra.plus(x, terms, constant) for terms in ([x.hashes, x.terms] if x.total is not None else [x.hashes])]
        return next((form for form in forms if self.is_known(form.hashes)), None) or self._by_element(forms[::-1])

    def widened(self, x: Fingerprint, constant: NDArray[np.float32]) -> Fingerprint:
        """Returns the activation with the further dimensions of size 1 that a constant of more dimensions gives it."""
        shape = np.broadcast_shapes(constant.shape, x.shape)
        if prod(shape) != prod(x.shape):
            raise Unknown("has a constant that makes its input larger")
        return x if shape == x.shape else x.moved(lambda array: array.reshape(shape))

    # Quantised integers ------------------------------------------------------------------------------------------------

    def grid(self, scale: Any, zero: Any) -> QuantisationGrid:
        """Returns the grid of a quantisation with one scale and zero point."""
        zero = np.zeros((), np.uint8) if zero is None else zero
        if not isinstance(zero, np.ndarray) or zero.dtype not in RANGES or zero.size != 1 or (scale := self.numbers(scale)).size != 1:
            raise Unknown("quantises with several scales, or to other types than uint8 and int8")
        lowest, highest = RANGES[zero.dtype]
        return QuantisationGrid(float(scale.reshape(())), lowest - int(zero.reshape(())), highest - int(zero.reshape(())))

    def on_grid(self, value: Any, scale: Any, zero: Any) -> Fingerprint:
        """Returns the activation behind quantised integers, which must be on that very grid."""
        if not isinstance(value, Fingerprint) or not value.integers:
            raise Unknown("reads no quantised integers")
        if value.grid != self.grid(scale, zero):
            raise Unknown("reads quantised integers with another scale or zero point than they were made with")
        return Fingerprint(value.hashes, value.total, value.clipped, value.pooled, value.grid)

    def to_grid(self, x: Fingerprint, scale: Any, zero: Any) -> Fingerprint:
        """Returns the integers of an activation."""
        made = self.algebra.quantised(x, self.grid(scale, zero))
        return Fingerprint(made.hashes, made.total, made.clipped, made.pooled, made.grid, integers=True)

    def stored(self, integers: Any, scale: Any, zero: Any, *, axis: int) -> NDArray[np.float32]:
        """Returns fl(scale · (q − zero)) of constant integers; scales and zero points are single or lie along `axis`."""
        if not isinstance(integers, np.ndarray) or integers.dtype.kind not in "iu":
            raise Unknown("dequantises something else than constant integers")

        def along(one: NDArray[Any]) -> NDArray[Any]:
            return one.reshape([-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)]) if one.size > 1 else one.reshape(())

        shifted = integers.astype(np.int64) - (0 if zero is None else along(zero.astype(np.int64)))
        return np.asarray(shifted.astype(np.float32) * along(self.numbers(scale)), dtype=np.float32)

    def stored_bias(self, integers: Any, input_scale: Any, weight_scale: Any) -> NDArray[np.float32] | None:
        """Returns the file's floats of a bias whose integers a kernel scales by input times weight scale, as the contract `int8` allows."""
        if integers is None:
            return None
        if not isinstance(integers, np.ndarray) or integers.dtype != np.int32:
            raise Unknown("has a bias that is not of type int32")
        scale = self.numbers(input_scale).astype(np.float64).reshape(()) * self.numbers(weight_scale).astype(np.float64).reshape(-1)
        for name, one in self.graph.integers.items():
            same = one.values.shape == integers.shape and np.array_equal(one.values, integers)
            if same and (np.abs(one.scale.astype(np.float64).reshape(-1) - scale) <= BIAS_SCALE_TOLERANCE * scale).all():
                return self.graph.params[name]
        raise Unknown("has a bias, or a scale of it, that is none of the file's")


# Takes the context, the operator's inputs (activations, constant arrays, None for one left out) and its attributes; returns its output.
Follow = Callable[[RuntimeContext, list[Any], Attributes], Any]
AnyFollow = TypeVar("AnyFollow", bound=Callable[..., Any])

# By operator set and name.
RUNTIME_OPERATORS: dict[tuple[str, str], Follow] = {}


def runs(*kinds: str | tuple[str, str]) -> Callable[[AnyFollow], AnyFollow]:
    """Enters a function in the table of the runtime's operators: names of standard ones, or pairs with the operator set in front."""

    def enter(function: AnyFollow) -> AnyFollow:
        RUNTIME_OPERATORS.update({("", kind) if isinstance(kind, str) else kind: function for kind in kinds})
        return function

    return enter


def lifted(x: Fingerprint) -> Fingerprint:
    """Returns rows [batch, channels, n] as maps of height 1."""
    return x.moved(lambda array: array[:, :, None])


def lifted_window(a: Attributes) -> Attributes:
    """Returns the attributes of a 1-D window as those of one of height 1."""
    lifted = dict(a)
    for name in ("kernel_shape", "strides", "dilations"):
        if name in a:
            lifted[name] = [1, *a[name]]
    if "pads" in a:
        lifted["pads"] = [0, a["pads"][0], 0, a["pads"][1]]
    return lifted


def channels_first(x: Fingerprint) -> Fingerprint:
    """Returns [batch, ..., channels] as [batch, channels, ...]."""
    return x.moved(lambda array: np.moveaxis(array, -1, 1))


def channels_last(x: Fingerprint) -> Fingerprint:
    """Returns [batch, channels, ...] as [batch, ..., channels]."""
    return x.moved(lambda array: np.moveaxis(array, 1, -1))
