"""What was written is what was meant, bit by bit, and the same function as what was read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading_nets import Model, every_operator

from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import GateError
from vsparse.graph import Graph, Pad, Reshape, fold_batch_norm, read_onnx, to_onnx
from vsparse.reading import Asked, check_reading, check_written
from vsparse.reading.written import first_difference
from vsparse.recipe import Property, Verify


def folded() -> Graph:
    return fold_batch_norm(read_onnx(every_operator()).graph, constants=True)


def written(graph: Graph, folder: Path) -> Path:
    path = folder / "written.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    return path


def test_a_file_that_is_what_was_meant_has_evidence(tmp_path: Path) -> None:
    source, graph = read_onnx(every_operator()).graph, folded()
    path = written(graph, tmp_path)
    assert check_written(path, graph, source=source) == check_reading(path)
    assert check_written(path, graph, source=graph, exact=True) == check_reading(path)


def changed_parameter(graph: Graph, name: str) -> Graph:
    parameter = graph.node(name).params[0]
    value = graph.params[parameter].copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(np.inf))
    return replace(graph, params={**graph.params, parameter: value})


def changed(graph: Graph, name: str, **changes: Any) -> Graph:
    return replace(graph, nodes=tuple(replace(node, **changes) if node.name == name else node for node in graph.nodes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: changed_parameter(g, "gemm"), r'node "gemm" \(Gemm\) has another parameter 0'),
        (lambda g: changed_parameter(g, "quotient"), r'node "quotient" \(DivConstant\) has another parameter 0'),
        (lambda g: changed(g, "conv", pads=(1, 0, 1, 2)), r'node "conv" \(Conv\) has another pads'),
        (lambda g: changed(g, "leaky", slope=0.5), r'node "leaky" \(LeakyRelu\) has another slope'),
        (lambda g: changed(g, "concat", inputs=("lower", "upper")), r'node "concat" \(Concat\) has another inputs'),
        (lambda g: replace(g, storage="fp16"), "an input"),
    ],
)
def test_one_bit_of_another_network_is_a_bug_that_is_told(change: Any, said: str, tmp_path: Path) -> None:
    path = written(folded(), tmp_path)
    with pytest.raises(GateError, match=f"written as another network than was meant: .*{said}"):
        check_written(path, change(folded()))


def test_what_a_file_cannot_tell_apart_is_the_same() -> None:
    m = Model(2, 4, 4)
    m.add("Conv", m.weights(3, 2, 3, 3), name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    m.add("GlobalAveragePool", name="pool")
    m.add("Flatten", name="flat")
    graph = read_onnx(m.data(3)).graph
    conv, pool, flat = graph.nodes
    pad = Pad(name="pad", inputs=("x",), shape=(2, 6, 6), before=(0, 1, 1), after=(0, 1, 1))
    nothing = Reshape(name="nothing", inputs=("flat",), shape=(3,))
    other = replace(
        graph, nodes=(pad, replace(conv, inputs=("pad",), pads=(0, 0, 0, 0)), replace(pool, stride=(1, 1)), flat, nothing), output="nothing"
    )
    assert first_difference(graph, other) == ""
    assert first_difference(graph, replace(graph, nodes=graph.nodes[:2])) == "2 nodes in place of 3"
    assert "another pads" in first_difference(graph, changed(other, "conv", pads=(1, 0, 0, 0)))


def test_a_source_that_is_another_function_is_noticed(tmp_path: Path) -> None:
    graph = folded()
    path = written(graph, tmp_path)
    weight = graph.node("gemm").params[0]
    other = replace(graph, params={**graph.params, weight: graph.params[weight] * np.float32(1.001)})
    with pytest.raises(GateError, match="another function than its source: output"):
        check_written(path, graph, source=other)


def test_a_source_that_differs_outside_of_the_range_alone_is_the_same_inside(tmp_path: Path) -> None:
    m = Model(3)
    m.add("Clip", np.array(0, np.float32), np.array(1, np.float32), name="clip")
    m.add("Gemm", m.weights(3, 2), name="gemm")
    source = read_onnx(m.data(2)).graph
    graph = changed(source, "clip", highest=2.0)
    path = written(graph, tmp_path)
    check_written(path, graph, source=source, asked=Asked(inside=(0.0, 1.0)))
    with pytest.raises(GateError, match="another function"):
        check_written(path, graph, source=source)


def test_compress_and_export_say_what_they_compared(tmp_path: Path) -> None:
    from vsparse import compress, export

    path = tmp_path / "net.onnx"
    path.write_bytes(every_operator())
    packed = compress(path, tmp_path / "packed.onnx")
    exported = export(path, out=tmp_path / "exported")
    for result in (packed, exported):
        assert isinstance(result, dict)
        assert result["reading"]["executions"] > 0
        assert result["written"]["values_compared"] > 0
    assert json.loads((tmp_path / "exported" / "model" / "reading.json").read_text()) == exported["written"]


def test_the_evidence_lies_beside_the_certificate_and_outside_of_its_hash(tmp_path: Path) -> None:
    from vsparse.artifact.certificate import read_certificate, write_certificate
    from vsparse.stages.verify import certify

    m = Model(1, 2, 2)
    m.add("Flatten", name="flat")
    m.add("Gemm", m.weights(4, 2), name="gemm")
    path = tmp_path / "net.onnx"
    path.write_bytes(m.data(2))
    data = Dataset(np.full((2, 1, 2, 2), 0.5, np.float32), 1.0, np.array([0, 1], dtype=np.int64), ("a", "b"), None)
    run = certify(path, data, Property(epsilon="0.01"), CONTRACTS["fp32"], Verify())
    assert run.reading is not None
    assert run.reading.points > 19
    assert run.digest() == run.model_copy(update={"reading": None}).digest()
    write_certificate(tmp_path / "out" / "certificate.json", run)
    assert json.loads((tmp_path / "out" / "reading.json").read_text()) == run.reading.as_dict()
    assert "reading" not in json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert read_certificate(tmp_path / "out" / "certificate.json").digest() == run.digest()
