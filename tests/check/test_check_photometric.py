"""Brightness and contrast in pieces: the pieces hold every member, claims by them are confirmed, and false ones are not."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from check_artifacts import graph_of, samples, save_inputs, sign

from vsparse.bounds import Rounding, photometric
from vsparse.bounds.last_layers import last_layer_folding
from vsparse.bounds.photometric import attempts, lowest_of_pieces, piece_boxes
from vsparse.contract import contract
from vsparse.data import Dataset
from vsparse.errors import SoundnessError
from vsparse.graph import run, to_onnx
from vsparse.perturbation import PerturbationSet
from vsparse.recipe import Verify
from vsparse.stages.export import write_onnx
from vsparse.stages.verify import certify, read_certificate, write_certificate
from vsparse_check import check
from vsparse_check.certificate import digest
from vsparse_check.contracts import CONTRACTS
from vsparse_check.errors import ErrorTerms
from vsparse_check.model import Model
from vsparse_check.photometric import PhotometricPieces, PieceCounts, least_margin, pieces_of
from vsparse_check.refusal import NotConfirmed
from vsparse_check.region import ClaimedRegion

CASES = [("1/5", "0", "0", (5, 1)), ("0", "1/3", "0", (1, 4)), ("1/7", "1/5", "1/100", (3, 4))]


@pytest.mark.parametrize(("brightness", "contrast", "epsilon", "pieces"), CASES)
def test_every_member_lies_in_the_piece_of_its_changes(brightness, contrast, epsilon, pieces):
    """By rational arithmetic, at the ends of the pieces above all, for both implementations."""
    allowed = PerturbationSet(epsilon=epsilon, brightness=brightness, contrast=contrast)
    rng = np.random.default_rng(1)
    x = rng.random((1, 6)).astype(np.float32)
    x[0, :3] = (0.0, 1.0, 2.0**-149)
    count = pieces[0] * pieces[1]
    theirs = tuple(end.numpy() for end in piece_boxes(torch.from_numpy(x), allowed, pieces, 0, count))
    stated = ClaimedRegion("linf", allowed.epsilon, allowed.brightness, allowed.contrast, (0.0, 1.0))
    ours = PhotometricPieces(stated, x.astype(np.float64), PieceCounts(*pieces), range(count)).box
    rho = Fraction(allowed.rounding)
    for place in range(count):
        i, j = place // pieces[1], place % pieces[1]
        for _ in range(40):
            share = [Fraction(int(rng.integers(0, 5)), 4) for _ in range(2)]
            b = -allowed.brightness + 2 * allowed.brightness * (i + share[0]) / pieces[0]
            c = -allowed.contrast + 2 * allowed.contrast * (j + share[1]) / pieces[1]
            for k, value in enumerate(x[0].tolist()):
                delta, moved = (int(rng.integers(-1, 2)) * one for one in (allowed.epsilon, rho))
                v = Fraction(value) + b + c * (Fraction(value) - Fraction(1, 2)) + delta
                member = min(max(min(max(v, Fraction(0)), Fraction(1)) + moved, Fraction(0)), Fraction(1))
                for lower, upper in (theirs, ours):
                    assert Fraction(float(lower[place, k])) <= member <= Fraction(float(upper[place, k]))


def test_pieces_prove_what_one_region_does_not_and_both_implementations_agree():
    graph = graph_of("residual", 3)
    x, labels = samples(graph, 6, 3)
    rounding, network = Rounding(graph, contract("fp32")), Model(to_onnx(graph))
    own = ErrorTerms(network, CONTRACTS["fp32"])
    allowed = PerturbationSet(epsilon="0", brightness="0.02")
    stated = ClaimedRegion("linf", allowed.epsilon, allowed.brightness, allowed.contrast, (0.0, 1.0))
    better = 0
    for one, label in zip(x, labels.tolist(), strict=True):
        bounds = []
        for pieces in ((1, 1), (16, 1), (64, 1)):
            bounds.append(lowest_of_pieces(torch.from_numpy(one[None]), label, allowed, pieces, rounding))
            if bounds[-1] > 0:
                with np.errstate(all="ignore"):
                    derived = least_margin(
                        network, own, stated, one.reshape(1, -1).astype(np.float64), label, pieces, bounds[-1] * (1 - 1e-6)
                    )
                assert derived == pytest.approx(bounds[-1], rel=1e-6)
        better += bounds[-1] > bounds[0]
        b = torch.linspace(-0.02, 0.02, 400).view(-1, 1, 1, 1)
        logits = run(graph, graph.tensors(), (torch.from_numpy(one[None]) + b).clamp(0, 1)).double().numpy()
        assert max(bounds) <= (logits[:, [label]] - np.delete(logits, label, axis=1)).min()
    assert better >= 3


def artifact(folder: Path, **asked: str) -> Path:
    graph = graph_of("residual", 3)
    model = folder / "model" / "model.fp32.onnx"
    write_onnx(graph, model, 17, {})
    x, labels = samples(graph, 12, 3)
    settings = Verify(methods=("interval",), attack_steps=2, attack_restarts=1)
    data = Dataset(x, 1.0, labels, tuple("abcd"), None)
    found = certify(
        model, data, PerturbationSet(epsilon="0", **asked), contract("fp32"), settings, file="model/model.fp32.onnx", data_name="random"
    )
    write_certificate(folder / "certificate" / "certificate.json", found)
    ids = np.array([claim.id for claim in found.claims if claim.verdict == "certified"], dtype=np.int64)
    save_inputs(folder, ids, x[ids])
    return sign(folder)


def changed(folder: Path, change) -> None:
    path = folder / "certificate" / "certificate.json"
    content = json.loads(path.read_text())
    for claim in content["claims"]:
        if claim["method"] == "photometric-split":
            change(claim)
    path.write_text(json.dumps({**content, "certificate_sha256": digest(content)}))
    sign(folder)


def test_the_checker_confirms_claims_by_pieces_and_refuses_false_ones(tmp_path: Path) -> None:
    folder = artifact(tmp_path, brightness="0.02")
    claims = read_certificate(folder / "certificate" / "certificate.json").claims
    split = [claim for claim in claims if claim.method == "photometric-split"]
    assert len(split) >= 2
    assert "photometric-split" in read_certificate(folder / "certificate" / "certificate.json").derivations
    assert check(folder).passed
    changed(folder, lambda claim: claim.update(margin_lower=claim["margin_lower"] * 2))
    assert not check(folder).passed
    changed(folder, lambda claim: claim.update(margin_lower=claim["margin_lower"] / 2, pieces=[1, 1]))
    assert not check(folder).passed
    for forged in (None, [0, 1], [10**6, 10**6], [1.5, 2], "16"):
        changed(folder, lambda claim, forged=forged: claim.update(pieces=forged))
        assert not check(folder).passed


def test_pieces_that_are_none_are_refused() -> None:
    allowed = ClaimedRegion("linf", Fraction(0), Fraction(1, 5), Fraction(0), (0.0, 1.0))
    assert pieces_of({"pieces": [16, 1]}, allowed) == (16, 1)
    for stated in (None, [16], [16, 0], [True, 1], [2**16, 2], "16"):
        with pytest.raises(NotConfirmed):
            pieces_of({"pieces": stated}, allowed)
    with pytest.raises(NotConfirmed):
        pieces_of({"pieces": [16, 1]}, allowed._replace(brightness=Fraction(0)))


def test_what_is_tried_follows_what_changes() -> None:
    assert all(b > 1 == c for b, c in attempts(PerturbationSet(epsilon="0", brightness="1/5")))
    assert all(c > 1 == b for b, c in attempts(PerturbationSet(epsilon="0", contrast="1/5")))
    assert all(b == c > 1 for b, c in attempts(PerturbationSet(epsilon="0", brightness="1/5", contrast="1/5")))


def test_a_wrong_bound_of_a_piece_voids_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of("residual", 3)
    x, labels = samples(graph, 1, 3)
    allowed = PerturbationSet(epsilon="0", brightness="0.02")

    def too_high(*args: object) -> torch.Tensor:
        return last_layer_folding(*args) + 100  # type: ignore[arg-type]

    monkeypatch.setattr(photometric, "last_layer_folding", too_high)
    with pytest.raises(SoundnessError, match="piece of brightness and contrast"):
        lowest_of_pieces(torch.from_numpy(x[:1]), int(labels[0]), allowed, (16, 1), Rounding(graph, contract("fp32")))
