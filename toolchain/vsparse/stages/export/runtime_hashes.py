"""Fingerprints of the numbers a network computes: one 64-bit hash for each element of each activation (docs/numerics.md, section 10.1).

Two elements with one hash are the same expression of the same inputs, weight by weight, up to what a contract leaves open: the order
inside a sum, and the few exact identities below. The hash of an affine operator is linear in those of its inputs, modulo 2^64, so that
weights count with their indices; every other operator passes its operands through a random function. The functions and the hashes of
the inputs are drawn anew for each check, so that no file can be made to collide; for one made without knowing them, two different
sums agree with a probability of about 2^-60 (Schwartz and Zippel, over the integers modulo 2^64).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.stages.export.runtime_windows import FourPads, HashArray, TwoSizes, window_shape, windows

_Ends = tuple[float, float]
Renamed = tuple[HashArray, HashArray]

# What a runtime writes for an end of a Clip that the file does not have.
NO_END = float(np.finfo(np.float32).max)
# So near to the clamp's own end, in steps, a Clip changes none: what is rounded errs by less than 2^-10 (docs/numerics.md, section 7.3).
NEAR_THE_END = 0.5 - 2.0**-9
# So near, every device may take the end's step for the Clip's own end: to leave the Clip out is within what is allowed, to add it is not.
ALLOWED_END = 0.5 + 2.0**-11
# Elements that are remembered of weights and of sums, each: half a gigabyte.
MEMORY = 2**26


@dataclass(frozen=True)
class QuantisationGrid:
    """The values scale · k with k from lowest to highest: a quantisation without the zero point, which only renames the integers."""

    scale: float
    lowest: int
    highest: int


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """An activation: `hashes` [batch, ...], uint64, and what it is made of, for the identities that hold exactly.

    `total` is the sum of which the hashes are made, where a sum was just computed; `clipped` what was clipped last, with the ends;
    `pooled` what a maximum was taken of, and how, or the maximum that was moved then; `grid` where the values lie; `integers` whether they
    are held as k, not scale · k.
    """

    hashes: HashArray
    total: HashArray | None = None
    clipped: tuple[Fingerprint, float, float] | None = None
    pooled: tuple[Fingerprint, Callable[[Fingerprint], Fingerprint]] | None = None
    grid: QuantisationGrid | None = None
    integers: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, with the batch first."""
        return self.hashes.shape

    @property
    def terms(self) -> HashArray:
        """The sum where there is one, else the hashes: the element itself is a sum of one term."""
        return self.hashes if self.total is None else self.total

    def moved(self, move: Callable[[HashArray], HashArray]) -> Fingerprint:
        """Returns the same numbers at other indices (or fewer of them), by a function of arrays."""
        clipped = None if self.clipped is None else (self.clipped[0].moved(move), *self.clipped[1:])
        pooled = None if self.pooled is None else (self, lambda value: value.moved(move))
        total = None if self.total is None else move(self.total)
        return Fingerprint(move(self.hashes), total, clipped, pooled, self.grid, self.integers)


def joined(values: Sequence[Fingerprint], join: Callable[[list[HashArray]], HashArray]) -> Fingerprint:
    """Returns several activations as one, by a function of their arrays."""
    if len(values) == 1:  # which joins nothing, and leaves what is known of the one as it is
        return values[0].moved(lambda array: join([array]))
    total = None if all(value.total is None for value in values) else join([value.terms for value in values])
    one_grid = all((value.grid, value.integers) == (values[0].grid, values[0].integers) for value in values)
    grid, integers = (values[0].grid, values[0].integers) if one_grid else (None, False)
    return Fingerprint(join([value.hashes for value in values]), total, grid=grid, integers=integers)


