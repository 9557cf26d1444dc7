"""Mutations of proofs, certificates and inputs of a small artifact, and an exact judgement of what is claimed after each.

A claim is false when its margin is above the exact least margin, in rational arithmetic, of the network that the model file holds, over
the region that the certificate states, for the label that it states. Every bound of the checker holds for exact arithmetic too (no error
at all is one of the executions that a contract allows), so a confirmed claim must never be false. A mutation that leaves all claims
true may be confirmed or not: other slopes or multipliers may prove as much as the first ones did.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import zipfile
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from hand_made import CERTIFICATE, INPUTS, PROOFS, Tiny, forge, packed, sign

from vsparse_check import check


class Original:
    """An artifact with claims that need proofs, its network, and the proofs of another network."""

    def __init__(self, folder: Path, net: Tiny, foreign: bytes) -> None:
        self.folder, self.net, self.foreign = folder, net, foreign
        self.content = json.loads((folder / CERTIFICATE).read_text())
        self.proofs, self.inputs = (folder / PROOFS).read_bytes(), (folder / INPUTS).read_bytes()
        self.margins: dict[tuple[bytes, int, str], Fraction] = {}

    def restore(self) -> dict:
        """Puts the files back and returns a copy of the certificate."""
        (self.folder / PROOFS).write_bytes(self.proofs)
        (self.folder / INPUTS).write_bytes(self.inputs)
        return copy.deepcopy(self.content)

    def false_claims(self) -> int:
        """Counts the certified claims in the folder that are false; inputs are the ones the claims name by hash."""
        content = json.loads((self.folder / CERTIFICATE).read_text())
        with np.load(self.folder / INPUTS) as arrays:
            inputs = {hashlib.sha256(x.tobytes()).hexdigest(): x for x in arrays["inputs"]}
        count = 0
        for claim in content["claims"]:
            if claim["verdict"] == "certified":
                x, label, epsilon = inputs[claim["input_sha256"]], claim["label"], claim["property"]["epsilon"].replace(" ", "")
                key = (x.tobytes(), label, epsilon + str(claim["property"]["clip"]))
                if key not in self.margins:
                    self.margins[key] = self.net.exact_margin(x, label, Fraction(epsilon), claim["property"]["clip"])
                count += Fraction(claim["margin_lower"]) > self.margins[key]
        return count


def arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(BytesIO(data)) as found:
        return {name: found[name] for name in found.files}


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, overwrites or adds bytes."""
    kind, changed = rng.randrange(4), bytearray(data)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        at = rng.randrange(len(data))
        changed[at : at + 8] = rng.randbytes(8)
    else:
        changed += rng.randbytes(9)
    return bytes(changed)


def change_arrays(data: bytes, rng: random.Random) -> bytes:
    """Changes one of the arrays of proofs.npz: a value, its order, its length, its type, or swaps it with another."""
    found = arrays(data)
    name = rng.choice([key for key in sorted(found) if found[key].size])
    value, kind = found[name].copy(), rng.randrange(9)
    if kind <= 3:
        place = rng.randrange(value.size)
        extremes = [0, 1, 2, 3, 255, -1, -2, 2**31 - 1, -(2**31), 1e30, -1e30, float("nan"), float("inf"), 0.5]
        with np.errstate(all="ignore"):
            value[place] = np.array(rng.choice(extremes)).astype(value.dtype) if rng.random() < 0.7 else value[place] * 2 + 1
    elif kind == 4:
        value = value[::-1]
    elif kind == 5:
        value = np.concatenate([value, value[-1:]]) if rng.random() < 0.5 else value[:-1]
    elif kind == 6:
        value = value.astype(rng.choice([np.float64, np.int16, np.uint64]))
    elif kind == 7:
        other = rng.choice(sorted(found))
        found[other], value = value.astype(found[other].dtype), found[other].astype(value.dtype)
    else:
        value = np.array(rng.sample(list(value), len(value)), dtype=value.dtype)
    found[name] = value
    return packed(found)


def bomb(data: bytes, rng: random.Random) -> bytes:
    """Writes a header that promises far more numbers than there are, or leaves an array out, or adds one."""
    found, stream = arrays(data), BytesIO()
    name = rng.choice(sorted(found))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in found.items():
            part = BytesIO()
            if key == name:
                shape = (rng.choice([2**33, 2**62, -1, 0]),)
                np.lib.format.write_array_header_1_0(part, {"descr": value.dtype.str, "fortran_order": False, "shape": shape})
            else:
                np.lib.format.write_array(part, value)
            if key != name or rng.random() < 0.7:
                archive.writestr(f"{key}.npy", part.getvalue())
    return stream.getvalue()


