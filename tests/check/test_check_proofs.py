"""Claims that need a proof: confirmed with it, never without, and never beyond what the network does."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import numpy as np
import pytest
from hand_made import CERTIFICATE, PROOFS, Tiny, arrays_of, claimed, forge, packed, prove, write

from vsparse_check import check


@pytest.mark.parametrize("seed", range(6))
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
    assert "no proof" in found.problem