class Algebra:
    """The operators on fingerprints, with functions drawn at random when it is made."""

    def __init__(self) -> None:
        generator = np.random.default_rng(secrets.randbits(128))
        self._generator = generator
        # While a graph is read: what a runtime may make of its quantised values, and what these are. While a runtime's is: `recorded`.
        self._recorded: list[tuple[HashArray, HashArray]] | None = None
        self.allowed: Renamed | None = None
        self._keys: dict[str, HashArray] = {}
        self._weights: dict[Any, HashArray] = {}
        self._products: dict[Any, HashArray] = {}

    def _drawn(self, what: str) -> HashArray:
        if what not in self._keys:
            self._keys[what] = self._generator.integers(0, 2**64, size=6, dtype=np.uint64) | np.uint64(1)
        return self._keys[what]

    def _scrambled(self, x: HashArray, what: str) -> HashArray:
        """A random function of 64 bits, another for each `what`: xor, multiplication by odd numbers and shifts, as in SplitMix64."""
        k = self._drawn(what)
        with np.errstate(over="ignore"):  # single numbers warn where arrays wrap around in silence
            x = (x ^ k[0]) * k[1]
            x = ((x ^ (x >> np.uint64(29))) + k[2]) * k[3]
            x = ((x ^ (x >> np.uint64(32))) + k[4]) * k[5]
            return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)

    def _odd(self, x: HashArray, what: str) -> HashArray:
        """A random function with f(−x) = −f(x), as rounding to nearest has it, and f(0) = 0."""
        return self._scrambled(x, what) - self._scrambled(np.uint64(0) - x, what)

    def _of_numbers(self, numbers: NDArray[Any], what: str) -> HashArray:
        """A random odd function of float32 numbers by their bits; both zeros give 0."""
        bits = _bits(numbers)
        size = (bits & np.uint32(2**31 - 1)).astype(np.uint64)
        drawn = np.where(size == 0, np.uint64(0), self._scrambled(size, what))
        return np.where(bits >> np.uint32(31) != 0, np.uint64(0) - drawn, drawn)

    def input(self, shape: tuple[int, ...]) -> Fingerprint:
        """Returns an input whose elements have nothing in common."""
        return Fingerprint(self._generator.integers(0, 2**64, size=shape, dtype=np.uint64))

    def constants(self, numbers: NDArray[Any]) -> HashArray:
        """Returns the hashes of constants as terms of a sum."""
        return self._of_numbers(numbers, "constant")

    # Sums -------------------------------------------------------------------------------------------------------------

    def _coefficients(self, weights: NDArray[Any]) -> HashArray:
        array = np.asarray(weights, dtype=np.float32)
        drawn = self._of_numbers(array, "weight") | np.where(_is_zero(array), np.uint64(0), np.uint64(1))
        return np.where(array == 1, np.uint64(1), np.where(array == -1, ~np.uint64(0), drawn))

    def summed(self, total: HashArray) -> Fingerprint:
        """Returns the result of a sum of terms."""
        return Fingerprint(self._odd(total, "sum"), total)

    def _affine(self, total: HashArray, weight: NDArray[Any], bias: NDArray[Any] | None) -> Fingerprint:
        """The result of an affine operator, outputs in dimension 1; an output that copies one input (times ±1) is that input."""
        rows = weight.reshape(len(weight), -1)
        with np.errstate(invalid="ignore", over="ignore"):  # a runtime may have made weights infinite
            copies = (np.count_nonzero(~_is_zero(rows), axis=1) == 1) & (np.abs(rows.sum(axis=1)) == 1)
        if bias is not None:
            total = total + self.constants(bias).reshape(-1, *[1] * (total.ndim - 2))
            copies &= _is_zero(np.broadcast_to(bias, (len(rows),)))
        hashes = self._odd(total, "sum")
        hashes[:, copies] = total[:, copies]
        return Fingerprint(hashes, total)

    def _prepared(self, weight: NDArray[Any]) -> tuple[bytes, HashArray]:
        """Returns a digest of a weight and its coefficients, which every optimisation level asks for again."""
        array = np.ascontiguousarray(weight, dtype=np.float32)
        digest = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
        digest.update(array.data)
        key = digest.digest()
        if key not in self._weights:
            self._remember(self._weights, key, self._coefficients(array))
        return key, self._weights[key]

    def _remember(self, where: dict[Any, HashArray], key: Any, value: HashArray) -> None:
        if sum(one.size for one in where.values()) + value.size > MEMORY:
            where.clear()
        where[key] = value

    def _once(self, x: HashArray, weight: bytes, geometry: tuple[int, ...], compute: Callable[[], HashArray]) -> HashArray:
        """Sums of products that were computed before, as the optimisation levels have most layers in common, are taken from memory."""
        flat = x.reshape(-1)
        positions = np.arange(1, len(flat) + 1, dtype=np.uint64)
        # HashArray are random and secret, so two sums of them tell one array from another.
        key = (x.shape, int(flat.sum(dtype=np.uint64)), int((flat * positions).sum(dtype=np.uint64)), weight, geometry)
        if key not in self._products:
            self._remember(self._products, key, np.asarray(compute(), dtype=np.uint64))
        return self._products[key]

    def products(self, x: HashArray, weight: NDArray[Any]) -> HashArray:
        """Returns the terms of weight [out, in] · x along the last dimension of x."""
        wide = x.reshape(-1, x.shape[-1])
        key, rows = self._prepared(weight)
        # The inner loop runs along a row of the weight: contiguous, it is several times as fast.
        return self._once(wide, key, (), lambda: wide @ rows.T).reshape(*x.shape[:-1], len(weight))

    def linear(self, x: Fingerprint, weight: NDArray[Any], bias: NDArray[Any] | None) -> Fingerprint:
        """Fully connected: x [batch, in], weight [out, in], bias [out]."""
        return self._affine(self.products(x.hashes, weight), weight, bias)

    def convolution(
        self,
        x: Fingerprint,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        stride: TwoSizes = (1, 1),
        pads: FourPads = (0, 0, 0, 0),
        dilation: TwoSizes = (1, 1),
        groups: int = 1,
    ) -> Fingerprint:
        """2-D cross-correlation: x [batch, in, h, w], weight [out, in/groups, kh, kw]; negative pads cut off."""
        outputs, inputs, *kernel = weight.shape
        key, coefficients = self._prepared(weight)

        def compute() -> HashArray:
            size = window_shape(x.shape[2:], (kernel[0], kernel[1]), stride, pads, dilation)
            by_tap = np.ascontiguousarray(coefficients.transpose(2, 3, 0, 1))
            total = np.zeros((groups, x.shape[0] * size[0] * size[1], outputs // groups), dtype=np.uint64)
            for (i, j), tap in windows(x.hashes, (kernel[0], kernel[1]), stride, pads, dilation):
                if by_tap[i, j].any():
                    parts = tap.transpose(0, 2, 3, 1).reshape(-1, groups, inputs).transpose(1, 0, 2)
                    total += np.ascontiguousarray(parts) @ by_tap[i, j].reshape(groups, outputs // groups, inputs).transpose(0, 2, 1)
            return total.transpose(1, 0, 2).reshape(x.shape[0], *size, outputs).transpose(0, 3, 1, 2)

        geometry = (*stride, *pads, *dilation, groups)
        return self._affine(self._once(x.hashes, key, geometry, compute), weight, bias)

    def times(self, x: Fingerprint, constant: NDArray[Any]) -> Fingerprint:
        """x · c, c broadcast; the same as a convolution with one weight for each channel, which rounds once too."""
        c = np.asarray(constant, dtype=np.float32)
        if (c == 1).all():
            return x
        total = x.hashes * self._coefficients(c)
        return Fingerprint(np.where(np.abs(c) == 1, total, self._odd(total, "sum")), total)

    def divided(self, x: Fingerprint, constant: NDArray[Any]) -> Fingerprint:
        """x / c, c broadcast; by a power of two it is the multiplication by its reciprocal."""
        c = np.asarray(constant, dtype=np.float32)
        if (c == 1).all():
            return x
        mantissa, exponent = np.frexp(c)
        exact = (np.abs(mantissa) == 0.5) & (np.abs(exponent) < 120)
        with np.errstate(divide="ignore", over="ignore"):
            reciprocal = np.where(exact, np.float32(1) / c, np.float32(0))
        total = x.hashes * np.where(exact, self._coefficients(reciprocal), self._of_numbers(c, "divisor") | np.uint64(1))
        return Fingerprint(np.where(np.abs(c) == 1, total, self._odd(total, "sum")), total)

    def plus(self, x: Fingerprint, terms: HashArray, constant: NDArray[Any]) -> Fingerprint:
        """x + c, c broadcast; `terms` are x's, or x itself. Adding zero changes nothing."""
        c = np.asarray(constant, dtype=np.float32)
        if _is_zero(c).all():
            return x
        made = self.summed(terms + self.constants(c))
        none = np.broadcast_to(_is_zero(c), made.shape)
        assert made.total is not None
        return Fingerprint(np.where(none, x.hashes, made.hashes), np.where(none, x.terms, made.total))

    def average(
        self, x: Fingerprint, kernel: TwoSizes, stride: TwoSizes, pads: FourPads = (0, 0, 0, 0), padding_counts: bool = True
    ) -> Fingerprint:
        """Sums over windows of [batch, channels, h, w], divided by how many elements they have, with or without the padding."""
        one = np.ones((1, 1, *x.shape[2:]), dtype=np.uint64)
        total, count = (_added(windows(array, kernel, stride, pads)) for array in (x.hashes, one))
        if padding_counts:
            count = np.full_like(count, kernel[0] * kernel[1])
        sums = Fingerprint(np.where(count == 1, total, self._odd(total, "sum")), total)
        return self.divided(sums, count.astype(np.float32))

    # Functions of one number ------------------------------------------------------------------------------------------

    def function(self, x: Fingerprint, what: str, *numbers: float) -> Fingerprint:
        """Returns f(x) for a function that nothing is known of but its name and its numbers."""
        key = np.zeros((), dtype=np.uint64)
        for number in numbers:
            key = self._scrambled(key ^ np.array(number, dtype=np.float64).view(np.uint64), f"numbers of {what}")
        return Fingerprint(self._scrambled(x.hashes + key, what))

    def leaky(self, x: Fingerprint, slope: float) -> Fingerprint:
        """x where x >= 0, else slope · x; zero stays zero, whatever the slope."""
        if slope == 1:
            return x
        made = self.function(x, "leaky", float(np.float32(slope)))
        return Fingerprint(np.where(x.hashes == 0, x.hashes, made.hashes))

    def negated(self, x: Fingerprint) -> Fingerprint:
        """−x, exact."""
        zero = np.uint64(0)
        return Fingerprint(zero - x.hashes, None if x.total is None else zero - x.total)

    def clipped(self, x: Fingerprint, lowest: float, highest: float) -> Fingerprint:
        """min(max(x, lowest), highest); of two clips one after the other, the one that comes to the same."""
        lowest, highest = (-inf if lowest <= -NO_END else lowest + 0.0), (inf if highest >= NO_END else highest + 0.0)
        lowest = min(lowest, highest)  # above it every value is `highest`
        if x.clipped is not None:
            x, first, last = x.clipped
            lowest, highest = min(max(first, lowest), highest), max(min(last, highest), lowest)
        grid = x.grid
        if (lowest, highest) == (-inf, inf):
            return x
        if grid is not None and lowest <= grid.scale * grid.lowest and highest >= grid.scale * grid.highest:
            return x
        stays = grid is not None and lowest == 0 and highest >= grid.scale * grid.highest  # 0 is a value of every grid
        return Fingerprint(self.function(x, "clip", lowest, highest).hashes, clipped=(x, lowest, highest), grid=grid if stays else None)

    def maximum(self, x: Fingerprint, kernel: TwoSizes, stride: TwoSizes, pads: FourPads = (0, 0, 0, 0)) -> Fingerprint:
        """Maximum over windows of [batch, channels, h, w]; padding is not there."""
        if kernel == (1, 1) and not any(pads):
            return x.moved(lambda array: array[:, :, :: stride[0], :: stride[1]])
        mixed = self._scrambled(x.hashes, "element of a maximum")
        total = _added(windows(mixed, kernel, stride, pads))
        pooled = (x, lambda value: self.maximum(value, kernel, stride, pads))
        return Fingerprint(self._scrambled(total, "maximum"), pooled=pooled, grid=x.grid, integers=x.integers)

    def quantised(self, x: Fingerprint, grid: QuantisationGrid) -> Fingerprint:
        """Rounded to a grid, which commutes with maxima and absorbs an end of a Clip beyond the grid's; on the grid already: no change."""
        behind: list[Callable[[Fingerprint], Fingerprint]] = []
        ends = grid.scale * (grid.lowest + NEAR_THE_END), grid.scale * (grid.highest - NEAR_THE_END)
        while x.grid != grid:
            seen = self._seen_of_clip(x, ends, ends)
            if x.clipped is not None and seen is x.clipped[0]:
                x = seen
            elif x.pooled is not None:
                x, pool = x.pooled
                behind.append(pool)
            else:
                x = Fingerprint(self._rounded(x, seen, grid, ends), grid=grid)
        for pool in reversed(behind):
            x = pool(x)
        return x

    def _rounded(self, x: Fingerprint, seen: Fingerprint, grid: QuantisationGrid, ends: _Ends) -> HashArray:
        """Returns the hashes of the steps of x, which was seen without the ends of a Clip that change nothing."""
        made = self.function(seen, "grid", grid.scale, grid.lowest, grid.highest).hashes
        if self._recorded is None:
            return made if self.allowed is None else _renamed(made, *self.allowed)
        wide = grid.scale * (grid.lowest + ALLOWED_END), grid.scale * (grid.highest - ALLOWED_END)
        for left_out in ((wide[0], ends[1]), (ends[0], wide[1]), wide):
            other = self._seen_of_clip(x, ends, left_out)
            found = self.function(other, "grid", grid.scale, grid.lowest, grid.highest).hashes
            if not np.array_equal(found, made):
                self._recorded.append((found.reshape(-1), made.reshape(-1)))
        return made

    def record(self) -> None:
        """Begins to note what runtimes may make of the quantised values of a graph as it is read (docs/numerics.md, section 10.2)."""
        self._recorded, self.allowed = [], None

    def recorded(self, known: HashArray) -> Renamed | None:
        """Ends that; returns what was noted, for `allowed`, but for what is in the file too (`known`, sorted)."""
        recorded, self._recorded = self._recorded, None
        if not recorded:
            return None
        found, made = (np.concatenate([pair[i] for pair in recorded]) for i in (0, 1))
        order = np.argsort(found)
        order = order[~np.isin(found[order], known)]
        return (found[order], made[order]) if len(order) else None

    def _seen_of_clip(self, x: Fingerprint, ends: _Ends, left_out: _Ends) -> Fingerprint:
        """Returns what was clipped with the ends alone that a clamp at `left_out` lets through; x where it was not clipped.

        A value of at most the first of `ends` is clamped to one step, and so is one of at least the second.
        """
        if x.clipped is None:
            return x
        source, lowest, highest = x.clipped
        if highest <= ends[0]:
            return self.clipped(source, -inf, ends[0])
        if lowest >= ends[1]:
            return self.clipped(source, ends[1], inf)
        return self.clipped(source, -inf if lowest <= left_out[0] else lowest, inf if highest >= left_out[1] else highest)


def _renamed(hashes: HashArray, found: HashArray, made: HashArray) -> HashArray:
    """Returns hashes with those in `found`, which is sorted, replaced by those of `made` at their places."""
    place = np.minimum(np.searchsorted(found, hashes), len(found) - 1)
    renamed: HashArray = np.where(found[place] == hashes, made[place], hashes)
    return renamed


def _added(taps: list[tuple[TwoSizes, HashArray]]) -> HashArray:
    total = np.zeros_like(taps[0][1])
    for _, tap in taps:
        total = total + tap
    return total


def _bits(numbers: NDArray[Any]) -> NDArray[np.uint32]:
    array = np.asarray(numbers, dtype=np.float32)
    return np.ascontiguousarray(array).view(np.uint32).reshape(array.shape)


def _is_zero(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns which numbers are zero, by their bits: a processor that reads subnormals as zero must not decide it."""
    return np.asarray((_bits(numbers) & np.uint32(2**31 - 1)) == 0)
