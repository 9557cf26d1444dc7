"""ONNX's window attributes, for convolutions and pools: padding, and rows as maps of height 1."""

from __future__ import annotations

from typing import Any

from vsparse.graph.core import Shape
from vsparse.graph.onnx_context import Activation, OnnxContext
from vsparse.graph.operators.reshape import to_shape
from vsparse.graph.refusal import UnsupportedOperator
from vsparse.graph.shapes import show

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


def as_map(c: OnnxContext, x: Activation) -> Activation:
    """Returns a row [channels, n] as a map of height 1."""
    return to_shape(c, x, (c.shape(x)[0], 1, c.shape(x)[1]))


def as_row(c: OnnxContext, x: Activation) -> Activation:
    """Returns a map of height 1 as a row [channels, n]."""
    return to_shape(c, x, (c.shape(x)[0], c.shape(x)[2]))


def lifted(a: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes of a 1-D window as those of one of height 1."""
    front = {"kernel_shape": [1], "strides": [1], "dilations": [1]}
    wider = {name: front[name] + value if name in front else value for name, value in a.items()}
    pads = a.get("pads", [0, 0])
    return wider | {"pads": [0, pads[0], 0, pads[1]] if len(pads) == 2 else pads}


def window_pads(
    a: dict[str, Any],
    shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    convolves: bool = True,
) -> tuple[int, int, int, int]:
    """Returns the padding (top, left, bottom, right) of a window that moves over [channels, height, width]."""
    pads = a.get("pads", [0, 0, 0, 0])
    if not isinstance(pads, list) or len(pads) != 4 or not all(isinstance(p, int) and 0 <= p < 2**20 for p in pads):
        raise UnsupportedOperator(f"has pads {show(pads)}; four numbers from 0 are wanted")
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        if any(pads):
            raise UnsupportedOperator("has both pads and auto_pad")
        if dilation != (1, 1):
            raise UnsupportedOperator(f"has dilations with auto_pad {auto}, which runtimes read in two ways; write its padding as pads")
        before, after = [], []
        for size, k, s in zip(shape[1:], kernel, stride, strict=True):
            total = (-(-size // s) - 1) * s + k - size
            # Padding of -1 drops the last position, which no window reaches; from -2 on runtimes drop the first ones too.
            if total < (-1 if convolves else 0):
                raise UnsupportedOperator(
                    f"has auto_pad {auto} with a stride above its kernel, which makes negative padding that runtimes read in two ways; "
                    "use a Slice and pads"
                )
            total = max(0, total)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        pads = before + after
    elif auto not in ("NOTSET", "VALID") or (auto == "VALID" and any(pads)):
        raise UnsupportedOperator(f'has auto_pad "{show(auto)}", which is not understood')
    return (pads[0], pads[1], pads[2], pads[3])
