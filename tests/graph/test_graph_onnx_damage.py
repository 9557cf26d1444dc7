"""Damaged and hostile ONNX files end in one sentence, quickly and in bounded memory."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_nets import resnet
from onnx import TensorProto, helper, numpy_helper

from vsparse.errors import InputError
from vsparse.graph import fold_batch_norm, from_onnx, from_torch, onnx_file, to_onnx


@pytest.fixture(scope="module")
def good() -> bytes:
    return bytes(to_onnx(fold_batch_norm(from_torch(resnet(), (3, 8, 8))), metadata={"vsparse.contract": "fp32"}).SerializeToString())


def refused(proto: onnx.ModelProto | bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        from_onnx(proto if isinstance(proto, bytes) else proto.SerializeToString())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_truncated_files(good: bytes) -> None:
    for length in [*range(0, len(good), 97), len(good) - 1]:
        with pytest.raises(InputError):
            from_onnx(good[:length])


def test_flipped_bytes_raise_input_errors_or_still_read(good: bytes) -> None:
    generator = random.Random(0)
    failed = 0
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(generator.choice((1, 1, 2, 8))):
            # The structure sits between and after the weights; aim half of the damage at the last, structural part.
            start = generator.choice((0, max(0, len(data) - 1500)))
            data[generator.randrange(start, len(data))] = generator.randrange(256)
        try:
            from_onnx(bytes(data))
        except InputError:
            failed += 1
    assert failed > 300


def test_noise_is_refused() -> None:
    generator = random.Random(1)
    for size in (0, 1, 10, 1000):
        refused(generator.randbytes(size), "model")


def test_absent_directory_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is not there"):
        from_onnx(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder, and a file is wanted"):
        from_onnx(tmp_path)
    monkeypatch.setattr(onnx_file, "MAX_ONNX_BYTES", 100)
    (tmp_path / "big.onnx").write_bytes(bytes(101))
    with pytest.raises(InputError, match="101 bytes"):
        from_onnx(tmp_path / "big.onnx")
    with pytest.raises(InputError, match="101 bytes"):
        from_onnx(bytes(101))


def test_cycle_and_unsorted_nodes(good: bytes) -> None:
    proto = onnx.load_from_string(good)
    proto.graph.node[2].input[0] = proto.graph.node[5].output[0]
    refused(proto, "cycle")
    graph = from_onnx(good)
    for seed in range(5):  # runtimes sort such files, so they are read as the sorted one
        proto = onnx.load_from_string(good)
        nodes = list(proto.graph.node)
        random.Random(seed).shuffle(nodes)
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        unsorted = from_onnx(proto.SerializeToString())
        assert {node.name: node for node in unsorted.nodes} == {node.name: node for node in graph.nodes}
    assert from_onnx(good).nodes == graph.nodes


def test_duplicate_names(good: bytes) -> None:
    proto = onnx.load_from_string(good)
    proto.graph.node[3].output[0] = proto.graph.node[2].output[0]
    refused(proto, "exists already")
    proto = onnx.load_from_string(good)
    proto.graph.initializer.append(proto.graph.initializer[0])
    refused(proto, "two initializers")


def test_missing_initializer_inputs_and_outputs(good: bytes) -> None:
    proto = onnx.load_from_string(good)
    del proto.graph.initializer[0]
    refused(proto, "no node makes")
    proto = onnx.load_from_string(good)
    proto.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1, 2]))
    refused(proto, "2 input")
    proto = onnx.load_from_string(good)
    proto.graph.output.append(helper.make_tensor_value_info("stem", TensorProto.FLOAT, None))
    refused(proto, "2 output")
    proto = onnx.load_from_string(good)
    proto.graph.output[0].name = "nowhere"
    refused(proto, "not computed from the input")
    proto = onnx.load_from_string(good)
    proto.graph.output[0].name = "stem"
    refused(proto, "flatten")
    proto = onnx.load_from_string(good)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    refused(proto, "declared")


def test_external_sparse_and_segmented_data(good: bytes, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 64)
    proto = onnx.load_from_string(good)
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], str(secret))
    refused(proto, "another file")
    proto = onnx.load_from_string(good)
    proto.graph.initializer[0].segment.begin = 1
    refused(proto, "segments")
    proto = onnx.load_from_string(good)
    proto.graph.sparse_initializer.add()
    refused(proto, "sparse")
    proto = onnx.load_from_string(good)
    proto.functions.add().name = "f"
    refused(proto, "inlined")


@pytest.mark.parametrize("dims", [[2**40], [2**31, 2**31, 2**31], [-1], [2**62, 4, 0, 3], [3]])
def test_declared_sizes_are_compared_with_the_data(good: bytes, dims: list[int]) -> None:
    proto = onnx.load_from_string(good)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    tracemalloc.start()
    refused(proto, "shape")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (["batch", 3, "h", "w"], "symbolic"),
        (["batch", 3, 0, 8], "at least 1"),
        (["batch", 3, -4, 8], "at least 1"),
        (["batch", 3, 2**40, 8], "allowed"),
        ([], "dimension"),
        (None, "no shape"),
        ([5, 3, 8, 8], "batch of 5"),
    ],
)
def test_input_shapes(good: bytes, shape: list[object] | None, reason: str) -> None:
    proto = onnx.load_from_string(good)
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
    refused(proto, reason)


def test_other_types_and_versions(good: bytes) -> None:
    proto = onnx.load_from_string(good)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    refused(proto, "float32")
    proto = onnx.load_from_string(good)
    proto.opset_import[0].version = 99
    refused(proto, "opset 99")
    del proto.opset_import[:]
    refused(proto, "does not say its opset")
    refused(onnx.ModelProto(), "no network")


def test_names_with_control_characters_do_not_reach_the_sentence(good: bytes) -> None:
    proto = onnx.load_from_string(good)
    proto.graph.node[2].name = "evil\n\x1b[31m" + "n" * 5000
    proto.graph.node[2].op_type = "Soft\nmax"
    refused(proto, "evil")


def test_repeated_joining_of_shapes_stays_small() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Concat", [f"s{i}"] * 8, [f"s{i + 1}"], axis=0) for i in range(40)]
    nodes += [helper.make_node("Reshape", ["x", "s40"], ["y"])]
    refused(_model(nodes, {}), "at most")


def test_one_weight_read_in_many_layouts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from vsparse.graph import builder

    monkeypatch.setattr(builder, "MAX_PARAMETERS", 2000)
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}"]) for i in range(300)]
    refused(_model([*nodes, helper.make_node("Identity", ["h300"], ["y"])], {"w": np.eye(4, dtype=np.float32)}), "parameters")


def test_many_nodes_are_refused(monkeypatch: pytest.MonkeyPatch, good: bytes) -> None:
    monkeypatch.setattr(onnx_file, "MAX_NODES", 5)
    refused(good, "more than the 5")


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("name", "value"), [("strides", 2), ("group", [1, 1]), ("auto_pad", 1.5), ("pads", "SAME"), ("kernel_shape", 3.0)])
def test_attributes_of_another_kind(good: bytes, name: str, value: object) -> None:
    proto = onnx.load_from_string(good)
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    kept = [attribute for attribute in conv.attribute if attribute.name != name]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute(name, value)])
    refused(proto, f'"{name}" of another kind')
