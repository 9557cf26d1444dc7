"""Random small networks of every operator of the IR. A new operator is one function in OPERATORS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from number_formats import round_to

from vsparse.contract import LARGEST, SIGNIFICAND_BITS, SMALLEST_SUBNORMAL, Contract
from vsparse.graph.ir import (
    Add,
    AddConstant,
    AveragePool,
    Clip,
    Concat,
    Conv,
    DivConstant,
    FakeQuant,
    Gather,
    Gemm,
    Graph,
    LeakyRelu,
    MaxPool,
    MulConstant,
    Neg,
    Node,
    Pad,
    QuantisedParameter,
    Relu,
    Reshape,
    Shape,
    Sigmoid,
    Slice,
    Sub,
    Tanh,
    Transpose,
)

CLASSES = 3
MOST_ELEMENTS = 160
# How weights are drawn; all from `cancelling` on are meant to make sums go wrong.
KINDS = ("normal", "normal", "wide", "sparse", "cancelling", "absorbed", "tiny", "huge", "detector")


class GrowingNet:
    """A network that grows at its end: `last` is the name of the last activation, `shape` its shape, `shapes` those of all."""

    def __init__(self, rng: np.random.Generator, shape: Shape) -> None:
        self.rng, self.last = rng, "x"
        self.shape = self.input_shape = shape
        self.shapes = {"x": shape}
        self.nodes: list[Node] = []
        self.params: dict[str, np.ndarray] = {}
        self.integers: dict[str, QuantisedParameter] = {}

    def push(self, kind: Callable[..., Node], shape: Shape, inputs: tuple[str, ...] | None = None, **fields: object) -> str:
        """Adds a node that reads `inputs` (default: the last activation)."""
        name = f"n{len(self.nodes)}"
        self.nodes.append(kind(name=name, inputs=inputs or (self.last,), shape=shape, **fields))
        self.last, self.shape, self.shapes[name] = name, shape, shape
        return name

    def store(self, value: np.ndarray) -> str:
        """Adds a parameter in float32."""
        name = f"p{len(self.params)}"
        self.params[name] = value.astype(np.float32)
        return name

    def graph(self) -> Graph:
        """Returns the network as it is now."""
        return Graph(
            input="x", input_shape=self.input_shape, nodes=tuple(self.nodes), output=self.last, params=self.params, integers=self.integers
        )


class Builder(GrowingNet):
    """One whose weights are drawn in one way of KINDS and rounded to a storage format."""

    def __init__(self, rng: np.random.Generator, storage: str, kind: str | None = None) -> None:
        self.storage, self.most = storage, MOST_ELEMENTS
        self.kind = kind or str(rng.choice(KINDS))
        shape: Shape = (int(rng.integers(1, 4)), int(rng.integers(2, 6)), int(rng.integers(2, 6)))
        super().__init__(rng, (int(rng.integers(2, 9)),) if rng.random() < 0.3 else shape)

    def keep(self, value: np.ndarray) -> str:
        """Adds a parameter, rounded to the storage format."""
        with np.errstate(under="ignore"):
            return self.store(round_to(value, self.storage if self.storage != "real" else "fp32"))

    def constant(self, shape: Shape) -> str:
        """Adds a constant that broadcasts against an activation's shape."""
        reduced = tuple(1 if self.rng.random() < 0.3 else size for size in shape)
        return self.keep(self.rng.normal(size=reduced) * 4.0 ** self.rng.integers(-2, 3, size=reduced))

    def weight(self, *size: int) -> np.ndarray:
        """Returns a weight [out, …] of the network's kind."""
        rng, out = self.rng, size[0]
        n = int(np.prod(size[1:]))
        value = rng.normal(size=(out, n)) / np.sqrt(max(1, n))
        bits = SIGNIFICAND_BITS.get(self.storage, 24)
        if self.kind == "wide":
            value *= 30.0 ** rng.uniform(-1, 1, size=value.shape)
        elif self.kind == "sparse":
            value[rng.random(value.shape) < 0.7] = 0
        elif self.kind == "cancelling":
            half = n // 2
            value[:, half : 2 * half] = -value[:, :half] * (1 + rng.choice([-1, 0, 1], size=(out, half)) * 2.0 ** (2 - bits))
        elif self.kind == "absorbed":  # one term, and others just below half a unit in its last place, each of which is lost
            value = (
                (np.sign(value) if rng.random() < 0.3 else 1)
                * np.ones_like(value)
                * 2.0**-24
                * (1 - 2.0 ** (2 - bits))
                * rng.choice([1, 2, 4], size=(out, 1))
            )
            value[np.arange(out), rng.integers(0, n, out)] = 1.0
        elif self.kind == "tiny":
            value *= (
                2.0 ** rng.integers(-20, 1, size=value.shape) if self.storage == "fp16" else 2.0 ** rng.integers(-140, 1, size=value.shape)
            )
            value += SMALLEST_SUBNORMAL.get(self.storage, 0.0)
        elif self.kind == "huge":  # products on both sides of the largest number
            value *= LARGEST.get(self.storage, LARGEST["fp32"]) * 2.0 ** rng.integers(-12, -1, size=value.shape)
        elif self.kind == "detector" and n >= 3:
            omega = 2.0 ** (12 if self.storage == "fp16" else 24)
            value[:, 0], value[:, -1] = omega, -omega
            if rng.random() < 0.5:  # between the two, terms just below half a unit in the last place of ω, or just below a whole one
                value[:, 1:-1] = omega * 2.0 ** rng.choice([-24, -23]) * (1 - 2.0 ** (2 - bits))
        return value.reshape(size)

    def bias(self, out: int) -> str | None:
        return None if self.rng.random() < 0.3 else self.keep(self.rng.normal(size=out) * 0.3)