def edit_claim(content: dict, rng: random.Random) -> None:
    """Changes what is claimed about one or all samples: margin, label, id, method, input, radius, clip or contract."""
    claim, other = rng.sample(content["claims"], 2)
    kind = rng.randrange(10)
    if kind <= 2:
        claim["margin_lower"] = rng.choice([claim["margin_lower"] * rng.uniform(0.5, 3), claim["margin_lower"] + 2.5e-5, 1e9, 5e-324, 0.3])
    elif kind == 3:
        claim["label"] = claim["predicted"] = (claim["label"] + rng.choice([1, 2])) % 3
    elif kind == 4:
        claim["id"], other["id"] = other["id"], claim["id"]
    elif kind == 5:
        claim["method"] = rng.choice(["interval", "crown-ibp", "crown", "alpha-crown"])
    elif kind == 6:
        claim["input_sha256"], other["input_sha256"] = other["input_sha256"], claim["input_sha256"]
    elif kind == 7:
        for part in (content, *content["claims"]):
            part["property"]["epsilon"] = part["property"]["epsilon"] if part is content else content["property"]["epsilon"]
        epsilon = rng.choice(["0.26", "3/8", "1/2", "0.2", "1e-3", "251/1000"])
        for part in (content, *content["claims"]):
            part["property"] = {**part["property"], "epsilon": epsilon}
    elif kind == 8:
        clip = rng.choice([[0.0, 0.9], [-1.0, 2.0], [0.1, 1.0]])
        for part in (content, *content["claims"]):
            part["property"] = {**part["property"], "clip": clip}
    else:
        claim["method"], claim["margin_lower"] = rng.choice(["crown", "interval"]), other["margin_lower"]


def swap_inputs(data: bytes, rng: random.Random) -> bytes:
    found = arrays(data)
    found["inputs"] = found["inputs"][::-1].copy() if rng.random() < 0.5 else found["inputs"]
    found["inputs"] = found["inputs"] + np.float32(rng.choice([0, 1 / 64, -1 / 32])) if rng.random() < 0.5 else found["inputs"]
    return packed(found)


KINDS = ("bytes", "arrays", "arrays and margin", "bomb", "foreign", "claim", "claim and arrays", "inputs", "no proofs", "hash left")


def mutate(original: Original, seed: int) -> tuple[str, bool, bool, str]:
    """Makes mutation number `seed`; returns its kind, whether it was confirmed, whether a claim is false, and what the checker said."""
    rng, content = random.Random(seed), original.restore()
    kind = KINDS[seed % len(KINDS)]
    proofs = original.folder / PROOFS
    if kind in ("bytes", "hash left"):
        proofs.write_bytes(damage(original.proofs, rng))
    elif kind in ("arrays", "arrays and margin", "claim and arrays"):
        data = original.proofs
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = change_arrays(data, rng)
        proofs.write_bytes(data)
        if kind == "arrays and margin":
            for claim in content["claims"]:
                claim["margin_lower"] = max(5e-324, claim["margin_lower"] + rng.choice([3e-5, 0.01, 0.1, -0.1, 0.0]))
    elif kind == "bomb":
        proofs.write_bytes(bomb(original.proofs, rng))
    elif kind == "foreign":
        proofs.write_bytes(original.foreign)
        if rng.random() < 0.5:
            edit_claim(content, rng)
    elif kind == "inputs":
        (original.folder / INPUTS).write_bytes(swap_inputs(original.inputs, rng))
        if rng.random() < 0.5:
            for claim, x in zip(
                sorted(content["claims"], key=lambda one: one["id"]), arrays((original.folder / INPUTS).read_bytes())["inputs"], strict=True
            ):
                claim["input_sha256"] = hashlib.sha256(x.tobytes()).hexdigest()
    elif kind == "no proofs":
        proofs.unlink()
        content["proofs_sha256"] = None
    if kind.startswith("claim"):
        edit_claim(content, rng)
    if kind == "hash left":
        (original.folder / CERTIFICATE).write_text(json.dumps(original.content))
        sign(original.folder)
    else:
        forge(original.folder, content)
    found = check(original.folder)
    assert found.status in (0, 1)
    try:
        false = original.false_claims() > 0
    except (KeyError, ValueError):  # a claim about an input that is not there states nothing that could be confirmed
        false = True
    return kind, found.passed, false, found.problem
