"""Integers of quantised models: what is stored, what activations are quantised to, and what integer kernels must not be given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse_check.op import EMPTY, Array, Grid, Op
from vsparse_check.refusal import need

WHOLE = 2.0**30  # kernels convert x / scale to int32 before they clamp it
BEHIND_CLIP = 2.0**-20  # runtimes drop a Clip within 2^-23 of the clamp of the integers


class Integers:
    """`grids` by activation, `stored` integers with their scales by parameter; of one network, as it is read.

    See docs/numerics.md, section 7.1.
    """

    def __init__(self, parameters: dict[str, NDArray[Any]]) -> None:
        self.parameters, self.grids, self.quantised = parameters, dict[str, Grid](), dict[str, tuple[str, Grid]]()
        self.held: dict[str, tuple[NDArray[Any], Array]] = {}  # as stored, and scales that broadcast to them
        self.summed = dict[str, float]()  # the scales that a sum of quantised values added up, carried on by exact operators
        self.clipped = set[str]()  # what a Clip makes, moved, pooled or behind a ReLU: runtimes quantise first

    def _scales(self, name: str, reach: int) -> NDArray[np.float32]:
        value = self.parameters[name]
        within = value.dtype == np.float32 and value.ndim <= 1 and ((value >= 2.0**-reach) & (value <= 2.0**reach)).all()
        need(within and name not in self.held, f'"{name:.60}" holds no float32 scales from 2^-{reach} to 2^{reach}')
        return value

    def _grid(self, scale: str, zero: str) -> Grid:
        s, z = self._scales(scale, 40), self.parameters[zero] if zero else np.zeros(1, dtype=np.uint8)
        need(s.size == z.size == 1 and z.dtype in (np.uint8, np.int8), "an activation is quantised to no 8-bit integers of one scale")
        least = int(np.iinfo(z.dtype).min)
        return float(s.item()), least - int(z.item()), least + 255 - int(z.item()), least

    def quantise(self, output: str, source: str, scale: str, zero: str) -> None:
        """Notes a QuantizeLinear, whose output only a DequantizeLinear may read."""
        self.quantised[output] = source, self._grid(scale, zero)

    def dequantise(self, source: str, scale: str, zero: str) -> tuple[str, Grid]:
        """Returns what was quantised, and to what."""
        need(source in self.quantised, f'DequantizeLinear reads "{source:.60}", which no QuantizeLinear makes')
        name, grid = self.quantised[source]
        need(grid == self._grid(scale, zero), "DequantizeLinear has another scale or zero point than the QuantizeLinear before it")
        return name, grid

    def stored(self, output: str, name: str, scale: str, zero: str, axis: int) -> None:
        """Adds the float32 parameter fl(scale · q) of integers q with zero point 0, one scale for all or for each place along `axis`."""
        q, z = self.parameters.pop(name), self.parameters[zero] if zero else np.zeros(1, dtype=np.int8)  # once: it may be large
        symmetric = q.dtype in (np.int8, np.int32) and z.dtype.kind in "iu" and not z.any()
        need(symmetric, f'"{name:.60}" does not hold int8 or int32 with the zero point 0')
        s, along = self._scales(scale, 40 if q.dtype == np.int8 else 80), [1] * q.ndim
        if s.size > 1:
            along[axis] = s.size
            need(q.shape[axis] == s.size, f'"{name:.60}" has {s.size} scales for shape {q.shape} along axis {axis}')
        self.parameters[output] = q.astype(np.float32) * s.reshape(along)
        self.held[output] = q, s.reshape(along).astype(np.float64)

    def check(self, op: Op, weight: str, bias: str, transposed: bool) -> None:
        """Records what the results of an operator are quantised to; Refused where integer kernels may do other than the contract says."""
        read = [self.grids[name] for name in op.inputs if name in self.grids]
        clip = op.kind == "curve" and op.form == "clip"
        if clip or (op.kind in ("relu", "maxpool", "move") and any(name in self.clipped for name in op.inputs)):
            self.clipped.add(op.output)
        if op.form == "pool" or op.kind == "add":
            self.summed[op.output] = sum(grid[0] for grid in read)
        elif clip or op.kind in ("relu", "maxpool", "move"):
            self.summed[op.output] = max(self.summed.get(name, 0.0) for name in op.inputs)
        if op.kind == "quant":
            need(not read, "the model quantises values that are quantised already")
            clipped = op.inputs[0] in self.clipped and op.grid[0] < BEHIND_CLIP
            need(not clipped, "a quantisation behind a Clip has a scale below 2^-20")
            fits = 512 * self.summed.get(op.inputs[0], 0.0) <= (WHOLE - 512) * op.grid[0]
            need(fits, "a quantisation has a scale with which the sum of quantised values that it reads leaves int32")
            self.grids[op.output] = op.grid
        elif op.form == "sum":
            self._check_sum(op, read, weight, bias, transposed)
        elif read and (op.kind in ("relu", "maxpool", "move") or clip):
            # Zero is on every grid, so that a ReLU stays there; what a clip, padding or a concatenation makes may lie between.
            moved = op.kind in ("relu", "maxpool") or (op.form == "move" and op.size == op.places[0][1].size)
            self.grids[op.output] = read[0] if moved else (sum(grid[0] for grid in read),)
        else:
            plain = not read or (op.kind == "add" and op.form == "") or op.form in ("pool", "shift")
            need(plain, f"the model gives quantised values to an operator ({op.form or op.kind}) whose integer kernels are in no contract")
            need(weight not in self.held, "the model has a constant in integers where a float32 one belongs")

    def _check_sum(self, op: Op, read: list[Grid], weight: str, bias: str, transposed: bool) -> None:
        """On x86 two products of 8 bits may be added in 16 with saturation, hence |q| <= 64; int32 sums must not overflow, in any order; a
        fused operator takes the scale of its bias to be that of its input times that of its weight; and runtimes merge quantisations.
        """
        of_integers = [name in self.held for name in (weight, bias or weight)] == [bool(read)] * 2
        need(of_integers, "a sum reads quantised values with float32 parameters, or others with integers")
        if not read:
            return
        (q, scale), (b, of_bias) = self.held[weight], self.held[bias] if bias else (np.zeros(1, np.int32), EMPTY)
        q, scale = (q.T, scale.T) if transposed else (q, scale)
        total, wanted = np.abs(q.reshape(len(q), -1).astype(np.float64)), scale.reshape(-1) * read[0][0]
        typed = self.held[weight][0].dtype == np.int8 and b.dtype == np.int32 and len(scale) == scale.size and len(read[0]) == 4
        need(typed and total.max() <= 64, "a sum has other than 7-bit weights with scales for each output, or reads no whole steps")
        same = not bias or (np.abs(of_bias - wanted) <= 2.0**-22 * wanted).all()
        need(same, "the scale of a bias is not that of the input times that of the weight")
        need((total.sum(axis=1) * 255 + np.abs(b.astype(np.float64))).max() < 2**31, "a sum of integers may overflow")
