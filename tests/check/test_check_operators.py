"""Every operator that a build writes: claims about it are confirmed, by each method, and no bound is above what is executed."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from check_artifacts import OPERATORS, build, graph_of, samples
from test_check_bounds import by_the_toolchain, derive, rounded_to_bf16

from vsparse.graph import run
from vsparse.perturbation import PerturbationSet
from vsparse_check import check
from vsparse_check.arithmetic import ContractArithmetic
from vsparse_check.arrays import Interval
from vsparse_check.contracts import CONTRACTS
from vsparse_check.op import Op
from vsparse_check.operators import RULES
from vsparse_check.rules import ErrorContext
from vsparse_check.sums import roundings, sum_error

METHODS = ("interval", "crown-ibp", "crown")
WRITTEN = {"leaky": "LeakyRelu", "neg": "Neg", "div": "Div"}


@pytest.mark.parametrize("kind", OPERATORS)
def test_claims_of_a_build_are_confirmed(tmp_path, kind):
    epsilon, contents = "0.03", []
    build(tmp_path, kind, epsilon=epsilon, methods=(*METHODS, "alpha-crown"), count=12)
    written = {node.op_type for node in onnx.load(tmp_path / "model" / "model.fp32.onnx").graph.node}
    assert WRITTEN.get(kind, kind.capitalize()) in written
    found = check(tmp_path)
    assert (found.status, found.problem) == (0, "")
    contents.append(json.loads((tmp_path / "certificate" / "certificate.json").read_text()))
    assert found.confirmed == found.certified == contents[0]["summary"]["certified"] > 0
    assert f"linf epsilon {epsilon}, contract fp32" in found.sentence


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("rules", ["fp32", "real", "fp16"])
def test_bounds_are_those_of_the_toolchain_within_what_claims_leave(kind, rules):
    graph = rounded_to_bf16(graph_of(kind, 1)) if rules == "fp16" else graph_of(kind, 1)
    x, labels = samples(graph, 4, 1)
    for method, values in by_the_toolchain(graph, x, labels, rules, PerturbationSet(epsilon=Fraction(1, 40))).items():
        found = derive(graph, x, labels, "1/40", method, rules=rules)
        assert np.isfinite(found).all()
        assert (found > values.numpy() - 5e-6).all()


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("epsilon", ["0", "1/20", "1/3"])
def test_no_point_found_by_search_has_a_smaller_margin(kind, epsilon):
    graph = graph_of(kind, 2)
    x, labels = samples(graph, 3, 2)
    lower = np.max([derive(graph, x, labels, epsilon, method) for method in METHODS], axis=0)
    rng, radius = np.random.default_rng(0), float(Fraction(epsilon))
    for i in range(len(x)):
        noise = rng.uniform(-radius, radius, (300, *x[i].shape))
        noise[::2] = np.where(noise[::2] > 0, radius, -radius)
        points = np.clip(x[i] + noise * 0.999999, 0, 1).astype(np.float32)
        logits = run(graph, graph.tensors(), torch.from_numpy(points)).double().numpy()
        margins = logits[:, [labels[i]]] - np.delete(logits, labels[i], axis=1)
        assert lower[i] <= margins.min()
        if epsilon == "0":
            assert lower[i] > margins.min() - 1e-3


@pytest.mark.parametrize("rules", ["fp16", "fp16-accumulate", "fp32"])
def test_a_bias_that_is_read_as_zero_is_charged_and_so_is_the_result(rules):
    """Both w·x and b are just below the smallest normal number: a device may read b as zero and then flush w·x."""
    arithmetic = ContractArithmetic(CONTRACTS[rules], False, 2000.0)
    x, w, b = 1.875 * arithmetic.eta, 0.5, 0.9375 * arithmetic.eta
    op = Op("affine", "y", ("x",), (1,), np.array([[w]]), np.array([b]))
    at, out = (Interval(np.array([[value]]), np.array([[value]])) for value in (x, w * x + b))
    own = sum_error(op, roundings(op, arithmetic), arithmetic)
    assert RULES["affine"].error(op, ErrorContext(arithmetic, [at], out, own, None, [], False)) >= w * x + b