def gemm(b: Builder) -> None:
    flatten(b)
    out = int(b.rng.integers(2, 8))
    weight = b.weight(out, b.shape[0])
    b.push(Gemm, (out,), weight=b.keep(weight), bias=b.bias(out))


def flatten(b: Builder) -> None:
    if len(b.shape) > 1:
        b.push(Reshape, (int(np.prod(b.shape)),))


def image(b: Builder) -> bool:
    """Makes the last activation a feature map where its size allows it."""
    if len(b.shape) == 1 and b.shape[0] >= 8 and b.shape[0] % 4 == 0:
        b.push(Reshape, (b.shape[0] // 4, 2, 2))
    return len(b.shape) == 3


def conv(b: Builder) -> None:
    if not image(b):
        return gemm(b)
    rng, (channels, *size) = b.rng, b.shape
    groups = channels if rng.random() < 0.3 else 1
    out = groups * int(rng.integers(1, 4)) if groups == 1 else groups * int(rng.integers(1, 3))
    kernel, dilation = (tuple(int(v) for v in rng.integers(1, top, 2)) for top in (4, 3))
    stride, pads = tuple(int(v) for v in rng.integers(1, 3, 2)), tuple(int(v) for v in rng.integers(0, 3, 4))
    h, w = ((size[i] + pads[i] + pads[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    if h < 1 or w < 1 or out * h * w > b.most:
        return gemm(b)
    weight = b.keep(b.weight(out, channels // groups, *kernel))
    b.push(Conv, (out, h, w), weight=weight, bias=b.bias(out), stride=stride, pads=pads, dilation=dilation, groups=groups)
    return None


def _pool(b: Builder, kind: Callable[..., Node]) -> None:
    if not image(b):
        return
    rng, (channels, *size) = b.rng, b.shape
    kernel = tuple(min(int(v), s) for v, s in zip(rng.integers(1, 4, 2), size, strict=True))
    stride = tuple(int(v) for v in rng.integers(1, 3, 2))
    pads = tuple(int(rng.integers(0, (kernel[i % 2] // 2) + 1)) for i in range(4)) if kind is MaxPool else (0, 0, 0, 0)
    h, w = ((size[i] + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    fields = {"pads": pads} if kind is MaxPool else {}
    b.push(kind, (channels, h, w), kernel=kernel, stride=stride, **fields)


def residual(b: Builder) -> None:
    """An addition, a subtraction or a concatenation of two branches, one of which may be an affine operator that a runtime fuses."""
    rng, skip, shape = b.rng, b.last, b.shape
    if len(shape) == 1:
        b.push(Gemm, shape, weight=b.keep(b.weight(shape[0], shape[0])), bias=b.bias(shape[0]))
    else:
        b.push(Conv, shape, weight=b.keep(b.weight(shape[0], shape[0], 3, 3)), bias=b.bias(shape[0]), pads=(1, 1, 1, 1))
    if rng.random() < 0.3:
        rng.choice([one for one in ELEMENTWISE if one is not concat])(b)  # type: ignore[arg-type]
    pair = (b.last, skip) if rng.random() < 0.5 else (skip, b.last)
    b.push(Add if rng.random() < 0.5 else Sub, shape, pair)
    if rng.random() < 0.3:  # a second addition, fused with the first
        b.push(AddConstant, shape, constant=b.constant(shape))


def concat(b: Builder) -> None:
    axis = int(b.rng.integers(0, len(b.shape)))
    fitting = [n for n, s in b.shapes.items() if len(s) == len(b.shape) and all(s[i] == b.shape[i] for i in range(len(s)) if i != axis)]
    names = (b.last, *(str(n) for n in b.rng.choice(fitting, int(b.rng.integers(0, 3)))))
    shape = tuple(sum(b.shapes[n][i] for n in names) if i == axis else size for i, size in enumerate(b.shape))
    if np.prod(shape) <= b.most:
        b.push(Concat, shape, names, axis=axis)


def slices(b: Builder) -> None:
    starts = tuple(int(b.rng.integers(0, (size + 1) // 2)) for size in b.shape)
    stops = tuple(int(b.rng.integers(start + 1, size + 1)) for start, size in zip(starts, b.shape, strict=True))
    steps = tuple(int(b.rng.integers(1, 3)) for _ in b.shape)
    b.push(Slice, tuple(len(range(*one)) for one in zip(starts, stops, steps, strict=True)), starts=starts, stops=stops, steps=steps)


def gather(b: Builder) -> None:
    axis = int(b.rng.integers(len(b.shape)))
    indices = tuple(int(i) for i in b.rng.integers(0, b.shape[axis], int(b.rng.integers(1, b.shape[axis] + 2))))
    b.push(Gather, (*b.shape[:axis], len(indices), *b.shape[axis + 1 :]), axis=axis, indices=indices)


def pad(b: Builder) -> None:
    before, after = (tuple(int(v) for v in b.rng.integers(0, 2, len(b.shape))) for _ in range(2))
    value = float(np.float32(b.rng.choice([0.0, 0.1, -1.0])))
    shape = tuple(size + i + j for size, i, j in zip(b.shape, before, after, strict=True))
    if np.prod(shape) <= b.most:
        b.push(Pad, shape, before=before, after=after, value=value)


def transpose(b: Builder) -> None:
    order = tuple(int(i) for i in b.rng.permutation(len(b.shape)))
    b.push(Transpose, tuple(b.shape[i] for i in order), order=order)


def clip(b: Builder) -> None:
    ends = sorted(float(np.float32(v)) for v in b.rng.normal(size=2))
    lowest, highest = (-np.inf if b.rng.random() < 0.2 else ends[0]), (np.inf if b.rng.random() < 0.2 else ends[1])
    b.push(Clip, b.shape, lowest=float(lowest), highest=float(highest))


def constant_divisor(b: Builder) -> None:
    value = b.params[b.constant(b.shape)]
    value[value == 0] = 1
    b.push(DivConstant, b.shape, constant=b.keep(value))


ELEMENTWISE: list[Callable[[Builder], object]] = [
    lambda b: b.push(Relu, b.shape),
    lambda b: b.push(LeakyRelu, b.shape, slope=float(np.float32(b.rng.choice([0.01, 0.25, 0.1])))),
    clip,
    lambda b: b.push(Sigmoid, b.shape),
    lambda b: b.push(Tanh, b.shape),
    lambda b: b.push(Neg, b.shape),
    lambda b: b.push(AddConstant, b.shape, constant=b.constant(b.shape)),
    lambda b: b.push(MulConstant, b.shape, constant=b.constant(b.shape)),
    constant_divisor,
]
OPERATORS: list[Callable[[Builder], object]] = [
    *ELEMENTWISE,
    gemm,
    conv,
    conv,
    lambda b: _pool(b, MaxPool),
    lambda b: _pool(b, AveragePool),
    residual,
    residual,
    concat,
    slices,
    gather,
    pad,
    transpose,
]


def random_net(rng: np.random.Generator, storage: str = "fp32", kind: str | None = None, without: frozenset[str] = frozenset()) -> Graph:
    """Returns a random network with CLASSES outputs, its parameters in `storage`; `without` names node types that it must not have."""
    while True:
        b = Builder(rng, storage, kind)
        if rng.random() < 0.5 and b.kind in ("absorbed", "detector"):  # inputs that are all one, as the traps have them
            flatten(b)
            n = int(rng.integers(3, 20))
            b.push(Gemm, (n,), weight=b.keep(np.zeros((n, b.shape[0]))), bias=b.keep(np.ones(n)))
            gemm(b)
        for _ in range(int(rng.integers(2, 7))):
            OPERATORS[int(rng.integers(len(OPERATORS)))](b)
            if rng.random() < 0.4:
                ELEMENTWISE[0](b)
        flatten(b)
        b.push(Gemm, (CLASSES,), weight=b.keep(b.weight(CLASSES, b.shape[0])), bias=b.bias(CLASSES))
        if not without & {type(node).__name__ for node in b.nodes}:
            return b.graph()


def quantise(b: Builder, signed: bool = False) -> None:
    """Quantised and dequantised, on a grid that the values leave on one side or the other; `signed`: int8 with the zero point 0."""
    lowest, highest = (-128, 127) if signed else ((0, 255), (-128, 127))[int(b.rng.integers(2))]
    scale = np.float32(2.0 ** b.rng.uniform(-9, 1))
    zero_point = int(b.rng.choice([lowest, (lowest + highest) // 2, int(b.rng.integers(lowest, highest + 1))]))
    zero_point = 0 if signed else zero_point
    b.push(FakeQuant, b.shape, scale=float(scale), zero_point=zero_point, lowest=lowest, highest=highest)


def integer_affine(b: Builder, out: int, signed: bool = False) -> None:
    """A fully connected layer or a convolution with int8 weights and an int32 bias, that reads the grid of the last quantisation.

    `signed`: as TensorRT reads it, with weights of all 8 bits and a float32 bias.
    """
    rng = b.rng
    grid = next(node for node in reversed(b.nodes) if isinstance(node, FakeQuant))
    kernel = (out, b.shape[0]) if len(b.shape) == 1 else (out, b.shape[0], int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    scale = (2.0 ** rng.uniform(-12, -3, size=out if rng.random() < 0.5 else ())).astype(np.float32)
    most = 127 if signed else 64
    weight = QuantisedParameter(rng.integers(-most, most + 1, size=kernel).astype(np.int8), scale)
    bias = QuantisedParameter(rng.integers(-30000, 30000, size=out).astype(np.int32), (np.float32(grid.scale) * scale).astype(np.float32))
    names = tuple(f"p{len(b.params) + i}" for i in range(2))
    for name, one in zip(names, (weight, bias), strict=True):
        b.integers[name], b.params[name] = one, one.floats()
    if signed:
        b.params[names[1]] = b.integers.pop(names[1]).floats()
    with_bias = names[1] if rng.random() < 0.8 else None
    if len(b.shape) == 1:
        b.push(Gemm, (out,), weight=names[0], bias=with_bias)
    else:
        shape = (out, b.shape[1] - kernel[2] + 1, b.shape[2] - kernel[3] + 1)
        b.push(Conv, shape, weight=names[0], bias=with_bias)


def _on_grids(b: Builder, pick: float) -> None:
    """Puts a leaky ReLU behind a quantisation, or the difference or concatenation of two quantisations of one activation."""
    if pick < 0.56:
        b.push(LeakyRelu, b.shape, slope=float(np.float32(b.rng.random())))
        return
    first, source, shape = b.last, b.nodes[-1].inputs, b.shape
    quantise(b, False)
    b.nodes[-1] = replace(b.nodes[-1], inputs=source)
    if pick < 0.63:
        b.push(Sub, shape, (first, b.last))
    else:
        b.push(Concat, (2 * shape[0], *shape[1:]), (first, b.last), axis=0)


def random_integer_net(rng: np.random.Generator, signed: bool = False) -> Graph:
    """Returns a random quantised network with CLASSES outputs: floats become grids, integer layers read grids; `signed` as above."""
    b = Builder(rng, "fp32", "normal")
    if rng.random() < 0.3:
        b.push(MulConstant, b.shape, constant=b.constant(b.shape))
    for _ in range(int(rng.integers(1, 4))):
        quantise(b, signed)
        pick = rng.random()
        if len(b.shape) == 3 and pick < 0.2:
            _pool(b, MaxPool)
        elif len(b.shape) == 3 and pick < 0.35:
            _pool(b, AveragePool)
            quantise(b, signed)
        elif pick < 0.5:  # two quantisations of one activation, added
            first, source = b.last, b.nodes[-1].inputs
            quantise(b, signed)
            b.nodes[-1] = replace(b.nodes[-1], inputs=source)
            b.push(Add, b.shape, (first, b.last))
            quantise(b, signed)
        elif pick < 0.7 and not signed:
            _on_grids(b, pick)
            quantise(b, signed)
        if len(b.shape) == 3 and min(b.shape[1:]) < 2:
            flatten(b)
        integer_affine(b, int(rng.integers(2, 6)), signed)
        if rng.random() < 0.6:
            b.push(Relu, b.shape)
    quantise(b, signed)
    flatten(b)
    integer_affine(b, CLASSES, signed)
    return b.graph()


def net_for(contract: Contract, rng: np.random.Generator, kind: str | None = None) -> Graph:
    """Returns a random network of a format that a contract is about."""
    if contract.integers or (contract.exact and rng.random() < 0.15):
        return random_integer_net(rng, contract.name == "int8-tensorrt")
    net = random_net(rng, contract.storage, kind)
    return replace(net, storage="fp16", wide_sums=True) if contract.name == "fp16-tensorrt" else net
