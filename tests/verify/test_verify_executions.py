"""A bound that is wrong voids the run: convolutions that read each other, where bounds once were, and what a broken bound leads to."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsparse.bounds import Rounding, ball, interval, paths, refine
from vsparse.cli import run as vsparse
from vsparse.contract import CONTRACTS
from vsparse.data import Dataset
from vsparse.errors import SoundnessError
from vsparse.graph import Conv, Gemm, Graph, Relu, Reshape, from_onnx, run, validate
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.search.branch_and_bound import Prover
from vsparse.search.result import Limits
from vsparse.stages.compress import compress
from vsparse.stages.verify import cascade as cascade_module
from vsparse.stages.verify import certify
from vsparse.stages.verify.cascade import Cascade, Question
from vsparse.stages.verify.deployed import Runtime, predictions, read_model
from vsparse.stages.verify.pool import ERRORS
from vsparse.worker import ERRORS as WORKER_ERRORS

FP32 = CONTRACTS["fp32"]
QUICK = {"attack_restarts": 1, "attack_steps": 5}


def conv_conv() -> Graph:
    """x → x − 1 → the sum of five values of a column, zeros around the map → + 2.86 → ReLU r; class 0: 1 − 200·r at the corner, others 0.

    In the corner three values are of the map, and two are padding: r = relu(x₀₀ + x₁₀ + x₂₀ − 0.14). With a padding of −1 it would be 0.
    """
    column = np.zeros((1, 1, 5, 5), np.float32)
    column[0, 0, :, 2] = 1
    rows = np.zeros((10, 64), np.float32)
    rows[0, 0] = -200
    params = {
        "w1": np.ones((1, 1, 1, 1), np.float32),
        "b1": -np.ones(1, np.float32),
        "w2": column,
        "b2": np.array([2.86], np.float32),
        "w": rows,
        "b": np.eye(10, dtype=np.float32)[0],
    }
    nodes = (
        Conv(name="c1", inputs=("input",), shape=(1, 8, 8), weight="w1", bias="b1"),
        Conv(name="c2", inputs=("c1",), shape=(1, 8, 8), weight="w2", bias="b2", pads=(2, 2, 2, 2)),
        Relu(name="r", inputs=("c2",), shape=(1, 8, 8)),
        Reshape(name="f", inputs=("r",), shape=(64,)),
        Gemm(name="logits", inputs=("f",), shape=(10,), weight="w", bias="b"),
    )
    return validate(Graph("input", (1, 8, 8), nodes, "logits", params))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds on receptive fields as they once were: the padding between two convolutions gets coefficients."""
    module: Any = windows_module()
    made = module.Windows.__init__

    def unmasked(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self.padding = {}

    monkeypatch.setattr(module.Windows, "__init__", unmasked)


def windows_module() -> Any:
    import importlib

    return importlib.import_module("vsparse.bounds.windows")


def test_padding_between_convolutions_is_zero(write: Callable[..., Path], digits: Dataset) -> None:
    path = write(conv_conv())
    zeros = digits.labels == 0
    clean = (digits.inputs(slice(0, len(digits)))[:, 0, :3, 0].sum(axis=1) == 0) & zeros
    assert clean.sum() > 20
    for epsilon, certified in (("0.046", clean.sum()), ("0.05", 0)):  # 3·0.046 < 0.14 < 3·0.05
        found = certify(path, digits, PerturbationSet(epsilon=epsilon), FP32, Verify.model_validate(QUICK | {"methods": ["crown"]}))
        assert found.summary.certified == certified


def test_receptive_fields_are_taken_here(write: Callable[..., Path]) -> None:
    graph = conv_conv()
    rounding = Rounding(graph, FP32)
    box = ball(torch.full((1, 1, 8, 8), 0.5), Fraction(1, 20))
    boxes = interval(graph, rounding.params, box, rounding)
    assert windows_module().windows(graph, rounding.params, boxes, None, "c2", {}) is not None
    lower, upper = refine(graph, rounding.params, box, boxes, rounding)["c2"]
    assert float(lower[0, 0, 0, 0]) == pytest.approx(3 * 0.45 - 0.14, abs=1e-4)
    assert float(upper[0, 0, 0, 0]) == pytest.approx(3 * 0.55 - 0.14, abs=1e-4)


def test_a_wrong_bound_voids_the_run(
    broken: None, write: Callable[..., Path], digits: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(conv_conv())
    with pytest.raises(
        SoundnessError, match=r'crown: unit 0 of "c2" is -0\.14\d* in an execution of a point around sample \d+, outside of its'
    ):
        certify(path, digits, PerturbationSet(epsilon="0.05"), FP32, Verify())
    out = tmp_path / "certificate"
    assert vsparse(["verify", str(path), "--data", "digits", "--epsilon", "0.05", "--jobs", "1", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "a bound is wrong" in said
    assert "nothing of this run is certified" in said
    assert not (out / "certificate.json").exists()


def test_worker_processes_hand_the_error_on() -> None:
    assert ERRORS["SoundnessError"] is WORKER_ERRORS["SoundnessError"] is SoundnessError


def grey_cascade(path: Path, epsilon: str, method: str) -> tuple[Cascade, np.ndarray, np.ndarray]:
    """Returns a cascade and four samples whose r is 0.0025, halfway to where class 0 is no longer the largest."""
    question = Question(PerturbationSet(epsilon=Fraction(epsilon)), FP32, (method,), 0, 10, 1, 0)
    return Cascade(read_model(path), question), np.full((4, 1, 8, 8), 0.0475, np.float32), np.zeros(4, np.int64)


def test_points_that_an_attack_visited_are_held_too(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes that are right at the sample and wrong at the corners: the sample's own execution cannot tell, the attack's can."""
    path = write(conv_conv())
    right = cascade_module.refine

    def shrunk(graph: Any, params: Any, box: Any, *arguments: Any, **named: Any) -> Any:
        boxes = right(graph, params, box, *arguments, **named)
        lower, upper = boxes["c2"]
        middle, half = (lower + upper) / 2, (upper - lower) / 2
        return {**boxes, "c2": (middle - 0.8 * half, middle + 0.8 * half)}

    monkeypatch.setattr(cascade_module, "refine", shrunk)
    cascade, inputs, labels = grey_cascade(path, "0.0005", "crown")
    cascade.bound("crown", inputs, labels)  # the sample alone
    with pytest.raises(SoundnessError, match=r'crown: unit \d+ of "c2"'):
        cascade.judge(inputs, labels, range(4))


def test_a_margin_proved_earlier_is_held_against_the_attack(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(conv_conv())
    cascade, inputs, labels = grey_cascade(path, "0.05", "interval")
    monkeypatch.setattr(cascade_module, "lowest_margin", lambda lower: torch.full((len(lower),), -1e-3, dtype=torch.float64))
    with pytest.raises(SoundnessError, match="the margin proved so far"):
        cascade.judge(inputs, labels, range(4))


def test_a_search_is_held_against_the_points_that_it_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = conv_conv()
    rounding = Rounding(graph, FP32)
    box = ball(torch.full((1, 1, 8, 8), 0.0467), Fraction("0.001"))
    boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)
    prover = Prover(graph, rounding, box, boxes, Limits(domains=8))
    assert len(prover.executions) == 1
    prover.visit([box[0][0].float() + 1e-4, box[1][0].float() + 1.0])
    assert len(prover.executions) == 2  # the other one is no member
    lower, upper = boxes["c2"]
    middle = (lower + upper) / 2
    with pytest.raises(SoundnessError, match="boxes that a search starts from"):
        Prover(graph, rounding, box, {**boxes, "c2": (lower, middle - (upper - middle) * 1e-3)}, Limits(domains=8))


def linear_blocks(seed: int) -> Graph:
    """Two pairs of convolutions around ReLUs that never cut on [0, 1]: what is left of them without these are Conv → Conv, with padding."""
    rng = np.random.default_rng(seed)
    shapes = {"w0": (3, 1, 3, 3), "w1": (3, 3, 3, 3), "w2": (2, 3, 5, 5) if seed % 2 else (2, 3, 3, 3), "w3": (3, 128)}
    params = {name: (rng.normal(0, 0.3, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32) for name, shape in shapes.items()}
    params |= {"b0": np.full(3, 1.5, np.float32), "b1": np.full(3, 2.5, np.float32), "b2": rng.normal(0, 0.1, 2).astype(np.float32)}
    pads = (2, 2, 2, 2) if seed % 2 else (1, 1, 1, 1)
    nodes = (
        Conv(name="c0", inputs=("input",), shape=(3, 8, 8), weight="w0", bias="b0", pads=(1, 1, 1, 1)),
        Relu(name="r0", inputs=("c0",), shape=(3, 8, 8)),
        Conv(name="c1", inputs=("r0",), shape=(3, 8, 8), weight="w1", bias="b1", pads=(1, 1, 1, 1)),
        Relu(name="r1", inputs=("c1",), shape=(3, 8, 8)),
        Conv(name="c2", inputs=("r1",), shape=(2, 8, 8), weight="w2", bias="b2", pads=pads),
        Relu(name="r2", inputs=("c2",), shape=(2, 8, 8)),
        Reshape(name="f", inputs=("r2",), shape=(128,)),
        Gemm(name="y", inputs=("f",), shape=(3,), weight="w3", bias=None),
    )
    graph = Graph("input", (1, 8, 8), nodes, "y", params)
    # The last ReLU cuts on the border of the map, where padding is.
    border = run(graph, graph.tensors(), torch.full((1, 1, 8, 8), 0.5), keep=True)["c2"][0, :, 0, 3]
    params["b2"] -= border.numpy()
    return validate(graph)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("worth", [0.0, 0.5, float("inf")])
def test_what_compression_makes_of_a_network_is_verified_truly(
    seed: int, worth: float, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compression drops ReLUs that are always active, and leaves convolutions that read each other."""
    packed = compress(linear_blocks(seed), {}).packed
    made = {node.name: node for node in packed.nodes}
    pairs = [node.name for node in packed.nodes if isinstance(node, Conv) and any(node.pads) and isinstance(made.get(node.inputs[0]), Conv)]
    assert pairs, "compression has left no Conv → Conv: nothing is tested"
    path = write(packed)
    graph = from_onnx(path)
    rng = np.random.default_rng(seed)
    x = rng.random((6, 1, 8, 8)).astype(np.float32)
    labels = predictions(Runtime(path.read_bytes()).logits(x))
    monkeypatch.setattr(paths, "WINDOWS", worth)
    samples = Dataset(x, 1.0, labels, ("0", "1", "2"), None)
    for epsilon in ("0.0005", "0.05"):
        # What interval bounds prove is never bounded on receptive fields.
        settings = Verify.model_validate(QUICK | {"methods": ["crown", "branch-and-bound"], "branch_domains": 4})
        found = certify(path, samples, PerturbationSet(epsilon=epsilon), FP32, settings)
        low, high = (x.astype(np.float64) + sign * float(epsilon) for sign in (-1, 1))
        corners = [np.where(rng.random(x.shape) < 0.5, low, high).clip(0, 1) for _ in range(40)]
        values = run(graph, graph.tensors(torch.float64), torch.tensor(np.concatenate(corners))).view(40, len(x), 3)
        for claim in found.claims:
            if claim.verdict == "certified":
                own = values[:, claim.id, claim.label]
                others = values[:, claim.id].clone()
                others[:, claim.label] = -torch.inf
                assert claim.margin_lower is not None
                assert float((own - others.amax(dim=1)).min()) >= claim.margin_lower
        assert found.summary.certified > 0 or epsilon != "0.0005"


def test_what_compression_makes_of_a_network_would_have_shown_it(
    broken: None, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(compress(linear_blocks(0), {}).packed)
    monkeypatch.setattr(paths, "WINDOWS", float("inf"))
    x = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
    samples = Dataset(x, 1.0, predictions(Runtime(path.read_bytes()).logits(x)), ("0", "1", "2"), None)
    with pytest.raises(SoundnessError, match='of "c2"'):
        certify(path, samples, PerturbationSet(epsilon="0.05"), FP32, Verify.model_validate(QUICK | {"methods": ["crown"]}))
