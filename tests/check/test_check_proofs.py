"""Claims that need a proof: confirmed with it, never without, and never beyond what the network does."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from hand_made import CERTIFICATE, PROOFS, claimed, forge, packed
from mutations import KINDS, Original, mutate

from vsparse_check import check


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rules", ["real", "fp32"])
def test_a_split_tree_proves_what_crown_does_not(tmp_path, seed, rules):
    folder, net = claimed(tmp_path, seed, rules=rules)
    found = check(folder)
    assert (found.problem, found.confirmed, found.certified) == ("", 3, 3)
    content = json.loads((folder / CERTIFICATE).read_text())
    with np.load(folder / "certificate/inputs.npz") as arrays:
        inputs = dict(zip(arrays["ids"].tolist(), arrays["inputs"], strict=True))
    proved = [claim["margin_lower"] for claim in content["claims"]]
    for claim in content["claims"]:
        exact = net.exact_margin(inputs[claim["id"]], claim["label"], Fraction(1, 4))
        assert Fraction(claim["margin_lower"]) <= exact
        claim["margin_lower"] = float(exact) + 1e-6
    found = check(forge(folder, content))
    assert (found.status, found.confirmed) == (1, 0)
    for claim, margin in zip(content["claims"], proved, strict=True):
        claim.update(method="crown", margin_lower=margin)
    assert check(forge(folder, content)).confirmed == 0
    (folder / PROOFS).unlink()
    content["proofs_sha256"] = None
    for claim in content["claims"]:
        claim.update(method="alpha-crown")
    found = check(forge(folder, content))
    assert found.confirmed == 0
    assert "no proof of it" in found.problem


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Original:
    """An artifact that mutations work on in place, and restore."""
    folder, net = claimed(tmp_path_factory.mktemp("mutated"), 1)
    foreign, _ = claimed(tmp_path_factory.mktemp("foreign"), 2)
    return Original(folder, net, (foreign / PROOFS).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_no_mutation_makes_a_false_claim_confirmed(original, kind):
    confirmed, falsehoods = 0, 0
    for seed in range(KINDS.index(kind), 30 * len(KINDS), len(KINDS)):
        _, passed, false, problem = mutate(original, seed)
        assert not (passed and false), (seed, problem)
        assert passed == (problem == "")
        confirmed, falsehoods = confirmed + passed, falsehoods + false
    if kind in ("bomb", "no proofs"):
        assert confirmed == 0
    if kind in ("arrays and margin", "claim", "claim and arrays"):
        assert falsehoods > 0


def test_a_proof_that_promises_very_many_slope_sets_costs_no_memory(tmp_path):
    folder, _ = claimed(tmp_path, 1)
    with np.load(folder / PROOFS) as found:
        arrays = {name: found[name] for name in found.files}
    content = json.loads((folder / CERTIFICATE).read_text())
    for count, units in ((2**60, 0), (10**6, 1)):
        one = {name: value[:0] for name, value in arrays.items()}
        one |= {name: np.array([0, 0]) for name in ("lemma_start", "tree_start")}
        one |= {"version": arrays["version"], "ids": arrays["ids"][:1], "node_start": np.array([0])}
        one |= {"unit_start": np.array([0, units]), "units": np.arange(units, dtype=np.int32), "set_start": np.array([0, count])}
        (folder / PROOFS).write_bytes(packed(one | {"slopes": np.zeros(count * units, dtype=np.uint8)}))
        found = check(forge(folder, content))
        assert (found.status, found.confirmed) == (1, 0)


def test_what_is_written_is_never_too_large_for_what_is_read(monkeypatch):
    from vsparse.artifact import proofs as written
    from vsparse.bounds.proof import Proof
    from vsparse.errors import InputError
    from vsparse_check import proofs as read

    assert written.MAX_BYTES == read.MAX_BYTES
    listed = [np.zeros(1000, dtype=kind) for kind in (np.int32, np.uint8, np.int32)]
    proof = Proof(np.arange(9, dtype=np.int32), np.zeros((100, 9), dtype=np.uint8), *listed, ())
    data = written.proofs_bytes({3: proof})
    with np.load(io.BytesIO(data)) as found:
        size = sum(found[name].nbytes + 128 for name in found.files)
    monkeypatch.setattr(written, "MAX_BYTES", size)
    assert written.proofs_bytes({3: proof}) == data
    monkeypatch.setattr(written, "MAX_BYTES", size - 1)
    with pytest.raises(InputError, match="checkers read"):
        written.proofs_bytes({3: proof})
