"""The integers of quantised networks, and what integer kernels must not be given.

docs/numerics.md, section 7.1 (how they are read) and section 7.4 (what is checked).
"""

from __future__ import annotations

from enum import Enum
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsparse_check.arrays import FloatArray
from vsparse_check.op import Op, QuantisedGrid
from vsparse_check.refusal import need

CONVERTED = 2.0**30  # kernels convert x / scale to int32 before they clamp it
BEHIND_CLIP = 2.0**-20  # runtimes drop a Clip within 2^-23 of the clamp of the integers
ACTIVATION_SCALES, BIAS_SCALES = 40, 80  # scales lie between 2^-reach and 2^reach
FLOAT_BIASES = 40  # a bias in float32 is 0 or between 2^-reach and 2^reach in magnitude
SIGNED = (-128, 127, -128)  # first and last step, least integer: int8 with the zero point 0


class OnGrid(Enum):
    """What a kind of operator does with quantised activations."""

    SUMS = "a sum of products, in integers"
    ADDS = "adds quantised activations up, or computes with one"
    SHIFTS = "adds a constant"
    SELECTS = "selects or moves values, which stay on their grid"
    CLIPS = "clamps values at ends that may lie between the steps"
    QUANTISES = "makes the quantised activation"
    REFUSED = "integer kernels of it are in no contract"


class StoredIntegers(NamedTuple):
    """A parameter as it is stored: integers, and scales that broadcast to them."""

    integers: NDArray[Any]
    scale: FloatArray


