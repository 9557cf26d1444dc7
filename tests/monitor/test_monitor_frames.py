"""`vsparse.live`: the device's verdicts to the bit, and bad input, each row of a table: refused by name, or not certified, never wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from live_nets import EPSILON, SHAPE, frames, live_artifact, live_net

import vsparse
from vsparse.artifact.document import read_document
from vsparse.artifact.live import LIVE, LiveRecord
from vsparse.bounds import Rounding, ball, interval, last_layer_folding, margin_rows
from vsparse.contract import contract
from vsparse.errors import GateError, InputError, UnavailableError
from vsparse.graph.ir import Gemm, Graph, Relu
from vsparse.monitor import FrameCertifier
from vsparse.recipe import Recipe
from vsparse.stages.export.c_live.int8_constants import require_live_int8
from vsparse.stages.export.c_source.compile import find_compiler
from vsparse.stages.export.quantise import quantise
from vsparse.stages.verify.live import LiveCertifier, not_below

HIGHEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live_artifact(tmp_path_factory.mktemp("live") / "artifact")


@pytest.fixture(scope="module")
def simulated(directory: Path) -> Iterator[FrameCertifier]:
    with vsparse.live(directory, compiled=False) as live:
        yield live


@pytest.fixture(scope="module")
def compiled(directory: Path) -> Iterator[FrameCertifier]:
    try:
        find_compiler()
    except UnavailableError as error:
        pytest.skip(str(error))
    with vsparse.live(directory) as live:
        assert live.by == "compiled C"
        yield live


def test_simulation_and_compiled_c_answer_the_same(simulated: FrameCertifier, compiled: FrameCertifier) -> None:
    x = frames(30, seed=5)
    for epsilon in (0, "1/255", EPSILON, 0.1, 1.0):
        assert simulated(x, epsilon, radius=True) == compiled(x, epsilon, radius=True)
    assert simulated(x[3]) == simulated(x[3:4], EPSILON)  # one frame alone, at the recipe's radius


def test_what_is_certified_is_so_by_float64_bounds_and_holds_for_random_points(simulated: FrameCertifier) -> None:
    graph, x = live_net(), frames(30, seed=5)
    verdicts = simulated(x, EPSILON)
    assert 5 < sum(one.certified for one in verdicts) < 30
    rounding, radius = Rounding(graph, contract("sequential")), Fraction(EPSILON)
    labels = torch.tensor([one.label for one in verdicts])
    boxes = interval(graph, rounding.params, ball(torch.from_numpy(x), radius), rounding)
    least = last_layer_folding(graph, rounding.params, margin_rows(labels, 3), boxes, rounding).min(1).values.tolist()
    for i, (one, host) in enumerate(zip(verdicts, least, strict=True)):
        if one.certified:
            assert one.margin is not None
            assert 0 < one.margin <= host
            moved = np.clip(x[i] + np.random.default_rng(i).uniform(-0.02, 0.02, (200, *SHAPE)), 0, 1).astype(np.float32)
            assert {again.label for again in simulated(moved, 0)} == {one.label}


def test_a_radius_is_certified_and_text_is_rounded_up(simulated: FrameCertifier) -> None:
    x = frames(6, seed=7)
    for i, one in enumerate(simulated(x, 0, radius=True)):
        assert one.radius is not None
        if one.radius >= 0:
            assert simulated(x[i], one.radius)[0].certified
    for text in ("0.1", "1/3", "2/255", "1/1000000000"):
        assert (
            Fraction(simulated.radius_of(text))
            >= Fraction(text)
            > Fraction(float(np.nextafter(np.float32(not_below(Fraction(text))), np.float32(0))))
        )


# What a device answers at run time: not certified.
NOT_CERTIFIED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float | str | None]] = {
    "epsilon negative": (lambda x: x, -1e-9),
    "epsilon minus infinity": (lambda x: x, -np.inf),
    "epsilon NaN": (lambda x: x, float("nan")),
    "epsilon above the data range": (lambda x: x, float(np.nextafter(np.float32(1), np.float32(2)))),
    "epsilon infinite": (lambda x: x, np.inf),
    "epsilon beyond float32": (lambda x: x, 1e300),
    "epsilon as text above the data range": (lambda x: x, "3/2"),
    "a value NaN": (lambda x: put(x, np.nan), 0.0),
    "a value infinite": (lambda x: put(x, np.inf), 0.0),
    "a value minus infinity": (lambda x: put(x, -np.inf), 0.0),
    "a value above the data range": (lambda x: put(x, np.nextafter(np.float32(1), np.float32(2))), 0.0),
    "a value below the data range": (lambda x: put(x, -1e-30), 0.0),
    "a value beyond float32": (lambda x: put(x.astype(np.float64), 1e300), 0.0),
    "the largest value": (lambda x: put(x, HIGHEST), 0.0),
    "bytes that were not scaled": (lambda x: (x * 255).astype(np.uint8), 0.0),
}


def put(x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x[:, 0, 2, 3] = value
    return x


@pytest.mark.parametrize("name", NOT_CERTIFIED)
def test_bad_frames_and_radii_are_not_certified(name: str, simulated: FrameCertifier, compiled: FrameCertifier) -> None:
    change, epsilon = NOT_CERTIFIED[name]
    x = change(frames(4, seed=5))
    for live in (simulated, compiled):
        assert not any(one.certified for one in live(x, epsilon))
    if change(np.zeros((1, *SHAPE), np.float32)).any():  # the frame is bad, not the radius
        assert all(one.radius == -1 for one in simulated(x, epsilon, radius=True))


# What no device is asked: refused in a sentence.
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "another shape": (np.zeros((2, 1, 5, 6)), 0.1, "shape"),
    "no frames": (np.zeros((0, *SHAPE)), 0.1, "shape"),
    "a ragged list": ([[0.1], [0.1, 0.2]], 0.1, "no array of numbers"),
    "text": (np.full(SHAPE, "0.5"), 0.1, "no array of numbers"),
    "objects": (np.full(SHAPE, None), 0.1, "no array of numbers"),
    "complex numbers": (np.zeros(SHAPE, complex), 0.1, "no array of numbers"),
    "a whole number of a thousand digits": (np.full(SHAPE, 10**1000, dtype=object), 0.1, "no array of numbers"),
    "epsilon that is no number": (np.zeros(SHAPE), "a bit", "epsilon"),
    "epsilon as negative text": (np.zeros(SHAPE), "-1/255", "epsilon"),
    "epsilon of absurd size": (np.zeros(SHAPE), "1e999999", "epsilon"),
    "epsilon that is a list": (np.zeros(SHAPE), [0.1, 0.2], "epsilon"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_frame_or_radius_is_refused(name: str, simulated: FrameCertifier) -> None:
    x, epsilon, says = REFUSED[name]
    with pytest.raises(InputError, match=says):
        simulated(x, epsilon)


def with_weight(value: float) -> Graph:
    graph = live_net()
    return graph.with_params({**graph.params, "w": np.full_like(graph.params["w"], value)})


# What has no live certificate: refused when it is built, by the name of the node.
NETWORKS: dict[str, tuple[Graph, tuple[float, float], str]] = {
    "an operator without an interval form": (live_net(last="Sigmoid"), (0.0, 1.0), '"squash"'),
    "weights beyond the limit": (with_weight(1e13), (0.0, 1.0), '"conv"'),
    "weights that are not finite": (with_weight(np.inf), (0.0, 1.0), '"conv"'),
    "weights NaN": (with_weight(np.nan), (0.0, 1.0), '"conv"'),
    "an empty data range": (live_net(), (1.0, 1.0), "data range"),
    "a data range without end": (live_net(), (0.0, np.inf), "data range"),
    "a data range that float32 does not hold": (live_net(), (0.0, 0.1), "data range"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_without_a_live_certificate_are_refused_by_name(name: str) -> None:
    graph, clip, says = NETWORKS[name]
    with pytest.raises(InputError, match=says):
        LiveCertifier(graph, clip, compiled=False)


def wide_net(inputs: int) -> Graph:
    """Two linear layers on so many inputs, whose weights are as large as 8 bits have them."""
    params = {
        "w": np.ones((2, inputs), np.float32),
        "b": np.zeros(2, np.float32),
        "v": np.eye(2, dtype=np.float32),
        "c": np.zeros(2, np.float32),
    }
    nodes = (
        Gemm(name="wide", inputs=("x",), shape=(2,), weight="w", bias="b"),
        Relu(name="relu", inputs=("wide",), shape=(2,)),
        Gemm(name="fc", inputs=("relu",), shape=(2,), weight="v", bias="c"),
    )
    return Graph(input="x", input_shape=(inputs,), nodes=nodes, output="fc", params=params)


@pytest.mark.parametrize("inputs", [40_000, 100_000])
def test_an_int8_network_whose_bounds_could_overflow_is_refused_by_name(inputs: int) -> None:
    """Centre and radius are up to 384 steps: 384·Σ|w| must fit into int32."""
    samples = np.random.default_rng(0).random((16, inputs)).astype(np.float32)
    graph = quantise(wide_net(inputs), samples, "int8", floats=frozenset({"fc"}))
    (largest,) = {int(np.abs(one.values.astype(np.int64)).sum(axis=1).max()) for one in graph.integers.values() if one.values.ndim == 2}
    assert (384 * largest >= 2**31) is (inputs == 100_000)
    if inputs == 100_000:
        with pytest.raises(InputError, match=r'node "wide.*int32'):
            require_live_int8(graph, (0.0, 1.0))
    else:
        require_live_int8(graph, (0.0, 1.0))


def test_the_gate_needs_what_it_judges() -> None:
    with pytest.raises(ValueError, match=r"deploy\.live"):
        Recipe.model_validate({"name": "t", "gates": {"live_certified_accuracy": 0.5}})
    assert Recipe.model_validate({"name": "t", "gates": {"live_certified_accuracy": 0.5}, "deploy": {"live": True}}).deploy.live


def test_damaged_artifacts_are_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a directory"):
        vsparse.live(tmp_path / "none")
    with pytest.raises(InputError, match="no artifact"):
        vsparse.live(tmp_path)
    changed = live_artifact(tmp_path / "changed", count=3)
    (changed / LIVE).write_text("{}")
    with pytest.raises(GateError, match="changed"):
        vsparse.live(changed)


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "counts that grow": lambda content: content["at_epsilon"].update(right=content["at_epsilon"]["certified"] + 1),
    "a device radius below": lambda content: content["at_epsilon"].update(device_epsilon=0.0199),
    "a radius that is text": lambda content: content["frames"][0].update(radius="1"),
    "a margin NaN": lambda content: content["frames"][0].update(margin=float("nan")),
    "another key": lambda content: content.update(more=1),
    "no cost": lambda content: content.pop("cost"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_damaged_records_are_refused(name: str, directory: Path, tmp_path: Path) -> None:
    content = json.loads((directory / LIVE).read_text())
    RECORDS[name](content)
    (tmp_path / "live.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"live\.json is damaged"):
        read_document(LiveRecord, tmp_path / "live.json")


def test_the_record_counts_what_the_device_answers(directory: Path, simulated: FrameCertifier) -> None:
    record, x = read_document(LiveRecord, directory / LIVE), frames(40)
    verdicts = simulated(x, EPSILON, radius=True)
    assert record.at_epsilon.certified == sum(one.certified for one in verdicts)
    assert record.at_epsilon.right == sum(one.certified and one.label == 0 for one in verdicts)
    assert [point.certified for point in record.curve][3] == record.at_epsilon.certified
    assert len(record.frames) == 40
    for frame, one in zip(record.frames, verdicts, strict=True):
        assert (frame.label, frame.certified, frame.radius) == (one.label, one.certified, one.radius)
    assert record.cost.live_static_bytes > record.cost.static_bytes
