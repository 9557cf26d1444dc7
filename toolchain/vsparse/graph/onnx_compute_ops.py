"""ONNX operators that compute: affine, element by element, pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsparse.graph.ir import Add, AddConstant, AveragePool, BatchNorm, Conv, DivConstant, Gemm, MaxPool, MulConstant, Neg, Relu, Sub
from vsparse.graph.onnx_curve_ops import CurveOps
from vsparse.graph.onnx_values import Activation, Refused, pair
from vsparse.graph.shapes import show


class ComputeOps(CurveOps):
    """Each method takes the operator's inputs, their names and its attributes, and returns its output."""

    # Affine operators -------------------------------------------------------------------------------------------------

    def conv(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, weight = self.samples(values[0]), self.weight(values[1], names[1])
        if weight.ndim == 3 and len(self.shape(x)) == 2:
            # A row is a map of height 1.
            kernel = (values[1] if isinstance(values[1], np.ndarray) else weight)[:, :, None]
            wide = self.conv([self._as_map(x), kernel, *values[2:]], names, self._lifted(a))
            return self.to_shape(wide, (self.shape(wide)[0], self.shape(wide)[2]))
        if weight.ndim != 4 or len(self.shape(x)) != 3:
            raise Refused("is neither one- nor two-dimensional; only 1-D and 2-D convolution is read")
        window = (weight.shape[2], weight.shape[3])
        if tuple(a.get("kernel_shape", window)) != window:
            raise Refused("has a kernel_shape that differs from its weight's")
        stride, dilation = pair(a, "strides"), pair(a, "dilations")
        source, further = self.builder.unpadded(x.name)
        top, left, bottom, right = (own + more for own, more in zip(self._pads(a, x, window, stride, dilation), further, strict=True))
        bias = self.weight(values[2], names[2]) if len(values) > 2 else None
        group = a.get("group", 1)
        if not isinstance(group, int) or group < 1:
            raise Refused("has a group count below 1")
        return self.add(
            Conv(
                name=self.fresh(),
                inputs=(source,),
                shape=(),
                weight=self.store(names[1], weight),
                bias=None if bias is None else self.store(names[2], bias),
                stride=stride,
                pads=(top, left, bottom, right),
                dilation=dilation,
                groups=group,
            )
        )

    def _as_map(self, x: Activation) -> Activation:
        return self.to_shape(x, (self.shape(x)[0], 1, self.shape(x)[1]))

    def _lifted(self, a: dict[str, Any]) -> dict[str, Any]:
        """Returns the attributes of a 1-D window as those of one of height 1."""
        front = {"kernel_shape": [1], "strides": [1], "dilations": [1]}
        lifted = {name: front[name] + value if name in front else value for name, value in a.items()}
        pads = a.get("pads", [0, 0])
        return lifted | {"pads": [0, pads[0], 0, pads[1]] if len(pads) == 2 else pads}

    def _pads(
        self,
        a: dict[str, Any],
        x: Activation,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
        convolves: bool = True,
    ) -> tuple[int, int, int, int]:
        pads = a.get("pads", [0, 0, 0, 0])
        if not isinstance(pads, list) or len(pads) != 4 or not all(isinstance(p, int) and 0 <= p < 2**20 for p in pads):
            raise Refused(f"has pads {show(pads)}; four numbers from 0 are wanted")
        auto = a.get("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if any(pads):
                raise Refused("has both pads and auto_pad")
            if dilation != (1, 1):
                raise Refused(f"has dilations with auto_pad {auto}, which runtimes read in two ways; write its padding as pads")
            before, after = [], []
            for size, k, s in zip(self.shape(x)[1:], kernel, stride, strict=True):
                total = (-(-size // s) - 1) * s + k - size
                # Padding of -1 drops the last position, which no window reaches; from -2 on runtimes drop the first ones too.
                if total < (-1 if convolves else 0):
                    raise Refused(
                        f"has auto_pad {auto} with a stride above its kernel, which makes negative padding that runtimes read in two ways; "
                        "use a Slice and pads"
                    )
                total = max(0, total)
                small, large = total // 2, total - total // 2
                before.append(small if auto == "SAME_UPPER" else large)
                after.append(large if auto == "SAME_UPPER" else small)
            pads = before + after
        elif auto not in ("NOTSET", "VALID") or (auto == "VALID" and any(pads)):
            raise Refused(f'has auto_pad "{show(auto)}", which is not understood')
        return (pads[0], pads[1], pads[2], pads[3])

    def gemm(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, weight = self.samples(values[0]), self.weight(values[1], names[1])
        if a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1 or a.get("transA", 0):
            raise Refused("must have alpha = 1, beta = 1 and transA = 0")
        if weight.ndim != 2:
            raise Refused("has a weight that is no matrix")
        weight = weight if a.get("transB", 0) else weight.T
        bias = None
        if len(values) > 2:
            bias = self.weight(values[2], names[2])
            if bias.shape not in ((weight.shape[0],), (1, weight.shape[0]), (1,), (), (1, 1)):
                raise Refused(f"has a bias of shape {bias.shape} for {weight.shape[0]} outputs")
            bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],))
        return self._product(x, weight, names[1], bias, names[-1])

    def matmul(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if not isinstance(values[0], Activation):
            raise Refused("multiplies a constant from the left; export it as Gemm")
        x, weight = values[0], self.weight(values[1], names[1])
        if weight.ndim != 2:
            raise Refused("has a weight that is no matrix")
        if len(self.shape(x)) != 1:
            raise Refused(f"multiplies a tensor of shape {list(self.whole(x))}, each of whose rows is a product; put a flatten before it")
        return self._product(x, weight.T, names[1], None, "")

    def _product(
        self, x: Activation, weight: NDArray[np.float32], name: str, bias: NDArray[np.float32] | None, bias_name: str
    ) -> Activation:
        gemm = Gemm(
            name=self.fresh(),
            inputs=(x.name,),
            shape=(),
            weight=self.store(name, weight),
            bias=None if bias is None else self.store(bias_name, bias),
        )
        return self.add(gemm, x.batched)

    def batch_norm(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.samples(values[0])
        if a.get("training_mode", 0) or not a.get("spatial", 1):
            raise Refused("is in training mode; export the network in eval mode")
        epsilon = float(a.get("epsilon", 1e-5))
        stored = [self.store(name, self.weight(value, name)) for value, name in zip(values[1:], names[1:], strict=True)]
        scale, bias, mean, variance = stored
        return self.add(
            BatchNorm(name=self.fresh(), inputs=(x.name,), shape=(), scale=scale, bias=bias, mean=mean, variance=variance, epsilon=epsilon)
        )

    # Element by element -----------------------------------------------------------------------------------------------

    def relu(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        return self.unary(Relu, values[0])

    def _both(self, kind: type[Add] | type[Sub], x: Activation, y: Activation) -> Activation:
        return self.add(kind(name=self.fresh(), inputs=(x.name, y.name), shape=()), x.batched or y.batched)

    def plus(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            return self._both(Add, values[0], values[1])
        i = 0 if isinstance(values[0], Activation) else 1
        return self._constant(AddConstant, self.activation(values[i]), self.weight(values[1 - i], names[1 - i]), names[1 - i])

    def minus(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            return self._both(Sub, values[0], values[1])
        if isinstance(values[0], Activation):
            return self._constant(AddConstant, values[0], -self.weight(values[1], names[1]), names[1])
        # c - x = -x + c: the negation is exact, so only the addition rounds, as in the file.
        return self._constant(AddConstant, self.unary(Neg, values[1]), self.weight(values[0], names[0]), names[0])

    def times(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        if isinstance(values[0], Activation) and isinstance(values[1], Activation):
            raise Refused("multiplies two activations; only multiplication by a constant is read")
        i = 0 if isinstance(values[0], Activation) else 1
        return self._constant(MulConstant, self.activation(values[i]), self.weight(values[1 - i], names[1 - i]), names[1 - i])

    def divide(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x, c = self.activation(values[0]), self.weight(values[1], names[1])
        mantissa, exponent = np.frexp(c)
        if not c.all():
            raise Refused("divides by zero")
        # Only for powers of two is x/c the same number as x·(1/c), rounding and all.
        if (np.abs(mantissa) == 0.5).all() and (np.abs(exponent) < (14 if self.format == "fp16" else 120)).all():
            return self._constant(MulConstant, x, np.float32(1) / c, names[1])
        return self._constant(DivConstant, x, c, names[1])

    def _constant(
        self, kind: type[AddConstant] | type[MulConstant] | type[DivConstant], x: Activation, c: NDArray[np.float32], name: str
    ) -> Activation:
        whole = self.whole(x)
        if c.ndim > len(whole):  # the result then has more dimensions than x
            front = c.shape[: c.ndim - len(whole)]
            if self.batch != 1 or any(size != 1 for size in front):
                raise Refused(f"has a constant of shape {c.shape}, of more dimensions than {list(whole)}; the batch must stay first")
            return self.to_whole(self._constant(kind, x, c.reshape(c.shape[len(front) :]), name), (*front, *whole))
        if x.batched and c.ndim == len(whole):
            if c.shape[0] != 1:
                raise Refused(f"has a constant of shape {c.shape}, which does not broadcast to shape {list(whole)}")
            c = c[0]
        return self.add(kind(name=self.fresh(), inputs=(x.name,), shape=(), constant=self.store(name, c)), x.batched)

    # Pooling ----------------------------------------------------------------------------------------------------------

    def _window(self, a: dict[str, Any], x: Activation) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
        if len(self.shape(x)) != 3:
            raise Refused("is neither one- nor two-dimensional; only 1-D and 2-D pooling is read")
        kernel, stride = pair(a, "kernel_shape"), pair(a, "strides")
        if "kernel_shape" not in a or pair(a, "dilations") != (1, 1) or a.get("storage_order", 0):
            raise Refused("must have a kernel_shape, and neither dilations nor storage_order")
        pads = self._pads(a, x, kernel, stride, (1, 1), convolves=False)
        for axis, size in enumerate(self.shape(x)[1:]):
            if a.get("ceil_mode", 0) and (size + pads[axis] + pads[axis + 2] - kernel[axis]) % stride[axis]:
                raise Refused("must have ceil_mode = 0")
        return kernel, stride, pads

    def max_pool(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.samples(values[0])
        if len(self.shape(x)) == 2:
            wide = self.max_pool([self._as_map(x)], names, self._lifted(a))
            return self.to_shape(wide, (self.shape(wide)[0], self.shape(wide)[2]))
        kernel, stride, pads = self._window(a, x)
        return self.add(MaxPool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride, pads=pads))

    def average_pool(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.samples(values[0])
        if len(self.shape(x)) == 2:
            wide = self.average_pool([self._as_map(x)], names, self._lifted(a))
            return self.to_shape(wide, (self.shape(wide)[0], self.shape(wide)[2]))
        kernel, stride, pads = self._window(a, x)
        if any(pads):
            raise Refused("must have no padding")
        return self.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=kernel, stride=stride))

    def global_average(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.samples(values[0])
        shape = self.shape(x)
        if len(shape) == 2:
            wide = self.global_average([self._as_map(x)], names, a)
            return self.to_shape(wide, (shape[0], 1))
        if len(shape) != 3:
            raise Refused("is not two-dimensional; only 2-D pooling is read")
        window = (shape[1], shape[2])
        return self.add(AveragePool(name=self.fresh(), inputs=(x.name,), shape=(), kernel=window, stride=window))

    def mean(self, values: list[Any], names: list[str], a: dict[str, Any]) -> Activation:
        x = self.activation(values[0])
        if not x.batched or len(self.shape(x)) != 3 or sorted(self.reduced_axes(values, names, a)) != [2, 3]:
            return self.reduce_mean(values, names, a)
        pooled = self.global_average(values[:1], names[:1], {})
        return pooled if a.get("keepdims", 1) else self.to_shape(pooled, (self.shape(x)[0],))
