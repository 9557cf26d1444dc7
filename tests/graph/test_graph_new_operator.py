"""A new operator is one module of a family: here two moves and a function of one number that the graph does not have.

Nothing but what such a module holds is said of them, and they are read, executed, written, turned into torch and compared with what
ONNX Runtime makes of their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from vsparse.errors import GateError, InputError
from vsparse.graph import Graph, Move, Unary, from_onnx, run, to_onnx, to_torch
from vsparse.graph.onnx_context import OPERATORS, Activation, OnnxContext, reads
from vsparse.graph.rules import OnnxForm, OnnxNames, apply, onnx_form
from vsparse.stages.export import check_runtime_graph


@dataclass(frozen=True, kw_only=True)
class Tile(Move):
    """The input repeated along each dimension."""

    repeats: tuple[int, ...]

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the repeated elements."""
        return np.tile(inputs[0], self.repeats)


@dataclass(frozen=True, kw_only=True)
class Frame(Move):
    """Elements of [channels, height, width] by rows of a list, where −1 is the number 0.25; ONNX has no such operator."""

    rows: tuple[int, ...]

    @property
    def fill(self) -> float:
        """The number."""
        return 0.25

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows."""
        wide = np.concatenate([inputs[0], np.full_like(inputs[0][:, :1], -1)], axis=1)
        return wide[:, list(self.rows)]


@dataclass(frozen=True, kw_only=True)
class Blocks(Move):
    """Channels as pixels of blocks, in ONNX's order "CRD" or "DCR"."""

    block: int
    mode: str

    def rearranged(self, *inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the elements, [channels / size², height · size, width · size]."""
        channels, height, width = inputs[0].shape
        rest = channels // self.block**2
        if self.mode == "CRD":
            parts = inputs[0].reshape(rest, self.block, self.block, height, width).transpose(0, 3, 1, 4, 2)
        else:
            parts = inputs[0].reshape(self.block, self.block, rest, height, width).transpose(2, 3, 0, 4, 1)
        return parts.reshape(rest, height * self.block, width * self.block)


@dataclass(frozen=True, kw_only=True)
class Elu(Unary):
    """x where x > 0, else alpha · (e^x − 1)."""

    alpha: float


@apply.register
def _(node: Elu, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.nn.functional.elu(x, node.alpha)


@onnx_form.register
def _(node: Tile, names: OnnxNames) -> OnnxForm:
    return OnnxForm("Tile", [names.store(f"{node.name}.repeats", np.array([1, *node.repeats], np.int64))], {})


@onnx_form.register
def _(node: Blocks, names: OnnxNames) -> OnnxForm:
    return OnnxForm("DepthToSpace", [], {"blocksize": node.block, "mode": node.mode})


@onnx_form.register
def _(node: Elu, names: OnnxNames) -> OnnxForm:
    return OnnxForm("Elu", [], {"alpha": node.alpha})


Values = list[Any]


@pytest.fixture(autouse=True)
def _readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(OPERATORS)

    @reads("Tile", 2, 2, only="moves")
    def read_tile(c: OnnxContext, values: Values, names: list[str], a: dict[str, Any]) -> Activation:
        x = c.samples(values[0])
        repeats = tuple(c.constant_integers(values[1], names[1])[1:])
        return c.add(Tile(name=c.fresh(), inputs=(x.name,), shape=(), repeats=repeats))

    @reads("DepthToSpace", 1, 1, "blocksize", "mode", only="moves")
    def read_blocks(c: OnnxContext, values: Values, names: list[str], a: dict[str, Any]) -> Activation:
        x = c.samples(values[0])
        return c.add(Blocks(name=c.fresh(), inputs=(x.name,), shape=(), block=a["blocksize"], mode=a.get("mode", "DCR")))

    @reads("Elu", 1, 1, "alpha", only="function")
    def read_elu(c: OnnxContext, values: Values, names: list[str], a: dict[str, Any]) -> Activation:
        return c.unary(Elu, values[0], alpha=float(a.get("alpha", 1.0)))

    yield
    OPERATORS.clear()
    OPERATORS.update(before)


def model(alpha: float = 0.5, mode: str = "CRD") -> bytes:
    """Returns a file: Conv, DepthToSpace, Elu, Tile, Flatten, Gemm."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(8, 1, 3, 3)),
        "b": rng.normal(size=8),
        "v": rng.normal(size=(3, 2 * 4 * 4 * 3)),
        "c": rng.normal(size=3),
    }
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    tensors.append(numpy_helper.from_array(np.array([1, 1, 1, 3], np.int64), "r"))
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"]),
        helper.make_node("DepthToSpace", ["a"], ["d"], blocksize=2, mode=mode),
        helper.make_node("Elu", ["d"], ["e"], alpha=alpha),
        helper.make_node("Tile", ["e", "r"], ["t"]),
        helper.make_node("Flatten", ["t"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s]) for n, s in (("x", (1, 4, 4)), ("y", (3,)))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def executed(data: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def logits(graph: Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(run(graph, graph.tensors(), torch.from_numpy(x)))


X = np.random.default_rng(1).normal(size=(2, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_it_is_read_executed_written_and_turned_into_torch(mode: str) -> None:
    data = model(mode=mode)
    graph = from_onnx(data)
    assert [type(node) for node in graph.nodes][1:4] == [Blocks, Elu, Tile]
    wanted = executed(data, X)
    again = to_onnx(graph).SerializeToString()
    assert np.allclose(logits(graph, X), wanted, atol=1e-5)
    assert np.allclose(executed(again, X), wanted, atol=1e-5)
    assert np.allclose(logits(from_onnx(again), X), wanted, atol=1e-5)
    assert np.allclose(to_torch(graph)(torch.from_numpy(X)).detach().numpy(), wanted, atol=1e-5)


def test_the_runtime_s_graph_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model())
    report = check_runtime_graph(path)
    assert report.compared == 3
    assert {"DepthToSpace", "Elu", "Tile"} <= set(report.unoptimised.operators)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("DepthToSpace", lambda node: {"mode": "DCR" if node.mode == "CRD" else "CRD"}),
        ("Elu", lambda node: {"alpha": 2 * node.alpha}),
        ("Tile", lambda node: {"repeats": (1, 3, 1)}),
    ],
)
def test_a_reader_that_is_wrong_is_found(
    kind: str, wrong: Callable[[Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model())
    types = {"DepthToSpace": Blocks, "Elu": Elu, "Tile": Tile}
    true = OnnxContext.add

    def add(self: OnnxContext, node: Any, batched: bool = True) -> Activation:
        changed = type(node)(**{**vars(node), **wrong(node)}) if isinstance(node, types[kind]) else node
        return true(self, changed, batched)

    monkeypatch.setattr(OnnxContext, "add", add)
    with pytest.raises(GateError, match="read as another network"):
        check_runtime_graph(path)


def test_what_does_not_fit_is_refused_by_name() -> None:
    parsed = onnx.load_from_string(model())
    parsed.graph.node[1].attribute[0].i = 3
    with pytest.raises(InputError, match='Blocks "d" does not fit its input'):
        from_onnx(parsed.SerializeToString())


def test_an_index_map_with_a_constant() -> None:
    node = Frame(name="y", inputs=("x",), shape=(2, 4, 3), rows=(1, -1, 0, 1))
    x = torch.arange(12.0).reshape(1, 2, 2, 3)
    found = apply(node, {}, x)
    assert node.index_map([(2, 2, 3)]).tolist()[0] == [[3, 4, 5], [-1, -1, -1], [0, 1, 2], [3, 4, 5]]
    assert torch.equal(found[0, 1, 0], x[0, 1, 1])
    assert bool((found[:, :, 1] == 0.25).all())