class QuantisedTensors:
    """What is quantised in one network, as it is read.

    `grids`: by activation, what its values are multiples of. `stored`: by parameter. `added`: by
    activation, the scales that a sum of quantised values added up, carried on by exact operators.
    `clipped`: what a Clip makes, also moved, pooled or behind a ReLU. `joined`: what a Concat puts
    together, whole, also moved, pooled or behind a ReLU. `unfit`: by contract on
    integers, why the file is not in its form (docs/numerics.md, sections 7.4 and 7.5).
    """

    def __init__(self, parameters: dict[str, NDArray[Any]]) -> None:
        """Takes all parameters of the file, to which `store` adds and from which it takes."""
        self.parameters = parameters
        self.grids = dict[str, QuantisedGrid]()
        self.quantised = dict[str, tuple[str, QuantisedGrid]]()
        self.stored = dict[str, StoredIntegers]()
        self.added = dict[str, float]()
        self.clipped = set[str]()
        self.joined = set[str]()
        self.unfit = dict[str, str]()

    @property
    def contract(self) -> str:
        """Returns the contract on integers that the file is in the form of."""
        names = ("int8", "int8-tensorrt", "int8-exact")
        return next((name for name in names if name not in self.unfit), "int8")

    def scales(self, names: tuple[str, ...]) -> list[float]:
        """Returns the scales of those activations that are quantised."""
        return [self.grids[name].scale for name in names if name in self.grids]

    def _read_scales(self, name: str, reach: int) -> NDArray[np.float32]:
        """Returns float32 scales, one or a list: no product or quotient of them underflows.

        2^-reach <= s <= 2^reach (docs/numerics.md, section 7.4), so none is 0, NaN or negative.
        """
        value = self.parameters[name]
        within = ((value >= 2.0**-reach) & (value <= 2.0**reach)).all()
        typed = value.dtype == np.float32 and value.ndim <= 1
        need(
            typed and within and name not in self.stored,
            f'"{name:.60}" holds no float32 scales from 2^-{reach} to 2^{reach}',
        )
        return value

    def _read_grid(self, scale: str, zero: str) -> QuantisedGrid:
        """Returns the steps K0 = q_min − z to K1 = K0 + 255 of one scale and zero point.

        docs/numerics.md, section 7.1; the zero point of a file that leaves it out is uint8 0.
        """
        s = self._read_scales(scale, ACTIVATION_SCALES)
        z = self.parameters[zero] if zero else np.zeros(1, dtype=np.uint8)
        need(
            s.size == z.size == 1 and z.dtype in (np.uint8, np.int8),
            "an activation is quantised to no 8-bit integers of one scale",
        )
        least = int(np.iinfo(z.dtype).min)
        first = least - int(z.item())
        return QuantisedGrid(float(s.item()), first, first + 255, least)

    def quantise(self, output: str, source: str, scale: str, zero: str) -> None:
        """Notes a QuantizeLinear, whose output only a DequantizeLinear may read."""
        self.quantised[output] = source, self._read_grid(scale, zero)

    def dequantise(self, source: str, scale: str, zero: str) -> tuple[str, QuantisedGrid]:
        """Returns what was quantised, and to what."""
        need(
            source in self.quantised,
            f'DequantizeLinear reads "{source:.60}", which no QuantizeLinear makes',
        )
        name, grid = self.quantised[source]
        need(
            grid == self._read_grid(scale, zero),
            "DequantizeLinear has another scale or zero point than the QuantizeLinear before it",
        )
        return name, grid

    def store(self, output: str, name: str, scale: str, zero: str, axis: int) -> None:
        """Adds the float32 parameter fl(scale·q) of integers q whose zero point is 0.

        There is one scale for all, or one for each index along `axis`. The integers are read once:
        they may be large.
        """
        q = self.parameters.pop(name)
        z = self.parameters[zero] if zero else np.zeros(1, dtype=np.int8)
        typed = q.dtype in (np.int8, np.int32) and z.dtype.kind in "iu"
        need(
            typed and not z.any(),
            f'"{name:.60}" does not hold int8 or int32 with the zero point 0',
        )
        reach = ACTIVATION_SCALES if q.dtype == np.int8 else BIAS_SCALES
        s, along = self._read_scales(scale, reach), [1] * q.ndim
        if s.size > 1:
            along[axis] = s.size
            need(
                q.shape[axis] == s.size,
                f'"{name:.60}" has {s.size} scales for shape {q.shape} along axis {axis}',
            )
        self.parameters[output] = q.astype(np.float32) * s.reshape(along)
        self.stored[output] = StoredIntegers(q, s.reshape(along).astype(np.float64))

    def check(self, op: Op, on_grid: OnGrid, weight: str, bias: str, transposed: bool) -> None:
        """Records what an operator makes of quantised values, once it is read.

        Refuses what integer kernels may do otherwise than the contract says (docs/numerics.md,
        section 7.4, but for averages that no runtime executes). `weight` and `bias` name the second
        and third input, `transposed` says that the weight is [in, out].
        """
        read = self.scales(op.inputs)
        selects = on_grid in (OnGrid.SELECTS, OnGrid.CLIPS)
        if on_grid is OnGrid.CLIPS or (selects and not self.clipped.isdisjoint(op.inputs)):
            self.clipped.add(op.output)
        if on_grid is OnGrid.ADDS:
            self.added[op.output] = sum(read)
            if read and op.kind in ("sub", "leaky"):
                self.unfit["int8-tensorrt"] = f"gives quantised values to an operator ({op.kind})"
        elif selects:
            before = max(self.added.get(name, 0.0) for name in op.inputs)
            self.added[op.output] = max(before, sum(read)) if op.kind == "concat" else before
            self._join(op)
        if on_grid is OnGrid.QUANTISES:
            self._check_quantisation(op)
        elif on_grid is OnGrid.SUMS:
            self._check_sum(op, weight, bias, transposed)
        elif selects and read:
            self._keep_grid(op)
        else:
            need(
                not read or on_grid in (OnGrid.ADDS, OnGrid.SHIFTS),
                f"the model gives quantised values to an operator ({op.kind}) "
                "whose integer kernels are in no contract",
            )
            need(
                weight not in self.stored,
                "the model has a constant in integers where a float32 one belongs",
            )

    def _check_quantisation(self, op: Op) -> None:
        """Refuses what runtimes merge or drop, and what kernels may convert wrongly.

        512·Σ s_i <= (2^30 − 512)·s_c for the scales s_i of a sum and s_c of this grid: |Σ s_i(q_i −
        z_i)| / s_c and the zero point are then within int32 (docs/numerics.md, section 7.4).
        """
        assert op.grid is not None
        (source,) = op.inputs
        if source in self.grids:
            need(source in self.joined, "the model quantises values that are quantised already")
            self.unfit["int8-tensorrt"] = "quantises values that are quantised already"
        need(
            source not in self.clipped or op.grid.scale >= BEHIND_CLIP,
            "a quantisation behind a Clip has a scale below 2^-20",
        )
        added = self.added.get(source, 0.0)
        need(
            512 * added <= (CONVERTED - 512) * op.grid.scale,
            "a quantisation has a scale with which the sum of quantised values "
            "that it reads leaves int32",
        )
        if (op.grid.first, op.grid.last, op.grid.least_integer) != SIGNED:
            self.unfit["int8-tensorrt"] = "quantises to other than int8 with the zero point 0"
        self.grids[op.output] = op.grid

    def _check_sum(self, op: Op, weight: str, bias: str, transposed: bool) -> None:
        """Refuses sums of products that integer kernels may compute otherwise.

        On x86 two products of 8 bits may be added in 16 with saturation, hence |q_i + q_j| <= 128
        for any two weights of one sign and output under `int8`; |q| <= 127 under all. Sums in int32
        must not overflow, in any order: Σ|q_w|·255 + |q_b| < 2^31; a fused operator takes the scale
        of its bias to be that of its input times that of its weight (docs/numerics.md, sections 7.4
        and 7.7). Under `int8-tensorrt` biases are float32 numbers that no scale makes too small or
        too large (docs/numerics.md, section 7.5).
        """
        grid = self.grids.get(op.inputs[0])
        counted = bias in self.stored
        need(
            (weight in self.stored) == (grid is not None) and (grid is not None or not counted),
            "a sum reads quantised values with float32 parameters, or others with integers",
        )
        if grid is None:
            return
        q, scale = self.stored[weight]
        typed = q.dtype == np.int8 and grid.whole
        if transposed:
            q, scale = q.T, scale.T
        b = self.stored[bias].integers if counted else np.zeros(1, np.int32)
        typed = typed and b.dtype == np.int32 and len(scale) == scale.size
        size = np.abs(q.reshape(len(q), -1).astype(np.float64))
        need(
            typed and size.max() <= 127,
            "a sum has other than int8 weights from -127 to 127 with scales for each output, "
            "or reads no whole steps",
        )
        if self._pair(q) > 128:
            self.unfit["int8"] = "has 8-bit weights, and 7-bit ones are wanted"
        if counted:
            self.unfit["int8-tensorrt"] = "has a bias in integers"
        elif bias:
            for name in ("int8", "int8-exact"):
                self.unfit[name] = "has a float32 bias where a sum is one of integers"
            magnitude = np.abs(self.parameters[bias].astype(np.float64))
            within = (magnitude >= 2.0**-FLOAT_BIASES) & (magnitude <= 2.0**FLOAT_BIASES)
            need(
                (within | (magnitude == 0)).all(),
                "a float32 bias behind integers is neither 0 nor from 2^-40 to 2^40",
            )
        wanted = scale.reshape(-1) * grid.scale
        same = not counted or self._same_scale(self.stored[bias].scale, wanted)
        need(same, "the scale of a bias is not that of the input times that of the weight")
        reach = size.sum(axis=1) * 255 + np.abs(b.astype(np.float64))
        need(reach.max() < 2**31, "a sum of integers may overflow")

    @staticmethod
    def _pair(q: NDArray[Any]) -> int:
        """Returns the largest magnitude of the sum of two weights of one sign and output."""
        rows = q.reshape(len(q), -1).astype(np.int64)
        rows = np.sort(np.pad(rows, ((0, 0), (1, 1))), axis=1)
        above, below = rows[:, -2:].clip(0).sum(axis=1), rows[:, :2].clip(None, 0).sum(axis=1)
        return int(max(above.max(), -below.min()))

    def _same_scale(self, found: FloatArray, wanted: FloatArray) -> bool:
        """Returns whether |s_b − s_x·s_w| <= 2^-22·s_x·s_w (docs/numerics.md, section 7.4)."""
        return bool((np.abs(found - wanted) <= 2.0**-22 * wanted).all())

    def _join(self, op: Op) -> None:
        """Notes what is put together: no runtime merges quantisations before and behind a Concat.

        What selects may leave one part, as it was before.
        """
        size = sum(moved.element.size for moved in op.moves)
        whole = op.kind in ("relu", "maxpool") or (op.kind == "move" and prod(op.shape) == size)
        several = op.kind == "concat" and len(op.inputs) > 1
        if several or (whole and op.inputs[0] in self.joined):
            self.joined.add(op.output)

    def _keep_grid(self, op: Op) -> None:
        """Records what the results of an exact operator on quantised values are multiples of.

        Zero is on every grid, so that a ReLU stays there, and so does what is put together from
        values on one grid; what a clip, padding or another concatenation makes may lie between.
        """
        read = [self.grids[name] for name in op.inputs if name in self.grids]
        stays = op.kind in ("relu", "maxpool")
        if op.kind in ("move", "concat"):
            one = len(read) == len(op.inputs) and all(grid == read[0] for grid in read)
            stays = one and prod(op.shape) == sum(moved.element.size for moved in op.moves)
        total = QuantisedGrid(sum(grid.scale for grid in read), whole=False)
        self.grids[op.output] = read[0] if stays else total
