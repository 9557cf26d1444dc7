"""Random files that are read and written again are the same network, node by node and bit by bit."""

from __future__ import annotations

from reading_damage import file_of

from vsparse.errors import VsparseError
from vsparse.graph import fold_batch_norm, read_onnx, to_onnx
from vsparse.reading.written import first_difference


def test_what_is_read_is_written_as_the_same_network() -> None:
    same = 0
    for i in range(300):
        try:
            graph = fold_batch_norm(read_onnx(file_of(7, i).data).graph, constants=True)
        except VsparseError:
            continue
        again = read_onnx(to_onnx(graph).SerializeToString()).graph
        assert first_difference(graph, again) == "", f"file {i} of seed 7"
        same += 1
    assert same > 150
