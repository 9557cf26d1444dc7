"""A build compares the live certificate that a compiler made with the arithmetic that is proved, and refuses another bit by name."""

from dataclasses import replace

import numpy as np
import pytest

from vsparse.data import Dataset
from vsparse.errors import SoundnessError, UnavailableError
from vsparse.graph.ir import Conv, Gemm, Graph, MaxPool, Relu, Reshape
from vsparse.perturbation import PerturbationSet
from vsparse.stages.export import write_onnx
from vsparse.stages.export.c_live.forms import FLOAT, INTEGER
from vsparse.stages.export.c_source import find_compiler
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify import live
from vsparse.stages.verify.live import LiveCertifier, record_live

SHAPE, COUNT = (2, 6, 6), 24


@pytest.fixture(autouse=True)
def _compiler() -> None:
    try:
        find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))


def _net() -> Graph:
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=size).astype(np.float32) for name, size in (("w", (4, 1, 3, 3)), ("b", 4), ("v", (3, 16)), ("c", 3))}
    nodes = (
        Conv(name="conv", inputs=("x",), shape=(4, 4, 4), weight="w", bias="b", groups=2),
        Relu(name="relu", inputs=("conv",), shape=(4, 4, 4)),
        MaxPool(name="pool", inputs=("relu",), shape=(4, 2, 2), kernel=(2, 2), stride=(2, 2)),
        Reshape(name="flat", inputs=("pool",), shape=(16,)),
        Gemm(name="fc", inputs=("flat",), shape=(3,), weight="v", bias="c"),
    )
    return Graph(input="x", input_shape=SHAPE, nodes=nodes, output="fc", params=params)


def _frames(count: int = COUNT, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE)).astype(np.float32)


def _recorded(folder, budget: int = 0, int8: bool = False) -> list[str]:
    """Returns what recording the verdicts of the network tells."""
    path, quantised = folder / "model.fp32.onnx", folder / "model.int8.onnx"
    write_onnx(_net(), path, 17, {})
    if int8:
        write_onnx(quantise(_net(), _frames(64, 3)), quantised, 17, {})
    dataset, told = Dataset(_frames(), 1.0, np.zeros(COUNT, np.int64), tuple("abc"), None), []
    record_live(
        path,
        dataset,
        PerturbationSet(epsilon="0.02"),
        dataset,
        range(COUNT),
        told.append,
        int8=quantised if int8 else None,
        budget=budget,
    )
    return told


def _with(monkeypatch, old: str, new: str, kind=FLOAT) -> None:
    """Makes the C of a form have another text."""

    def emit(graph, data_range, second):
        source = kind.emit(graph, data_range, second)
        assert old in source.source
        return replace(source, source=source.source.replace(old, new))

    changed = replace(kind, emit=emit)
    monkeypatch.setattr(live, "live_form_of", lambda graph: changed if bool(graph.integers) is (kind is INTEGER) else FLOAT)
    monkeypatch.setattr("vsparse.stages.verify.live_bits.FLOAT", changed if kind is FLOAT else FLOAT)


def test_every_recorded_verdict_of_the_compiled_c_has_the_bits_of_the_simulation(tmp_path):
    told = _recorded(tmp_path, budget=2, int8=True)
    assert told.count(f"{COUNT} of {COUNT} verdicts of the compiled C have the bits of its simulation") == 2


def test_without_a_compiler_a_line_says_that_nothing_was_compared(tmp_path, monkeypatch):
    def none(self):
        raise UnavailableError("no C compiler")

    monkeypatch.setattr(LiveCertifier, "_compile", none)
    told = _recorded(tmp_path)
    assert told == ["live certificate of model.fp32.onnx, by simulation; no C compiler is here, so no C is compared with it"]


HALVED = "    int beyond = 0, label = 0;\n#ifndef __GNUC__\n    epsilon *= 0.5f;\n#endif"
ANSWERS = r"model\.c, compiled here, answers sample \d+ at 0\.02 with class"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("score[label] - score[i]", "0.9999f * score[label] - score[i]", ANSWERS),
        ("    int beyond = 0, label = 0;", HALVED, r"model\.c without vectors, compiled here, answers"),
        ("    return found;\n}", "    return 1.5f * found;\n}", r"model\.c, compiled here, finds the radius"),
    ],
    ids=["verdict", "without vectors", "radius"],
)
def test_another_bit_refuses_the_build_by_file_and_sample(tmp_path, monkeypatch, old, new, words):
    _with(monkeypatch, old, new)
    with pytest.raises(SoundnessError, match=words):
        _recorded(tmp_path)


def test_another_bit_of_the_integers_refuses_the_build(tmp_path, monkeypatch):
    _with(monkeypatch, "float low = x - epsilon, high = x + epsilon;", "float low = x - epsilon, high = x;", INTEGER)
    with pytest.raises(SoundnessError, match=r"model\.int8\.c, compiled here, answers sample"):
        _recorded(tmp_path, int8=True)


def test_another_bit_of_a_backward_pass_refuses_the_build(tmp_path, monkeypatch):
    """Frames that intervals leave open are the first that are compared."""
    _with(monkeypatch, "going = found > 0.0f;", "going = found > 0.0f; found = 2.0f * found;")
    with pytest.raises(SoundnessError, match=r"model\.c, compiled here, answers sample"):
        _recorded(tmp_path, budget=2)


def test_another_bit_of_a_backward_pass_in_integers_refuses_the_build(tmp_path, monkeypatch):
    _with(monkeypatch, "going = found > 0.0f;", "going = found > 0.0f; found = 2.0f * found;", INTEGER)
    with pytest.raises(SoundnessError, match=r"model\.int8\.c, compiled here, answers sample"):
        _recorded(tmp_path, budget=2, int8=True)
