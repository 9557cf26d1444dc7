"""Searched claims: proofs.npz written and read back, and certificates that rest on it."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from verify_nets import dataset_of, dense_graph

from vsparse.artifact.proofs import ARRAYS, pack, proofs_bytes, read_proofs, unpack
from vsparse.bounds import Perturbation, Rounding, interval, margin_rows, refine, region
from vsparse.bounds.proof import Proof, Tree, tree_bounds
from vsparse.contract import CONTRACTS
from vsparse.errors import InputError
from vsparse.files import sha256_bytes
from vsparse.graph import Graph
from vsparse.recipe import Property, Verify
from vsparse.stages.verify import Certificate, certify, read_certificate, write_certificate

CLASSES = 3


def hard_net() -> Graph:
    """A random network on which CROWN leaves gaps."""
    rng = np.random.default_rng(4)
    sizes = (4, 12, 12, CLASSES)
    return dense_graph(
        4,
        *((rng.normal(0, n**-0.5 * 1.6, (m, n)).tolist(), rng.normal(0, 0.2, m).tolist()) for n, m in itertools.pairwise(sizes)),
    )


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return np.random.default_rng(9).uniform(0.2, 0.8, (40, 4)).astype(np.float32)


def judged(path: Path, samples: np.ndarray, **settings: object) -> Certificate:
    """Certifies samples whose labels are what the network predicts."""
    from vsparse.stages.verify.deployed import Runtime, predictions, read_model

    labels = predictions(Runtime(read_model(path).data).logits(samples.reshape(-1, 1, 1, 4))).tolist()
    options = {"batch_size": 8, **settings}
    folder = options.pop("state_directory", None)
    jobs = options.pop("jobs", 1)
    return certify(
        path,
        dataset_of(samples, labels, CLASSES),
        Property(epsilon="0.12"),
        CONTRACTS["fp32"],
        Verify.model_validate(options),
        state_directory=folder,  # type: ignore[arg-type]
        jobs=jobs,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vsparse.graph import to_onnx

    path = tmp_path_factory.mktemp("hard") / "model.onnx"
    path.write_bytes(to_onnx(hard_net()).SerializeToString())
    return path


@pytest.fixture(scope="module")
def certificate(model: Path, samples: np.ndarray) -> Certificate:
    return judged(model, samples)


def test_searching_certifies_more_and_each_claim_follows_from_its_proof(
    model: Path, samples: np.ndarray, certificate: Certificate, tmp_path: Path
) -> None:
    plain = judged(model, samples, methods=("interval", "crown-ibp", "crown"))
    slopes = judged(model, samples, methods=("interval", "crown-ibp", "crown", "alpha-crown"))
    assert plain.summary.certified < slopes.summary.certified < certificate.summary.certified
    assert plain.proofs is plain.proofs_sha256 is None
    assert {claim.method for claim in certificate.claims} >= {"alpha-crown", "branch-and-bound"}
    write_certificate(tmp_path / "certificate.json", certificate)
    assert certificate.proofs_sha256 == sha256_bytes((tmp_path / "proofs.npz").read_bytes())
    again = read_certificate(tmp_path / "certificate.json")
    assert again.claims == certificate.claims
    assert again.bytes_per_proof() == certificate.bytes_per_proof() > 0
    proofs = read_proofs(tmp_path / "proofs.npz")
    searched = [claim for claim in certificate.claims if claim.method in ("alpha-crown", "branch-and-bound")]
    assert sorted(proofs) == [claim.id for claim in searched if claim.verdict == "certified"]
    graph, rounding = hard_net(), Rounding(hard_net(), CONTRACTS["fp32"])
    for claim in searched:
        assert claim.proof == "proofs.npz"
        box = region(torch.from_numpy(samples[claim.id].reshape(1, 1, 1, 4)), Perturbation("linf", claim.property.radius))
        boxes = refine(graph, rounding.params, box, interval(graph, rounding.params, box, rounding), rounding)  # type: ignore[arg-type]
        rows = margin_rows(torch.tensor([claim.label]), CLASSES)[0]
        classes = [j for j in range(CLASSES) if j != claim.label]
        found = tree_bounds(graph, rounding, box, boxes, proofs[claim.id], dict(zip(classes, rows, strict=True)))
        assert claim.margin_lower is not None
        assert 0 < claim.margin_lower < min(found.values())
        assert all(len(tree.leaf_set) == 1 for tree in proofs[claim.id].trees) == (claim.method == "alpha-crown")


def test_neither_jobs_nor_kills_change_claims_or_proofs(model: Path, samples: np.ndarray, certificate: Certificate, tmp_path: Path) -> None:
    other = judged(model, samples, jobs=2, state_directory=tmp_path)
    assert other.digest() == certificate.digest()
    assert other.proofs == certificate.proofs
    answers = sorted(tmp_path.glob("batch-*.npz"))
    assert len(answers) == 5
    answers[0].unlink()
    answers[1].write_bytes(answers[1].read_bytes()[:-40])
    resumed = judged(model, samples, state_directory=tmp_path)
    assert resumed.digest() == certificate.digest()
    assert resumed.proofs == certificate.proofs


def test_no_domains_means_no_branching(model: Path, samples: np.ndarray) -> None:
    found = judged(model, samples, branch_domains=0)
    assert "branch-and-bound" not in {claim.method for claim in found.claims}
    assert found.summary.certified > 0


def test_a_certificate_whose_searched_claims_have_no_proof_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    write_certificate(tmp_path / "certificate.json", certificate.model_copy(update={"proofs_sha256": None}))
    with pytest.raises(InputError, match="proof"):
        read_certificate(tmp_path / "certificate.json")


def some_proofs() -> dict[int, Proof]:
    rng = np.random.default_rng(0)

    def proof(units: int, trees: int) -> Proof:
        made = [
            Tree(
                row,
                np.array([3, -1, 5, -1, -1], np.int32),
                np.array([0, 1, -1], np.int32),
                rng.exponential(1, 5).astype(np.float32),
            )
            for row in range(trees)
        ]
        lemmas = np.arange(units, dtype=np.int32)
        sides = (lemmas % 2).astype(np.uint8)
        return Proof(
            np.arange(units, dtype=np.int32), rng.integers(0, 256, (2, units)).astype(np.uint8), lemmas, sides, lemmas % 2, tuple(made)
        )

    return {3: proof(6, 2), 0: proof(9, 1), 17: proof(0, 0)}


def test_proofs_are_read_as_they_were_written(tmp_path: Path) -> None:
    proofs = some_proofs()
    data = proofs_bytes(proofs)
    assert data == proofs_bytes(dict(reversed(proofs.items())))
    path = tmp_path / "proofs.npz"
    path.write_bytes(data)
    assert {info.date_time for info in zipfile.ZipFile(path).infolist()} == {(1980, 1, 1, 0, 0, 0)}
    back = read_proofs(path)
    assert list(back) == [0, 3, 17]
    for sample, proof in proofs.items():
        for name in ("units", "slopes", "lemma_unit", "lemma_side", "lemma_set"):
            assert np.array_equal(getattr(back[sample], name), getattr(proof, name))
        assert [tree.row for tree in back[sample].trees] == [tree.row for tree in proof.trees]
        for tree, other in zip(back[sample].trees, proof.trees, strict=True):
            assert np.array_equal(tree.node_unit, other.node_unit)
            assert np.array_equal(tree.leaf_set, other.leaf_set)
            assert np.array_equal(tree.multipliers, other.multipliers)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("how", ["absent", "longer", "shorter", "type", "flat"])
def test_arrays_that_do_not_belong_together_are_refused(name: str, how: str) -> None:
    arrays = pack(some_proofs())
    array = arrays[name]
    if how == "absent":
        del arrays[name]
    elif how == "longer":
        arrays[name] = np.append(array, array[-1:])
    elif how == "shorter":
        arrays[name] = array[:-1]
    elif how == "type":
        arrays[name] = array.astype(np.float64)
    else:
        arrays[name] = array[None]
    with pytest.raises(InputError, match="artifact again"):
        unpack(arrays, "proofs.npz")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("version", [2]),
        ("ids", [3, 0, 17]),
        ("ids", [-1, 3, 17]),
        ("ids", [3, 3, 17]),
        ("unit_start", [0, 15, 9, 15]),
        ("unit_start", [1, 9, 15, 15]),
        ("set_start", [0, 2**62, 2**62, 2**62]),
        ("set_start", [-(2**63), 2, 4, 6]),
        ("tree_start", [0, 4, 3, 3]),
        ("node_start", [0, 15, 5, 15]),
    ],
)
def test_starts_out_of_order_are_refused(name: str, values: list[int]) -> None:
    arrays = pack(some_proofs())
    arrays[name] = np.array(values, dtype=ARRAYS[name])
    with pytest.raises(InputError, match="artifact again"):
        unpack(arrays, "proofs.npz")


def test_damaged_and_hostile_files_are_refused(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = tmp_path / "proofs.npz"
    with pytest.raises(InputError, match="not there"):
        read_proofs(path)
    data = proofs_bytes(some_proofs())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(damaged[: int(rng.integers(len(data) // 2, len(data) + 1))] if rng.random() < 0.3 else damaged))
        try:
            read_proofs(path)
        except InputError:
            refused += 1
    assert refused > 100
    stream = io.BytesIO()
    np.savez(stream, **{**pack(some_proofs()), "units": np.array([object()])})
    path.write_bytes(stream.getvalue())
    with pytest.raises(InputError):
        read_proofs(path)
