"""Numbers stored in bfloat16, the upper halves of float32 numbers (docs/numerics.md, section 8.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray


@dataclass(frozen=True)
class BFloat16:
    """A constant as it is stored: `bits` uint16, with sign, 8 bits of exponent and 7 of the significand.

    No operator but a Cast to float32 reads one, so it is no array of numbers.
    """

    bits: NDArray[np.uint16]

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.bits.size

    def widened(self) -> NDArray[np.float32]:
        """Returns the numbers in float32, which is exact: each is a float32 number whose lower 16 bits are zero."""
        return np.asarray(self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def tensor(self, name: str) -> onnx.TensorProto:
        """Returns the initializer of that name that stores these bits."""
        kind = onnx.TensorProto.BFLOAT16
        return onnx.TensorProto(name=name, data_type=kind, dims=self.bits.shape, raw_data=self.bits.astype("<u2").tobytes())


def to_bfloat16(values: NDArray[np.float32]) -> BFloat16:
    """Returns the nearest bfloat16 numbers to finite float32 ones, of two equally near ones the even one (IEEE 754, section 4.3.1).

    Numbers from 2^128 - 2^119 on, half a step beyond the largest bfloat16 number, become infinite; those up to 2^-134, half the smallest,
    become zero.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(values.shape).view(np.uint32)
    # Half a step less the tie's own bit carries into the upper half where it must; as integers, a sum cannot be rounded or flushed.
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return BFloat16(np.asarray((bits + np.uint32(0x7FFF) + even) >> np.uint32(16), dtype=np.uint16))
