"""The checker's bounds against simulated devices of every contract, on random networks of every operator; nothing may leave a box."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bounds"))
from device_simulation import Device
from graph_builder import CLASSES, random_net

from vsparse.contract import CONTRACTS as KNOWN
from vsparse.graph import to_onnx
from vsparse_check.bounds import Bounds
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.region import ClaimedRegion, SampleRegions

NAMES = ("fp32", "tf32", "fp16", "bf16", "fp16-accumulate", "fp16-chain")


def attack(name: str, nets: int, seed: int) -> set[str]:
    """Returns the kinds of operators that were bounded."""
    rng, kinds = np.random.default_rng(seed), set()
    rows = np.concatenate([np.eye(CLASSES), -np.eye(CLASSES), [[1, -1, *[0.0] * (CLASSES - 2)]]])
    for _ in range(nets):
        graph = random_net(rng, KNOWN[name].storage)
        network = Model(to_onnx(graph))
        rounding = ErrorTerms(network, CONTRACTS[name])
        kinds |= {op.kind for op in network.ops}
        x, epsilon = rng.random((1, *graph.input_shape)).astype(np.float32), Fraction(1, int(rng.choice([3, 20, 1000])))
        region = SampleRegions(ClaimedRegion("linf", epsilon, Fraction(0), Fraction(0), (0.0, 1.0)), x.reshape(1, -1).astype(np.float64))
        with np.errstate(all="ignore"):
            known = [Bounds(network, rounding, region, refine) for refine in (False, True)]
            lower = [one.backward({network.output: rows}) for one in known]
            folded = [one.margins(np.array([label]), fold_only=False) for one in known for label in range(CLASSES)]
        device, names = Device(graph, KNOWN[name], rng), {graph.output: "logits", graph.input: "input"}
        low, high = (end.astype(np.float32) for end in (np.maximum(x - float(epsilon), 0), np.minimum(x + float(epsilon), 1)))
        for trial in range(4):
            corner = rng.integers(0, 2, x.shape).astype(bool)
            point = x if trial == 0 else np.where(corner, low, high) if trial % 2 else rng.uniform(low, high).astype(np.float32)
            point = np.where(np.abs(point.astype(np.float64) - x) > float(epsilon), x, point)[0]
            values = device.run(point)
            if not all(np.isfinite(value).all() for value in values.values()):
                assert all((bound == -np.inf).all() for bound in lower)
                continue
            for key, value in values.items():
                for one in known:
                    box = one.boxes[network.names[names.get(key, key)]]
                    assert (value.reshape(-1) >= box[0][0]).all(), key
                    assert (value.reshape(-1) <= box[1][0]).all(), key
            logits = values[graph.output].reshape(-1).astype(np.float64)
            for of, bound in [*((rows, one) for one in lower), *folded]:
                assert (of @ logits >= bound - 1e-9 * np.abs(of) @ np.abs(logits)).all()
    return kinds


@pytest.mark.parametrize("name", NAMES)
def test_no_device_leaves_a_box_or_falls_below_a_bound(name):
    attack(name, 5, sum(map(ord, name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_device_leaves_a_box_at_length(name):
    kinds = attack(name, 150, 1 + sum(map(ord, name)))
    assert kinds >= {
        "affine",
        "average",
        "shift",
        "scale",
        "div",
        "neg",
        "sub",
        "add",
        "relu",
        "maxpool",
        "leaky",
        "clip",
        "sigmoid",
        "tanh",
        "move",
        "concat",
    }
