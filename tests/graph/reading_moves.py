"""Random files, continued: operators that move, reduce and reshape, and whole files."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from reading_graphs import ODD, File, Shape, Writer


class Mover(Writer):
    """The operators whose axes and sizes a reader may take for others."""

    def reduce(self) -> None:
        x, shape = self.pick()
        kind, rank = str(self.rng.choice(["ReduceMean", "ReduceSum"])), len(shape)
        as_input = self.opset >= (13 if kind == "ReduceSum" else 18)
        axes: list[int] | None = self.subset(list(range(1, rank)) if rank > 1 else [0])
        if self.chance(ODD if self.symbolic else 0.1):
            axes = None if self.chance(0.5) else self.subset(list(range(rank)), 0)
        keep = None if self.chance(0.4) else int(self.chance(0.4))
        noop = int(self.chance(0.5)) if as_input and self.chance(0.2) else None
        gone = set(axes) if axes else set() if noop else set(range(rank))
        left: Shape = tuple(1 if i in gone else size for i, size in enumerate(shape))
        if keep == 0:
            left = tuple(size for i, size in enumerate(shape) if i not in gone)
        listed = None if axes is None else [self.signed(axis, rank) for axis in axes]
        if as_input:
            self.emit(kind, [x, *([] if listed is None else [self.integers(*listed)])], left, keepdims=keep, noop_with_empty_axes=noop)
        else:
            self.emit(kind, [x], left, axes=listed or None, keepdims=keep)

    def flatten(self) -> None:
        x, shape = self.pick()
        axis = 1 if self.chance(0.8) else int(self.rng.integers(0, len(shape) + 1))
        given = None if axis == 1 and self.chance(0.5) else self.signed(axis, len(shape)) if axis < len(shape) else axis
        self.emit("Flatten", [x], (prod(shape[:axis]), prod(shape[axis:])), axis=given)

    def reshape(self) -> None:
        x, shape = self.pick()
        rest, target = prod(shape), []
        while rest > 1 and len(target) < 4:
            target.append(int(self.rng.choice([d for d in range(1, rest + 1) if rest % d == 0])))
            rest //= target[-1]
        target = [1, *target, rest] if rest > 1 or not target else [1, *target]
        if not self.symbolic and self.chance(0.1) and len(target) > 1:
            target = target[1:]
        left, sizes = tuple(target), list(target)
        if self.chance(0.4):
            sizes[int(self.rng.integers(1 if self.symbolic and len(sizes) > 1 else 0, len(sizes)))] = -1
        zero = int(self.chance(0.3)) if self.opset >= 14 and self.chance(0.2) else None
        if self.symbolic and not self.chance(ODD / 2):
            if -1 in sizes[1:] or self.chance(0.5):
                if self.chance(0.6) or zero:
                    self.emit("Reshape", [x, self.batch_and(x, sizes[1:])], left, allowzero=zero)
                    return
                sizes[0] = 0
            else:
                sizes[0] = -1
        elif zero != 1:
            sizes = [0 if i < len(shape) and size == shape[i] and self.chance(0.3) else size for i, size in enumerate(sizes)]
        self.emit("Reshape", [x, self.integers(*sizes)], left, allowzero=zero)

    def batch_and(self, x: str, rest: list[int]) -> str:
        """Returns a list of sizes that begins with the batch as a program computes it."""
        if self.opset >= 15 and self.chance(0.4):
            first = self.moved("Shape", [x], start=0 if self.chance(0.5) else None, end=1)
        else:
            whole = self.moved("Shape", [x])
            if self.chance(0.5):
                first = self.moved("Gather", [whole, self.stored(np.array([0], np.int64))], axis=0 if self.chance(0.5) else None)
            elif self.chance(0.5) and self.opset >= 10:
                first = self.moved("Slice", [whole, self.integers(0), self.integers(1)])
            else:
                scalar = self.moved("Gather", [whole, self.stored(np.array(0, np.int64))], axis=0)
                first = self.axes_of("Unsqueeze", scalar, [0])
        if self.chance(0.1):
            first = self.moved("Cast", [first], to=TensorProto.INT64)
        return self.moved("Concat", [first, self.stored(np.array(rest, np.int64))], axis=0)

    def squeeze(self) -> None:
        x, shape = self.pick()
        ones = [i for i, size in enumerate(shape) if size == 1 and (i or not self.symbolic)]
        if not self.chance(0.15):
            ones = [i for i in ones if i]
        if self.chance(ODD if self.symbolic else 0.15):
            self.emit("Squeeze", [x], tuple(size for size in shape if size != 1))
        elif ones or self.chance(ODD):
            axes = self.subset(ones) if ones else [int(self.rng.integers(0, len(shape)))]
            left = tuple(size for i, size in enumerate(shape) if i not in axes)
            self.axes_node("Squeeze", x, [self.signed(axis, len(shape)) for axis in axes], left)

    def unsqueeze(self) -> None:
        x, shape = self.pick()
        if len(shape) > 4:
            return
        rank = len(shape) + int(self.rng.integers(1, 3))
        axes = self.subset(list(range(0 if self.chance(ODD if self.symbolic else 0.2) else 1, rank)))[: rank - len(shape)]
        rank, sizes = len(shape) + len(axes), iter(shape)
        axes = [axis for axis in axes if axis < rank]
        if len(axes) == rank - len(shape) and axes:
            left = tuple(1 if i in axes else next(sizes) for i in range(rank))
            self.axes_node("Unsqueeze", x, [self.signed(axis, rank) for axis in axes], left)

    def axes_node(self, kind: str, x: str, axes: list[int], left: Shape) -> None:
        if (self.opset < 13) != self.chance(ODD / 4):
            self.emit(kind, [x], left, axes=axes)
        else:
            self.emit(kind, [x, self.integers(*axes)], left)

    def transpose(self) -> None:
        x, shape = self.pick()
        rank = len(shape)
        order = [0, *(int(i) + 1 for i in self.rng.permutation(rank - 1))]
        if self.chance(ODD if self.symbolic else 0.15):
            order = [int(i) for i in self.rng.permutation(rank)]
        plain = order == list(reversed(range(rank))) and self.chance(0.5)
        self.emit("Transpose", [x], tuple(shape[i] for i in order), perm=None if plain else order)

    def concat(self) -> None:
        x, shape = self.pick()
        axis = self.axis(len(shape))
        fitting = [(n, s) for n, s in self.pool if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]]
        parts = [fitting[int(self.rng.integers(len(fitting)))] for _ in range(int(self.rng.integers(0, 3)))]
        total = shape[axis] + sum(s[axis] for _, s in parts)
        self.emit("Concat", [x, *(n for n, _ in parts)], (*shape[:axis], total, *shape[axis + 1 :]), axis=self.signed(axis, len(shape)))

    def slice(self) -> None:
        x, shape = self.pick()
        rank, far = len(shape), [2**31 - 1, 2**63 - 1, 1000]
        axes = self.subset(list(range(1, rank)) or [0])
        if self.chance(0.15):
            axes = list(range(len(axes) + 1))[:rank]
        starts, ends, steps, left = [], [], [], list(shape)
        for axis in axes:
            size = shape[axis]
            start = int(self.rng.integers(0, size))
            stop = int(self.rng.integers(start + 1, size + 1))
            step = int(self.rng.choice([1, 1, 1, 2, 3])) if self.opset >= 10 else 1
            if axis == 0 and not self.chance(ODD):
                start, stop, step = 0, size, 1
            left[axis] = len(range(start, stop, step))
            starts.append(start - size if self.chance(0.3) and (axis or not self.symbolic) else start)
            if axis == 0 and self.symbolic:
                ends.append(int(self.rng.choice(far[:2])))
            else:
                ends.append(
                    int(self.rng.choice(far))
                    if stop == size and self.chance(0.4)
                    else stop - size
                    if 0 < stop < size and self.chance(0.3)
                    else stop
                )
            steps.append(step)
        named = None if axes == list(range(len(axes))) and self.chance(0.6) else [self.signed(axis, rank) for axis in axes]
        if self.opset < 10:
            self.emit("Slice", [x], tuple(left), starts=starts, ends=ends, axes=named)
            return
        inputs = [x, self.integers(*starts), self.integers(*ends), "" if named is None else self.integers(*named)]
        inputs += [self.integers(*steps)] if any(step != 1 for step in steps) or self.chance(0.3) else []
        self.emit("Slice", inputs if inputs[3] or len(inputs) > 4 else inputs[:3], tuple(left))

    def gather(self) -> None:
        x, shape = self.pick()
        axis = self.axis(len(shape))
        size = shape[axis]
        count = () if self.chance(0.2) else (2, 2) if self.chance(0.2) else (int(self.rng.integers(1, size + 2)),)
        indices = np.asarray(self.rng.integers(-size, size + int(self.chance(ODD / 4)), count), np.int64)
        given = None if axis == 0 and self.chance(0.5) else self.signed(axis, len(shape))
        self.emit("Gather", [x, self.stored(indices)], (*shape[:axis], *count, *shape[axis + 1 :]), axis=given)

    def split(self) -> None:
        x, shape = self.pick()
        axis = self.axis(len(shape))
        size = shape[axis]
        count = int(self.rng.integers(1, min(3, size) + 1))
        cuts = sorted(int(i) for i in self.rng.permutation(np.arange(1, size))[: count - 1])
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
        each = -(-size // count)
        even = [min(each, size - i * each) for i in range(count)]
        implicit = self.chance(0.5) and (even[-1] == each or (self.opset >= 18 and even[-1] > 0) or self.chance(ODD))
        inputs, a = [x], dict[str, Any]()
        if implicit:
            sizes = even
            a["num_outputs"] = count if self.opset >= 18 and not self.chance(ODD / 2) else None
        elif self.opset < 13:
            a["split"] = sizes
        else:
            inputs.append(self.integers(*sizes))
        given = None if axis == 0 and self.chance(0.5) else self.signed(axis, len(shape))
        self.emit("Split", inputs, *((*shape[:axis], n, *shape[axis + 1 :]) for n in sizes), axis=given, **a)

    def pad(self) -> None:
        x, shape = self.pick()
        rank = len(shape)
        axes = self.subset(list(range(1, rank)) or [0]) if self.opset >= 18 and self.chance(0.5) else list(range(rank))
        amount = {axis: [int(self.rng.integers(0, 3)) for _ in range(2)] for axis in axes}
        if 0 in amount and not self.chance(ODD / 2) and rank > 1:
            amount[0] = [0, 0]
        if self.chance(ODD / 2):
            amount[axes[-1]][0] = -1
        pads = [amount[axis][0] for axis in axes] + [amount[axis][1] for axis in axes]
        left = tuple(size + sum(amount.get(i, [0])) for i, size in enumerate(shape))
        mode = None if self.chance(0.6) else "reflect" if self.chance(ODD) else "constant"
        value = None if self.chance(0.5) else float(self.rng.choice([0.0, 1.5, -2.0]))
        if self.opset < 11:
            self.emit("Pad", [x], left, pads=pads, mode=mode, value=value)
            return
        inputs = [x, self.integers(*pads), "" if value is None else self.stored(np.array(value, self.float))]
        if len(axes) < rank or (self.opset >= 18 and self.chance(0.3)):
            inputs.append(self.integers(*(self.signed(axis, rank) for axis in axes)))
        self.emit("Pad", inputs if inputs[2] or len(inputs) > 3 else inputs[:2], left, mode=mode)

    def nothing(self) -> None:
        x, shape = self.pick()
        kind = str(self.rng.choice(["Identity", "Dropout", "Cast"]))
        if kind == "Cast":
            self.emit(kind, [x], shape, to=TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)
        elif kind == "Dropout" and self.opset >= 12 and self.chance(0.4):
            mode = [self.stored(np.array(self.chance(0.05)))] if self.chance(0.5) else []
            # ONNX Runtime takes a Dropout whose ratio a node makes for that ratio; test_export_bfloat16_storage.py has such a file.
            self.emit(kind, [x, self.stored(np.array(0.5, self.float), plain=True), *mode], shape)
        else:
            self.emit(kind, [x], shape, ratio=0.3 if kind == "Dropout" and self.opset < 12 and self.chance(0.5) else None)

    def several_readers(self) -> None:
        """A quantised activation that one or several DequantizeLinear read."""
        x, shape = self.pick()
        if self.quantised:
            self.pool += [(name, shape) for name in self.pair(x, int(self.rng.integers(1, 3)))]

    STEPS = (
        *("conv", "conv", "max_pool", "average_pool", "global_average", "gemm", "gemm", "matmul", "batch_norm"),
        *("curve", "curve", "with_constant", "with_constant", "two", "reduce", "flatten", "reshape", "squeeze", "unsqueeze"),
        *("transpose", "concat", "slice", "gather", "split", "pad", "nothing", "several_readers"),
    )
    NEEDS = {"conv": (3, 4), "max_pool": (3, 4), "average_pool": (3, 4), "global_average": (3, 4), "gemm": (2,)}  # noqa: RUF012


def random_file(seed: Any, most: int = 8) -> File:
    """Returns the file of a seed, of up to `most` operators beside those that its constants and its last reshape need."""
    rng = np.random.default_rng(seed)
    w = Mover(rng)
    wanted = int(rng.integers(1, most + 1))
    for _ in range(24):
        step = str(rng.choice(Mover.STEPS))
        if step in w.NEEDS and not w.has(*w.NEEDS[step]):
            continue
        before = len(w.nodes)
        getattr(w, step)()
        wanted -= len(w.nodes) > before
        if not wanted:
            break
    result, shape = w.pool[-1]
    if w.quantised and w.chance(0.3):
        result = w.pair(result)[0]
    if len(shape) != 2 or shape[0] != 1 or w.chance(0.1):
        if w.symbolic and w.chance(0.5):
            result = w.emit("Flatten", [result], (1, prod(shape)))[0]
        else:
            target = [-1, prod(shape)] if w.symbolic else [1, -1]
            result = w.emit("Reshape", [result, w.integers(*target)], (1, prod(shape)))[0]
    if result in w.scales and w.chance(0.8):  # logits are float32, so the last operator computes them
        weight = w.affine_weight((3, prod(shape)))
        w.node("Gemm", [result, weight, w.affine_bias(3, (3,), result, weight)], ["logits"], transB=1)
        result = "logits"
    if w.half:
        result = w.emit("Cast", [result], (1, prod(shape)), to=TensorProto.FLOAT)[0]
    return _file(w, result)


def _file(w: Mover, result: str) -> File:
    nodes = list(w.nodes)
    if not nodes:
        w.node("Identity", [result], ["y"])
        nodes, result = list(w.nodes), "y"
    if w.chance(0.08):
        nodes = [nodes[int(i)] for i in w.rng.permutation(len(nodes))]
    batch: Any = "N" if w.symbolic else 1
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *w.shape])]
    old = w.chance(0.1)
    if old:  # initializers that are inputs too
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in w.initializers]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)], w.initializers)
    sets = (
        [helper.make_opsetid("", w.opset)]
        if w.chance(0.95)
        else [helper.make_opsetid(d, w.opset) for d in ("ai.onnx", "", "com.microsoft")]
    )
    if len(sets) > 1:
        sets[2].version = 1
    model = helper.make_model(graph, opset_imports=sets, ir_version=3 if old and w.chance(0.3) else 10)
    kinds = [node.op_type for node in nodes]
    return File(model.SerializeToString(), None if w.symbolic else 1, w.shape, w.opset, kinds, w.half, w.quantised)
